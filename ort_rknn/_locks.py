"""Locks for ``with`` blocks that a signal handler's exception cannot leave locked."""

from __future__ import annotations

import _thread
import sys
import threading
from typing import TYPE_CHECKING

__all__ = ["Lock", "RLock"]

if TYPE_CHECKING or sys.version_info < (3, 14):
    Lock, RLock = threading.Lock, threading.RLock
else:

    class Lock(_thread.RLock):
        """Up to Python 3.13 ``with lock:`` takes the lock in one step. 3.14 calls ``__enter__`` and looks for signals
        before the block begins, so a handler's exception would leave a :class:`threading.Lock` taken.

        Here the exception is raised inside ``__enter__``, which releases the lock. Only a lock that knows its owner can
        tell whether it was taken; such a lock can be taken again by its owner, which none of our code does.
        """

        __slots__ = ()

        def __enter__(self) -> None:  # no call may follow the one that takes it
            try:
                self.acquire()
            except BaseException:
                try:
                    self.release()
                except RuntimeError:
                    pass  # it was not taken
                raise

    RLock = Lock
