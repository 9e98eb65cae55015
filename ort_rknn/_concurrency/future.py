"""A ``concurrent.futures.Future`` that stays intact when a signal handler raises."""

from __future__ import annotations

import _thread
import sys
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from .._locks import Lock

if TYPE_CHECKING:
    from .places import Place

T = TypeVar("T")

_RLock: Any = _thread.RLock if sys.version_info < (3, 14) else Lock


class _Gate(_RLock):  # type: ignore[misc]  # the type is not public
    """The part of ``threading.Condition`` that a Future uses, on a lock that ``with`` takes in one step.

    ``Condition.__enter__`` is Python code: if a signal handler raised on its way out, the lock would stay locked, and
    the thread that sets the result would wait for it forever.
    """

    def __init__(self) -> None:
        self._waiters: deque[_thread.LockType] = deque()

    def notify_all(self) -> None:
        """Wake up all waiting threads."""
        while self._waiters:
            with suppress(IndexError, RuntimeError):
                self._waiters.popleft().release()

    def wait(self, timeout: float | None = None) -> bool:
        """As a Condition's, with the lock acquired once."""
        self.release()
        try:
            return self.sleep(timeout)
        finally:
            self.acquire()

    def sleep(self, timeout: float | None, over: Any = bool) -> bool:
        """Wait, without the lock, for the next :meth:`notify_all`, unless ``over()`` is true already."""
        mine = threading.Lock()
        mine.acquire()
        self._waiters.append(mine)
        try:
            return bool(over()) or mine.acquire(True, -1 if timeout is None else max(timeout, 0))
        finally:
            with suppress(ValueError):
                self._waiters.remove(mine)


class CallFuture(Future[T]):
    """The outcome of a call. ``place`` is its place in the queue."""

    _condition: _Gate

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._condition = _Gate()
        self.place = place

    def result(self, timeout: float | None = None) -> T:
        """As a Future's."""
        self._sleep(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As a Future's."""
        self._sleep(timeout)
        return super().exception(0)

    def _sleep(self, timeout: float | None) -> None:
        if not self.done():
            self._condition.sleep(timeout, self.done)

    def begin(self) -> bool:
        """Called on the thread that would run the call. False if it was canceled."""
        if self.set_running_or_notify_cancel():
            return True
        self._condition.notify_all()  # cancel() may have been interrupted before its own call
        return False
