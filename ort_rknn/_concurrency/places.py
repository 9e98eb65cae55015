"""Back-pressure: so many calls at a time, and who waits for a place. Sessions and the faces for other APIs use it.

A signal's handler may raise between any two steps of Python code, on the main thread. So nothing is counted up and
down here: a place is taken while somebody holds its token, and is free again when the token is gone. Whatever an
exception leaves behind, the interpreter drops, and with it the token. ``threading.Semaphore`` and ``Condition`` are
Python code: an exception inside one can leave its lock taken for good.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class _Token:
    """Alive while its place is taken."""

    __slots__ = ("__weakref__",)


#: A place that was taken. ``place.clear()`` gives it back: any number of times, and in one step that no signal cuts in
#: two. So does dropping the list.
Place = list[_Token]

#: Who waits looks again after so many seconds, in case whoever freed a place was interrupted before it said so.
_LOOK_AGAIN = 0.2


class Places:
    """A fixed number of places. Thread safe; usable from any event loop."""

    def __init__(self, number: int) -> None:
        self._slots: list[weakref.ref[_Token] | None] = [None] * number
        self._next = 0
        self._lock = threading.Lock()
        #: An entry for every place that became free; more or fewer do no harm.
        self._news: SimpleQueue[object] = SimpleQueue()
        self._waiting: deque[_Waiter] = deque()

    def __len__(self) -> int:
        return len(self._slots)

    def take(self, timeout: float) -> Place | None:
        """A place, as soon as one is free; None if none became free in ``timeout`` seconds."""
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
        """As :meth:`take`, without blocking the event loop and without a thread. Who came first is served first."""
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
            self.tell()

    def tell(self) -> None:
        """A place may be free: wake up who waits on an event loop."""
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
        """Whether somebody waits on an event loop, who came first."""
        return bool(self._waiting)

    def taken(self) -> int:
        """How many are taken."""
        return sum(slot is not None and slot() is not None for slot in self._slots)

    def wait_until_free(self) -> None:
        """Return when all are free."""
        while self.taken():
            with suppress(Empty):
                self._news.get(timeout=_LOOK_AGAIN)

    def _claim(self, place: Place) -> bool:
        # Nothing but a call in here: the jump back of a loop inside a `with` may lie outside what leaves the
        # `with` on an exception (CPython 3.12 and 3.13), and a signal's handler may raise there. The lock stays taken.
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
    """A task that waits, on its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._called = loop.create_future()

    def wake(self) -> None:
        """From any thread. Raises RuntimeError if the loop was closed."""
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if not self._called.done():
            self._called.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Until it is called, ``seconds`` at most."""
        import asyncio

        await asyncio.wait({self._called}, timeout=seconds)
        if self._called.done():
            self._called = self._loop.create_future()
