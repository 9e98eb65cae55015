"""Shared by the tests of ort_rknn_ez_async: models, feeds, a session on the virtual NPU, its runs and callbacks."""

import gc
import threading
from pathlib import Path

import numpy as np

from ort_rknn_virtual.control import virtual_npu

MODELS = Path(__file__).parents[1] / "models"
CONV = MODELS / "conv_f16.rk3588.rknn"
DEVICE = {"device": "virtual:rk3588"}
X = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)


def model(name):
    return MODELS / f"{name}.rk3588.rknn"


def make(path=CONV, **options):
    """A session on the virtual NPU."""
    import ort_rknn_ez_async as ez

    return ez.InferenceSession(path, provider_options={**DEVICE, **options})


def fresh_npu(monkeypatch):
    """A fixture: the virtual RK3588 in its initial state; nothing may be left open on it."""
    monkeypatch.delenv("ZTU_RKNPU2_RUNTIME_LIBRARY", raising=False)
    device = virtual_npu("rk3588")
    device.reset()
    yield device
    gc.collect()
    device.reset()
    assert device.counters().contexts == 0


def runs(npu):
    return [e for e in npu.events() if e.kind == "run"]


class Collector:
    def __init__(self, wanted):
        self.calls, self.wanted, self.done = [], wanted, threading.Event()

    def __call__(self, results, data, error):
        self.calls.append((results, data, error))
        if len(self.calls) == self.wanted:
            self.done.set()
