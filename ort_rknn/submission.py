"""Asynchronous calls: a bounded number of them in flight, on threads that are made on first use.

It knows nothing of sessions: it runs functions. A session and the faces for other APIs use the same class.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from .errors import FAIL, RUNTIME_EXCEPTION, ort_error

T = TypeVar("T")
Item = TypeVar("Item")

#: What a callback gets: the result or None, and the error or None.
Callback = Callable[[Any, "BaseException | None"], None]


class Submitter:
    """Runs functions on ``workers`` threads, with at most ``max_queue_size`` waiting besides those that run.

    ``sequential_callbacks``: callbacks come in the order of submission, else as calls finish. Thread safe.
    """

    def __init__(
        self, workers: int, *, max_queue_size: int, submit_timeout_ms: int, sequential_callbacks: bool = True
    ) -> None:
        self._places = threading.Semaphore(workers + max_queue_size)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ort_rknn submit")
        self._timeout = submit_timeout_ms / 1000
        self._delivery: _Delivery | None = None
        self._sequential = sequential_callbacks
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, function: Callable[..., T], *args: Any, timeout: float | None = None) -> Future[T]:
        """Run ``function(*args)`` soon. Waits for a place at most ``timeout`` seconds (None: submit_timeout_ms).

        Raises Fail where none became free.
        """
        self._take_place(self._timeout if timeout is None else timeout)
        future = self._start(function, args)
        future.add_done_callback(self._free_place)
        return future

    def submit_with_callback(self, function: Callable[..., Any], args: tuple[Any, ...], callback: Callback) -> None:
        """As :meth:`submit`; the outcome goes to ``callback``, on a thread that does nothing else.

        The place becomes free when the callback's turn comes, so slow callbacks hold up submitters, not memory. A
        callback that raises has its traceback shown by ``sys.excepthook`` and harms no other.
        """
        self._take_place(self._timeout)
        with self._lock:
            if self._delivery is None:
                self._delivery = _Delivery(self._sequential, self._places.release)
            self._delivery.expect(self._start(function, args), callback)

    def _take_place(self, timeout: float) -> None:
        if not self._places.acquire(timeout=timeout):
            raise ort_error(
                FAIL,
                f"submit timed out: no place became free in {timeout:g} s; collect results, submit less often, or set "
                "the provider options max_queue_size or submit_timeout_ms higher",
            )

    def _start(self, function: Callable[..., T], args: tuple[Any, ...]) -> Future[T]:
        try:
            return self._pool.submit(function, *args)
        except BaseException as error:
            self._places.release()
            if isinstance(error, RuntimeError) and self._closed:
                raise ort_error(RUNTIME_EXCEPTION, "the session was closed") from error
            raise

    def _free_place(self, future: Future[Any]) -> None:
        self._places.release()

    def map(self, function: Callable[[Item], T], items: Iterable[Item], depth: int) -> Iterator[T]:
        """Results in the items' order, at most ``depth`` in flight. Items are taken as results are asked for.

        When the consumer stops early, calls that have not begun are dropped and the running ones waited for.
        """
        flying: list[Future[T]] = []
        try:
            for item in items:
                flying.append(self.submit(function, item))
                if len(flying) >= depth:
                    yield flying.pop(0).result()
            while flying:
                yield flying.pop(0).result()
        finally:
            for future in flying:
                future.cancel()
            for future in flying:
                try:
                    future.exception()
                except CancelledError:
                    pass

    def close(self) -> None:
        """Wait for everything submitted, callbacks included; called from a callback, only for what runs."""
        self._closed = True
        self._pool.shutdown(wait=threading.current_thread() not in self._pool._threads)
        if self._delivery is not None:
            self._delivery.close()


class _Delivery:
    """Hands outcomes to callbacks on one thread, in the order of submission or of completion."""

    def __init__(self, sequential: bool, turn: Callable[[], None]) -> None:
        self._sequential = sequential
        self._outcomes: queue.SimpleQueue[tuple[Future[Any], Callback] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=_deliver, args=(self._outcomes, turn), name="ort_rknn callbacks", daemon=True
        )
        self._thread.start()

    def expect(self, future: Future[Any], callback: Callback) -> None:
        if self._sequential:
            self._outcomes.put((future, callback))  # the thread waits for it
        else:
            outcomes = self._outcomes
            future.add_done_callback(lambda done: outcomes.put((done, callback)))

    def close(self) -> None:
        self._outcomes.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __del__(self) -> None:
        self._outcomes.put(None)


def _deliver(outcomes: queue.SimpleQueue[tuple[Future[Any], Callback] | None], turn: Callable[[], None]) -> None:
    while (entry := outcomes.get()) is not None:
        future, callback = entry
        del entry
        try:
            error = future.exception()
            result = None if error is not None else future.result()
        except CancelledError as cancelled:
            error, result = cancelled, None
        del future
        turn()
        try:
            callback(result, error)
        except BaseException:
            # As threading does for a thread's function: shown, and the next callback comes all the same.
            sys.excepthook(*sys.exc_info())
        del callback, result, error


class Pending(Protocol):
    """A call that was started, such as a Future."""

    def result(self) -> Any:
        """Wait for it; give its result or raise its error."""
        ...


class Pipeline:
    """Calls go in, results come out ``depth`` calls later, in order: one caller keeps all cores busy."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._flying: deque[Pending] = deque()

    def push(self, call: Pending) -> Any:
        """The result of the call ``depth`` calls ago, or None while there is none. Raises that call's error."""
        self._flying.append(call)
        return self._flying.popleft().result() if len(self._flying) > self.depth else None

    def flush(self) -> list[Any]:
        """The results that are still in it, oldest first; empties it. Raises the first error, after all have ended."""
        results: list[Any] = []
        first: BaseException | None = None
        while self._flying:
            try:
                results.append(self._flying.popleft().result())
            except BaseException as error:
                first = first or error
        if first is not None:
            try:
                raise first
            finally:
                del first  # else its traceback would lead back to it
        return results
