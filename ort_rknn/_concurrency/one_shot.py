"""A one-shot result: completed by one thread, awaited by another. For a run that waits for a context, or a pending
call."""

from __future__ import annotations

import threading


class Awaited:
    """Started at most once: whoever wants to start it, or to give it up before that, must :meth:`claim` it.

    The claimant calls :meth:`finish`, after setting ``error`` if it failed. One thread waits for it.
    """

    __slots__ = ("_claims", "_over", "ended", "error")

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.ended = False
        self._claims = [True]  # a list's pop is atomic
        self._over = threading.Lock()
        self._over.acquire()

    def claim(self) -> bool:
        """Whether the caller has claimed it. True exactly once."""
        try:
            return self._claims.pop()
        except IndexError:
            return False

    def finish(self) -> None:
        """Mark it as ended and release the waiting thread. Call it once."""
        self.ended = True  # before the lock, so that whoever gets the lock sees it
        self._over.release()

    def wait(self) -> None:
        """Wait until it has ended."""
        if not self.ended:  # if an interrupted wait left the lock acquired, it has ended
            with self._over:
                pass

    def wait_for(self, seconds: float) -> bool:
        """As :meth:`wait`, for at most ``seconds``. Returns whether it has ended."""
        if not self.ended and self._over.acquire(timeout=seconds):
            self._over.release()
        return self.ended

    def raise_error(self) -> None:
        """Raise the error, if it failed, and forget it."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # else its traceback would refer back to it
