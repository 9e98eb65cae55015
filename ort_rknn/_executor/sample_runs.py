"""The runs of a batch, on all contexts at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

from .._concurrency.forks import keep
from .._concurrency.one_shot import Awaited
from .._interrupts import start_thread
from .._locks import Lock

_pop: Callable[[list[bool]], bool] = list.pop


class _Help(Awaited):
    """One thread's part in the runs of a batch: it takes runs until none is left."""

    __slots__ = ("given_up", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__()
        self.work: Callable[[], None] | None = work
        self.given_up: list[bool] = []
        """Not empty: no thread began, and none will."""

    def execute(self) -> None:
        """Do the work, which keeps its errors."""
        assert self.work is not None
        self.work()
        self.work = None  # it holds buffers
        self.finish()

    def give_up_or_wait(self) -> None:
        """Return when no thread works on it, and none will. If interrupted, call it again."""
        # A single call claims it and says so: a signal handler may raise before or after, but not in between.
        with suppress(IndexError):
            self.given_up.extend(map(_pop, (self._claims,)))
        if not self.given_up:
            self.wait()
        self.work = None


class SampleRuns:
    """Runs the samples of batches on up to ``contexts`` threads, which are started on first use. Thread-safe.

    :meth:`close` must be called: it ends the threads.
    """

    def __init__(self, contexts: int) -> None:
        self._contexts = contexts
        self._start_anew()

    def _start_anew(self) -> None:
        """No threads, and nothing for them to do."""
        self._threads: list[threading.Thread] = []
        self._starting = Lock()
        self._asked: SimpleQueue[_Help | None] = SimpleQueue()  # None: the threads end
        self._over = False

    def run_all(self, one: Callable[[int], None], runs: int) -> None:
        """Call ``one`` with 0 to ``runs`` - 1; the caller's own thread takes part.

        Returns when no thread works on it any more, also if a signal handler raises. The first error stops it, and is
        raised.
        """
        numbers = iter(range(runs))
        failed: list[BaseException] = []
        helps: list[_Help] = []

        def work() -> None:
            while not failed:
                k = next(numbers, None)  # a C function: no two threads get the same
                if k is None:
                    return
                try:
                    one(k)
                except BaseException as error:
                    failed.append(error)

        try:
            try:
                self._ask(work, min(runs, self._contexts) - 1, helps)
                work()
                _end(helps)
            except BaseException as error:
                failed.append(error)
                # No thread may still write to the caller's buffers when this returns, whatever signals come.
                while helps:
                    with suppress(BaseException):
                        _end(helps)
            if failed:
                raise failed[0]
        finally:
            # Its traceback leads here: a list that kept it would keep the session alive until the next garbage
            # collection.
            failed.clear()

    def _ask(self, work: Callable[[], None], number: int, helps: list[_Help]) -> None:
        """Ask ``number`` threads to take part."""
        if number < 1:
            return
        if len(self._threads) < number:
            with suppress(RuntimeError), self._starting:  # no thread can be started: those that there are take part
                while len(self._threads) < number and not self._over:
                    name = f"ort_rknn_{len(self._threads)}"
                    thread = threading.Thread(target=_work, args=(self._asked,), name=name, daemon=True)
                    start_thread(thread)
                    self._threads.append(thread)
        for _ in self._threads[:number]:
            helps.append(_Help(work))
            self._asked.put(helps[-1])

    def leave_to_parent(self) -> None:
        """In a forked child: the threads are the parent's."""
        keep((self._threads, self._asked))
        self._start_anew()

    def close(self) -> None:
        """End the threads when they have nothing left to do. Idempotent."""
        with self._starting:
            self._over = True
        self._asked.put(None)


def _end(helps: list[_Help]) -> None:
    """Return when no thread works on any of them. If interrupted, call it again."""
    while helps:
        helps[-1].give_up_or_wait()
        helps.pop()


def _work(asked: SimpleQueue[_Help | None]) -> None:
    while (given := asked.get()) is not None:
        if given.claim():
            given.execute()
        del given
    asked.put(None)  # for the next thread
