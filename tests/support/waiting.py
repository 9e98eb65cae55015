"""Waiting for what another thread does, where nothing tells of it."""

import time


def until(condition, seconds=60):
    """Return as soon as ``condition()`` holds. AssertionError if it does not in time, which is a hang."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} seconds"
        time.sleep(0.001)
