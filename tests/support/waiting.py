"""Waits for another thread if nothing signals its progress."""

import time


def until(condition, seconds=60):
    """Return as soon as ``condition()`` is true. AssertionError if it does not become true in time, which is a hang."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} seconds"
        time.sleep(0.001)
