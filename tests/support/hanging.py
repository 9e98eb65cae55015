"""Runs on the fake NPU that wait until they are let go."""

import threading
import time

from ort_rknn._executor import run_settings


def gates(npu):
    """A fixture: ``hang(mask)`` puts a gate in front of the runtime's call on cores with this mask. All are opened by
    ``hang.open()``, and when the test ends; then nothing may be left of the settings of calls."""
    gates = {}

    def close(mask=0):
        npu.gates[mask] = gates[mask] = threading.Event()

    def open_all():
        for gate in gates.values():
            gate.set()
        npu.gates.clear()

    close.open = open_all
    yield close
    open_all()
    end = time.monotonic() + 10
    while npu.open_contexts and time.monotonic() < end:  # a thread gives them back
        time.sleep(0.01)
    assert not run_settings._settings
    assert not run_settings.asynchronous
