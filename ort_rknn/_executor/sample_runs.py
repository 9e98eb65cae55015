"""The runs of a batch, on all contexts at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .._concurrency.forks import keep
from .._locks import Lock

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor


class SampleRuns:
    """Runs the samples of batches on up to ``contexts`` threads, which are started on first use. Thread-safe.

    :meth:`close` must be called: it ends the threads.
    """

    def __init__(self, contexts: int) -> None:
        self._contexts = contexts
        self._pool: ThreadPoolExecutor | None = None
        self._pool_lock = Lock()

    def run_all(self, one: Callable[[int], None], runs: int) -> None:
        """Call ``one`` with 0 to ``runs`` - 1; the caller's own thread takes part.

        Returns when no thread works on it any more. The first error stops it, and is raised.
        """
        numbers = iter(range(runs))
        lock = Lock()
        failed: list[BaseException] = []

        def work() -> None:
            while not failed:
                with lock:
                    k = next(numbers, None)
                if k is None:
                    return
                try:
                    one(k)
                except BaseException as error:
                    failed.append(error)
                    raise

        others: list[Future[None]] = []
        try:
            try:
                self._let_others_help(work, min(runs, self._contexts) - 1, others)
                work()
            finally:
                # No thread may still write to the caller's buffers when this returns.
                while others:
                    others.pop().exception()
            if failed:
                raise failed[0]
        finally:
            # Its traceback leads here: a list that kept it would keep the session alive until the next garbage
            # collection.
            failed.clear()

    def _let_others_help(self, work: Callable[[], None], number: int, others: list[Future[None]]) -> None:
        if number < 1:
            return
        pool = self._threads()
        for _ in range(number):
            try:
                others.append(pool.submit(work))
            except RuntimeError:
                return  # shut down by close(): the caller's own run reports it

    def _threads(self) -> ThreadPoolExecutor:
        with self._pool_lock:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor

                # Callers wait for the pool's threads, which wait for contexts: never for each other.
                self._pool = ThreadPoolExecutor(self._contexts, thread_name_prefix="ort_rknn")
            return self._pool

    def leave_to_parent(self) -> None:
        """In a forked child: the threads are the parent's."""
        keep(self._pool)
        self._pool, self._pool_lock = None, Lock()

    def close(self) -> None:
        """End the threads when they have nothing left to do. Idempotent."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)
