"""Shared by tests of sessions without an NPU: a machine that has none, a model, its feeds."""

import re

import numpy as np

from support.fake_npu import FakeNpu, install

OURS = "RKNNExecutionProvider"
CPU = "CPUExecutionProvider"
A = np.zeros((1, 3, 16, 16), np.float32)


def without_npu(monkeypatch):
    """A fixture: one adapter, which sees no device."""
    npu = FakeNpu()
    npu.present = False
    return install(npu, monkeypatch.setattr)


def two_io(models):
    """A fixture: the path of a model with two inputs and two outputs."""
    return str(models / "two_io.onnx")


def feed(**changes):
    out = {"a": np.zeros((1, 3, 16, 16), np.float32), "b": np.zeros((1, 16), np.float32), **changes}
    return {name: value for name, value in out.items() if value is not None}


def outcome(call):
    try:
        return None, call()
    except Exception as error:
        return type(error), re.sub(" at 0x[0-9a-f]+", "", str(error))
