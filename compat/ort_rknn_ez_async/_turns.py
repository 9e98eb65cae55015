"""Whose turn it is. While a context is free, a run executes on the caller's own thread: no hop. Where more callers wait
than there are contexts, workers take over, one per context: the next run begins on the thread that ended the last one,
so that no core waits for a thread to wake up.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Slot:
    """A call that waits for its turn, then its result."""

    __slots__ = ("_arguments", "_done", "_error", "_over", "_result")

    def __init__(self, arguments: tuple[Any, ...], over: Callable[[], None] | None) -> None:
        self._arguments = arguments
        self._over = over
        self._error: BaseException | None = None
        self._result: Any = None
        self._done = threading.Lock()
        self._done.acquire()

    def execute(self, function: Callable[..., Any]) -> None:
        """Run it, on a worker."""
        try:
            self._result = function(*self._arguments)
        except BaseException as error:
            self._error = error
        self._end()

    def fail(self, error: BaseException) -> None:
        """It will never run."""
        self._error = error
        self._end()

    def _end(self) -> None:
        self._arguments = ()
        if self._over is not None:
            self._over()
        self._done.release()

    def wait(self) -> Any:
        """The result; raises the error. Once only, from one thread."""
        self._done.acquire()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result


class Turns:
    """``function`` runs at most ``contexts`` times at once, in the order of the calls. Thread safe.

    Whoever gives a permit back looks afterwards who waits; whoever waits looks afterwards for a permit: nobody is
    forgotten.
    """

    def __init__(self, contexts: int, function: Callable[..., Any]) -> None:
        self._contexts = contexts
        self._function = function
        self._permits: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(contexts):
            self._permits.put(None)
        self._waiting: deque[Slot] = deque()
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def run(self, *arguments: Any) -> Any:
        """Call the function, on this thread if it can be now. Raises what it raises."""
        try:
            self._permits.get_nowait()
        except queue.Empty:
            return self.start(arguments).wait()
        try:
            return self._function(*arguments)
        finally:
            if self._waiting:
                self._wake_one()
            else:
                self._give_back()

    def start(self, arguments: tuple[Any, ...], over: Callable[[], None] | None = None) -> Slot:
        """Call the function on a worker; ``over`` is called there when it has ended. Returns at once."""
        slot = Slot(arguments, over)
        self._waiting.append(slot)
        if self._closed:
            try:
                self._waiting.remove(slot)
            except ValueError:
                return slot  # it ran, or was told
            slot.fail(RuntimeError("the session was closed"))
        elif self._take():
            self._wake_one()
        return slot

    def _take(self) -> bool:
        try:
            self._permits.get_nowait()
        except queue.Empty:
            return False
        return True

    def _give_back(self) -> None:
        self._permits.put(None)
        if self._waiting and self._take():
            self._wake_one()

    def _wake_one(self) -> None:
        """Hand a permit to a worker. There are never more permits about than workers."""
        if len(self._workers) < self._contexts:
            with self._lock:
                if len(self._workers) < self._contexts:
                    worker = threading.Thread(
                        target=_work,
                        args=(self._wake, self._waiting, self._permits, self._function),
                        name=f"ort_rknn run {len(self._workers)}",
                        daemon=True,
                    )
                    self._workers.append(worker)
                    worker.start()
        self._wake.put(True)

    def close(self) -> None:
        """Wait for everything that was started, then end the workers. Never on one of them. Idempotent."""
        if self._closed:
            return
        for _ in range(self._contexts):
            self._permits.get()
        self._closed = True
        while self._waiting:
            self._waiting.popleft().fail(RuntimeError("the session was closed"))
        for _ in self._workers:
            self._wake.put(False)
        for worker in self._workers:
            worker.join()


def _work(
    wake: queue.SimpleQueue[bool],
    waiting: deque[Slot],
    permits: queue.SimpleQueue[None],
    function: Callable[..., Any],
) -> None:
    while wake.get():
        while True:
            try:
                slot = waiting.popleft()
            except IndexError:
                permits.put(None)
                if not waiting:
                    break
                try:
                    permits.get_nowait()
                except queue.Empty:
                    break  # whoever has it sees who waits
                continue
            slot.execute(function)
            del slot


class Pipe:
    """Results come out ``depth`` calls after they went in, in order."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._slots: deque[Slot] = deque()

    def push(self, slot: Slot) -> Any:
        """The result of the call ``depth`` calls ago, or None while there is none. Raises that call's error."""
        self._slots.append(slot)
        return self._slots.popleft().wait() if len(self._slots) > self.depth else None

    def flush(self) -> list[Any]:
        """What is still in it, oldest first; empties it. Raises the first error, after all have ended."""
        results: list[Any] = []
        first: BaseException | None = None
        while self._slots:
            try:
                results.append(self._slots.popleft().wait())
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first
        return results
