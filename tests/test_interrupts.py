"""Exceptions of signal handlers that are raised while C code is calling Python."""

import ctypes
import signal
import time

import pytest

from ort_rknn import _interrupts


class Interrupted(BaseException):
    """Raised by the signal's handler."""


@pytest.fixture
def handled():
    def handler(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handler)
    yield
    signal.signal(signal.SIGUSR1, before)


@ctypes.CFUNCTYPE(ctypes.c_int)
def interrupted():
    try:
        signal.raise_signal(signal.SIGUSR1)
        time.sleep(0)
        return 0
    except Interrupted as error:
        return _interrupts.raised_after(error, -7)


def test_it_is_raised_after_the_callback(handled):
    for _ in range(3):
        with pytest.raises(Interrupted):
            interrupted()
            time.sleep(60)


def test_a_signal_to_wake_up_that_comes_before_the_callback_returns(handled, monkeypatch):
    """As on a busy machine: it must not be raised inside the callback, where it would be lost."""
    monkeypatch.setattr(_interrupts._thread, "start_new_thread", lambda wake, given: signal.raise_signal(given[1]))
    for _ in range(3):
        with pytest.raises(Interrupted):
            interrupted()
            time.sleep(60)
