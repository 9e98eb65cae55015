"""Shared by the tests of ort_rknn_rknnlite: models, feeds, started objects, machines with and without an NPU."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest

import ort_rknn as ort
from ort_rknn_rknnlite.api import RKNNLite
from ort_rknn_virtual.control import virtual_npu

MODELS = Path(__file__).parents[1] / "models"
MANIFEST = json.loads((MODELS / "MANIFEST.json").read_text())["files"]
CONV = MODELS / "conv_f16.rk3588.rknn"
X = np.random.default_rng(0).standard_normal((1, 32, 32, 3), dtype=np.float32)


def virtual_rk3588(monkeypatch):
    """A fixture: the virtual RK3588 in its initial state; nothing may be left open on it."""
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    npu = virtual_npu("rk3588")
    npu.reset()
    yield npu
    gc.collect()
    counters = npu.counters()
    npu.reset()
    assert (counters.contexts, counters.models, counters.misuses) == (0, 0, 0)


def without_npu(monkeypatch):
    """A fixture: no NPU on this machine."""
    monkeypatch.setenv("ORT_RKNN_DISABLE", "1")


def started(path=CONV, **arguments):
    made = RKNNLite()
    assert made.load_rknn(path) == 0
    assert made.init_runtime(**arguments) == 0
    return made


def on_cpu(path=CONV):
    with pytest.warns(ort.FallbackWarning, match="does not run on an NPU but its ONNX"):
        return started(path)


def feed_of(values, name):
    """A feed in the form of rknnlite programs: NHWC."""
    arrays = [values[f"input/{tensor['name']}"] for tensor in MANIFEST[name]["declared"]["inputs"]]
    pixels = any(key.startswith("onnx_input/") for key in values)
    return [a if a.ndim != 4 or pixels else np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in arrays]
