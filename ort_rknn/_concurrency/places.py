"""Back-pressure: a limited number of calls at a time. Used by sessions and by the faces for other APIs.

On the main thread, a signal handler may raise between any two steps of Python code. So nothing is incremented and
decremented here: a place is taken while a reference to its token exists, and is free once the token is deallocated.
Whatever an exception leaves behind is dropped by the interpreter, and the token with it. ``threading.Semaphore`` and
``Condition`` are Python code: an exception inside them can leave their lock locked forever.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from .._locks import Lock

if TYPE_CHECKING:
    import asyncio


class _Token:
    """Alive while its place is taken."""

    __slots__ = ("__weakref__",)


#: A place that was taken. ``place.clear()`` returns it: idempotent, and in a single step that no signal can interrupt.
#: Dropping the list does the same.
Place = list[_Token]

#: Waiting threads check again after this many seconds, in case the thread that freed a place was interrupted before it
#: notified them.
_LOOK_AGAIN = 0.2


class Places:
    """A fixed number of places. Thread-safe; usable from any event loop."""

    def __init__(self, number: int) -> None:
        self._slots: list[weakref.ref[_Token] | None] = [None] * number
        self._next = 0
        self._lock = Lock()
        #: An entry for every place that became free; more or fewer do no harm.
        self._news: SimpleQueue[object] = SimpleQueue()
        self._waiting: deque[_Waiter] = deque()

    def __len__(self) -> int:
        return len(self._slots)

    def take(self, timeout: float) -> Place | None:
        """A place as soon as one is free; None if none became free within ``timeout`` seconds."""
        place: Place = []
        try:
            if not self._news.empty():
                with suppress(Empty):
                    self._news.get_nowait()
            if self._claim(place):
                return place
            end = time.monotonic() + timeout
            while (left := end - time.monotonic()) > 0:
                with suppress(Empty):
                    self._news.get(timeout=min(left, _LOOK_AGAIN))
                if self._claim(place):
                    return place
            return None
        except BaseException:
            place.clear()
            self._news.put(None)
            raise

    async def wait(self, timeout: float) -> Place | None:
        """As :meth:`take`, without blocking the event loop and without a thread. First come, first served."""
        import asyncio

        waiter = _Waiter(asyncio.get_running_loop())
        end = time.monotonic() + timeout
        place: Place = []
        self._waiting.append(waiter)
        try:
            while True:
                if self._waiting[0] is waiter and self._claim(place):
                    return place
                left = end - time.monotonic()
                if left <= 0:
                    return None
                await waiter.sleep(min(left, _LOOK_AGAIN))
        except BaseException:
            place.clear()
            raise
        finally:
            self._waiting.remove(waiter)
            self.notify()

    def notify(self) -> None:
        """Wake up the tasks on event loops: a place may be free."""
        while self._waiting:
            try:
                first = self._waiting[0]
            except IndexError:
                return
            try:
                first.wake()
                return
            except RuntimeError:  # its loop was closed
                with suppress(ValueError):
                    self._waiting.remove(first)

    @property
    def awaited(self) -> bool:
        """Whether a task on an event loop is waiting, and so comes first."""
        return bool(self._waiting)

    def taken(self) -> int:
        """The number of places taken."""
        return sum(slot is not None and slot() is not None for slot in self._slots)

    def wait_until_free(self) -> None:
        """Wait until all places are free."""
        while self.taken():
            with suppress(Empty):
                self._news.get(timeout=_LOOK_AGAIN)

    def _claim(self, place: Place) -> bool:
        # Only a call in here: the backward jump of a loop inside a `with` may lie outside the range whose exceptions
        # leave the `with` (CPython 3.12 and 3.13). A signal handler that raises there would leave the lock locked.
        with self._lock:
            return self._claim_free(place)

    def _claim_free(self, place: Place) -> bool:
        slots = self._slots
        for k in range(self._next, self._next + len(slots)):
            k %= len(slots)
            slot = slots[k]
            if slot is None or slot() is None:
                place.append(_Token())
                slots[k] = weakref.ref(place[0], self._news.put)
                self._next = k + 1
                return True
        return False


class _Waiter:
    """A waiting task, on its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._called = loop.create_future()

    def wake(self) -> None:
        """Thread-safe. Raises RuntimeError if the loop was closed."""
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if not self._called.done():
            self._called.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Sleep until :meth:`wake`, for at most ``seconds``."""
        import asyncio

        await asyncio.wait({self._called}, timeout=seconds)
        if self._called.done():
            self._called = self._loop.create_future()
