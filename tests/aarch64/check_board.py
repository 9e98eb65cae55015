"""What a user of an RK3588 has after ``pip install ort-rknn``, on aarch64. Run by ``run.py``; needs its environment.

The board's ``librknnrt.so`` is the virtual NPU, found where boards have theirs: no option or environment variable
selects a virtual device.
"""

import os
import platform
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import ort_rknn as ort
from ort_rknn_virtual._abi import open_library
from ort_rknn_virtual._compute import TwinCompute
from ort_rknn_virtual.control import VirtualNpu

MODELS = Path(__file__).parents[1] / "models"
LIBRARY = "/usr/lib/librknnrt.so"
X = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)


@pytest.fixture
def npu():
    npu = VirtualNpu("rk3588", library=LIBRARY)
    npu.reset()
    yield npu
    counters = npu.counters()
    assert (counters.contexts, counters.models, counters.misuses) == (0, 0, 0)


def test_the_machine():
    assert platform.machine() == "aarch64"
    assert Path("/proc/device-tree/compatible").read_bytes() == b"radxa,rock-5b\0rockchip,rk3588\0"
    assert os.path.exists("/dev/dri/renderD129")


def test_the_npu_is_found_without_a_request():
    (device, also) = ort.devices()
    assert (device.adapter, device.name, device.cores, device.runtime) == ("librknnrt", "rk3588", 3, LIBRARY)
    assert (also.adapter, also.details["package"]) == ("lite2", "rknn-toolkit-lite2 2.5.0")
    assert ort.get_available_providers()[0] == "RKNNExecutionProvider"


@pytest.mark.wall_clock
def test_a_session_over_three_cores(npu):
    options = {"schedule": [0, 1, 2], "threads_per_core": 2}
    with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=options) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"
        assert "adapter librknnrt" in session.explain()
        twin = TwinCompute(str(MODELS / "conv_f16.onnx"))
        library = open_library(LIBRARY)
        for event in npu.events():
            if event.kind == "init":
                assert library.rknn_virtual_set_compute(event.context, twin.callback, None) == 0
        golden = np.load(MODELS / "conv_f16.rk3588.golden.npz")
        (y,) = session.run(None, {"x": golden["input/x"]})
        assert np.abs(y - golden["simulator/y"]).max() < 1e-2
        npu.run_time_us = 500_000
        results = {}
        threads = [
            threading.Thread(target=lambda k=k: results.setdefault(k, session.run(None, {"x": X})[0])) for k in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        runs = [event for event in npu.events() if event.kind == "run"][-3:]
        assert {event.core_mask for event in runs} == {1, 2, 4}
        assert max(event.start_ns for event in runs) < min(event.end_ns for event in runs)
        assert all(np.array_equal(results[0], y) for y in results.values())
    twin.close()


def test_errors_and_the_sessions_after_them(npu):
    with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options={"schedule": [1]}) as session:
        npu.fault("rknn_run", -2, times=1)
        with pytest.raises(Exception, match=r"rknn_run failed: RKNN_ERR_TIMEOUT \(-2\).* core 1"):
            session.run(None, {"x": X})
        session.run(None, {"x": X})


def test_plain_onnxruntime_with_the_provider(npu):
    ort.register()
    options = onnxruntime.SessionOptions()
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == "RKNNExecutionProvider"]
    options.add_provider_for_devices(devices[:1], {"schedule": "2"})
    session = onnxruntime.InferenceSession(str(MODELS / "conv_f16.onnx"), options)
    assert session.get_providers()[0] == "RKNNExecutionProvider"
    session.run(None, {"x": X})
    assert [event.core_mask for event in npu.events() if event.kind == "run"] == [4]
    del session
    ort.unregister()


def test_the_virtual_device_is_there_too():
    from ort_rknn_virtual.control import virtual_npu

    virtual = virtual_npu("rk3588")
    assert str(virtual.library) != LIBRARY
    virtual.reset()
    with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options={"device": "virtual:rk3588"}) as session:
        (y,) = session.run(None, {"x": X})
        (expected,) = onnxruntime.InferenceSession(str(MODELS / "conv_f16.onnx")).run(None, {"x": X})
        assert np.abs(y - expected).max() < 1e-2
    assert virtual.counters().contexts == 0
