"""Who is told that a call has ended: in which order, and on which thread."""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

T = TypeVar("T")

#: What a callback gets: the result or None, and the error or None.
Callback = Callable[[Any, "BaseException | None"], None]


class Order:
    """The futures whose callbacks wait for earlier ones. ``freed`` is called once for each."""

    def __init__(self, freed: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self._freed = freed
        self._waiting: deque[InOrder[Any]] = deque()
        self._at_it = False

    def expect(self, future: InOrder[Any]) -> None:
        with self.lock:
            self._waiting.append(future)

    def forget(self, future: InOrder[Any]) -> None:
        """It was never started; its place is given back elsewhere."""
        with self.lock:
            self._waiting.remove(future)

    def advance(self, ended: InOrder[Any]) -> None:
        """Call what is due, on this thread unless another is at it."""
        with self.lock:
            if not ended.callbacks and ended.holds:
                ended.holds = False
                self._freed()  # nobody waits for its turn
            if self._at_it:
                return
            self._at_it = True
        while True:
            with self.lock:
                if not self._waiting or not self._waiting[0].done():
                    self._at_it = False
                    return
                due = self._waiting.popleft()
                due.had_its_turn = True
                callbacks, due.callbacks = due.callbacks, []
                if due.holds:
                    due.holds = False
                    self._freed()
            for callback in callbacks:
                try:
                    # It has ended, so this calls it, and logs what it raises.
                    Future.add_done_callback(due, callback)
                except BaseException:  # a SystemExit, say: the next callback comes all the same
                    sys.excepthook(*sys.exc_info())
            del due, callbacks


class InOrder(Future[T]):
    """A future whose callbacks come after those of all that were submitted before it."""

    def __init__(self, order: Order) -> None:
        super().__init__()
        self.callbacks: list[Callable[[Future[T]], object]] = []
        self.had_its_turn = False
        self.holds = True
        """Its place in the queue is still taken."""
        self._order = order
        super().add_done_callback(lambda ended: order.advance(ended))  # type: ignore[arg-type]

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        with self._order.lock:
            if not self.had_its_turn:
                self.callbacks.append(fn)
                return
        super().add_done_callback(fn)


class Delivery:
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
