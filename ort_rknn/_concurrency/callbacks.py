"""Callbacks for calls that have ended: in which order they run, and on which thread."""

from __future__ import annotations

import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from .._interrupts import start_thread
from .._locks import Lock
from .future import CallFuture

if TYPE_CHECKING:
    from .places import Place

T = TypeVar("T")

#: A callback's arguments: the result or None, and the error or None.
Callback = Callable[[Any, "BaseException | None"], None]


class Order:
    """Futures whose callbacks run in submission order.

    :meth:`expect` may be interrupted by a signal's exception; the other methods are called on threads that get no
    signals.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self._waiting: deque[tuple[InOrder[Any], weakref.ref[Any]]] = deque()
        self._at_it = False

    def expect(self, future: InOrder[Any], job: object) -> None:
        """Append ``future``. If ``job``, which sets it, is garbage-collected before it ran, the future is skipped."""
        self._waiting.append((future, weakref.ref(job)))

    def advance(self, ended: InOrder[Any]) -> None:
        """Run the callbacks that are due, on this thread, unless another thread is doing so."""
        with self.lock:
            if not ended.callbacks:
                ended.place.clear()  # no longer waits for its turn
            if self._at_it:
                return
            self._at_it = True
        while True:
            with self.lock:
                due = self._next()
                if due is None:
                    self._at_it = False
                    return
                due.had_its_turn = True
                callbacks, due.callbacks = due.callbacks, []
                due.place.clear()
            for callback in callbacks:
                try:
                    # The future has ended, so this calls the callback and logs what it raises.
                    Future.add_done_callback(due, callback)
                except BaseException:  # such as SystemExit: later callbacks must still run
                    sys.excepthook(*sys.exc_info())
            del due, callbacks

    def _next(self) -> InOrder[Any] | None:
        while self._waiting:
            future, job = self._waiting[0]
            if future.over:
                return self._waiting.popleft()[0]
            if job() is not None:
                return None
            self._waiting.popleft()
        return None


class InOrder(CallFuture[T]):
    """A future whose callbacks run after those of all futures submitted before it.

    Callbacks of ``asyncio.wrap_future`` do not wait: they pass on the result, as :meth:`result` does.
    """

    def __init__(self, place: Place, order: Order) -> None:
        super().__init__(place)
        self.callbacks: list[Callable[[Future[T]], object]] = []
        self.had_its_turn = False
        self.over = False
        """Its thread is done with it, or it was never started."""
        self._order = order

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        if not str(getattr(fn, "__module__", "")).startswith("asyncio."):
            with self._order.lock:
                if not self.had_its_turn:
                    self.callbacks.append(fn)
                    return
        super().add_done_callback(fn)


class Delivery:
    """Passes outcomes to callbacks on one thread, in order of submission or of completion."""

    def __init__(self, sequential: bool) -> None:
        self._sequential = sequential
        self._outcomes: queue.SimpleQueue[tuple[CallFuture[Any], Callback] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_deliver, args=(self._outcomes,), name="ort_rknn callbacks", daemon=True)
        start_thread(self._thread)

    def expect(self, future: CallFuture[Any], callback: Callback) -> None:
        if self._sequential:
            self._outcomes.put((future, callback))  # the thread waits for the future
        else:
            outcomes = self._outcomes
            future.add_done_callback(lambda done: outcomes.put((future, callback)))

    def close(self) -> None:
        self._outcomes.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __del__(self) -> None:
        self._outcomes.put(None)


def _deliver(outcomes: queue.SimpleQueue[tuple[CallFuture[Any], Callback] | None]) -> None:
    while (entry := outcomes.get()) is not None:
        future, callback = entry
        del entry
        try:
            error = future.exception()
            result = None if error is not None else future.result()
        except CancelledError as cancelled:
            error, result = cancelled, None
        future.place.clear()
        del future
        try:
            callback(result, error)
        except BaseException:
            # Like threading for a thread's function: print it, and continue with the next callback.
            sys.excepthook(*sys.exc_info())
        del callback, result, error
