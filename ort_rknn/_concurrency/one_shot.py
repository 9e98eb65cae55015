"""What another thread brings to its end, for one who waits: a run that waits for a context, a call under way."""

from __future__ import annotations

import threading


class Awaited:
    """Begun by at most one: whoever wants to begin it, or to give it up before that, must :meth:`claim` it.

    Whoever claimed it calls :meth:`finish`, after setting ``error`` if it failed. One thread waits for it.
    """

    __slots__ = ("_claims", "_over", "ended", "error")

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.ended = False
        self._claims = [True]  # a list's pop is atomic
        self._over = threading.Lock()
        self._over.acquire()

    def claim(self) -> bool:
        """Whether it is the caller's now. True once."""
        try:
            return self._claims.pop()
        except IndexError:
            return False

    def finish(self) -> None:
        """It is over: who waits goes on. Once."""
        self.ended = True  # before the lock: who got it has seen this
        self._over.release()

    def wait(self) -> None:
        """Until it has ended."""
        if not self.ended:  # where an interrupted wait left the lock taken, it has ended
            with self._over:
                pass

    def wait_for(self, seconds: float) -> bool:
        """As :meth:`wait`, but no longer than that. Whether it has ended."""
        if not self.ended and self._over.acquire(timeout=seconds):
            self._over.release()
        return self.ended

    def raise_error(self) -> None:
        """Raise what it failed with. It is forgotten then."""
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # else its traceback would lead back to it
