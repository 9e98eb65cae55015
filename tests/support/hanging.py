"""Runs on the fake NPU that block until they are released."""

import threading
import time

from ort_rknn._executor import run_settings


def gates(npu):
    """A fixture: ``hang(mask)`` blocks the runtime's call on cores with this mask. ``hang.open()`` and the end of the
    test release all; then no settings of calls may be left."""
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
    while npu.open_contexts and time.monotonic() < end:  # a thread releases them
        time.sleep(0.01)
    assert not run_settings._settings
    assert not run_settings.asynchronous
