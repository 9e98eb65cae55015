"""Pacing: admits calls evenly instead of in bursts."""

from __future__ import annotations

import time

from .._errors import FAIL, ort_error
from .._locks import Lock


class Pacer:
    """Admits one call per mean run time divided by the number of lanes. Thread-safe.

    The mean is exponential (0.95 old, 0.05 new). A call that must wait sleeps for at most ``timeout_ms``.
    """

    def __init__(self, lanes: int, timeout_ms: int) -> None:
        self._lanes = lanes
        self._timeout = timeout_ms / 1000
        self._lock = Lock()
        self._mean = 0.0
        self._next = 0.0

    def wait(self) -> None:
        """Wait for this call's turn. Raises Fail if that would take longer than the timeout."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            if turn - now > self._timeout:
                raise ort_error(
                    FAIL,
                    f"enable_pacing: the next place is free in {turn - now:.1f} s, beyond submit_timeout_ms "
                    f"({self._timeout:g} s); call less often, or set it higher",
                )
            self._next = turn + self._mean / self._lanes
        if turn > now:
            time.sleep(turn - now)

    def record(self, seconds: float) -> None:
        """Record how long a run took."""
        with self._lock:
            self._mean = seconds if not self._mean else 0.95 * self._mean + 0.05 * seconds
