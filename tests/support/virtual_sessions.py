"""Shared by the tests of sessions on the virtual NPU: the NPU in its initial state, models, a session."""

import gc
import shutil
from pathlib import Path

import numpy as np
import onnxruntime

import ort_rknn as ort
from ort_rknn_virtual.control import virtual_npu

MODELS = Path(__file__).parents[1] / "models"
VIRTUAL = {"device": "virtual:rk3588"}
X = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)


def virtual_rk3588():
    """A fixture: the virtual RK3588 in its initial state; nothing may be left open on it."""
    device = virtual_npu("rk3588")
    device.reset()
    yield device
    if device.counters().contexts:
        gc.collect()  # an exception's traceback may hold a session
    counters = device.counters()
    device.reset()
    assert counters.contexts == 0, counters
    assert counters.models == 0, counters


def reset_rk3588():
    """A fixture: the virtual RK3588, as new before and after. It checks nothing."""
    device = virtual_npu("rk3588")
    device.reset()
    yield device
    device.reset()


def emptied_rk3588():
    """A fixture: like :func:`virtual_rk3588`, but garbage is not collected: not even a traceback may keep a session
    alive."""
    device = virtual_npu("rk3588")
    device.reset()
    yield device
    counters = device.counters()
    device.reset()
    assert (counters.contexts, counters.models) == (0, 0), counters


def folder_with_twin(tmp_path):
    """A fixture: a folder with a model and its twin, to be modified."""
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
        shutil.copy(MODELS / name, tmp_path / name)
    return tmp_path


def session(model=MODELS / "conv_f16.onnx", **options):
    return ort.InferenceSession(model, provider_options={**VIRTUAL, **options})


def value(shape, dtype):
    """An OrtValue in the NPU's memory, through onnxruntime's own API (1.28 and later)."""
    (device,) = (
        d
        for d in onnxruntime.get_ep_devices()
        if d.ep_name == "RKNNExecutionProvider" and d.ep_metadata["device"] == "virtual:rk3588"
    )
    info = device.memory_info(onnxruntime.OrtDeviceMemoryType.HOST_ACCESSIBLE)
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, memory_info=info)
