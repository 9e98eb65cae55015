"""The actor's class, without Ray: where it runs, how many calls to keep in flight, a missing device."""

import asyncio

import numpy as np
import onnxruntime
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import RuntimeException
from support.virtual_sessions import MODELS, VIRTUAL, X, virtual_rk3588

import ort_rknn
from ort_rknn_ray import NpuModel

npu = pytest.fixture(virtual_rk3588)
MODEL = str(MODELS / "conv_f16.onnx")


@pytest.fixture
def on_cpu():
    return onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]


def run(model):
    return asyncio.run(model.run({"x": X}))[0]


def test_without_an_npu_it_refuses_or_serves(on_cpu):
    with pytest.raises(ort_rknn.NpuUnavailable):
        NpuModel(MODEL)
    with pytest.warns(ort_rknn.FallbackWarning):
        model = NpuModel(MODEL, on_cpu="serve")
    assert not asyncio.run(model.describe())["on_npu"]
    np.testing.assert_array_equal(run(model), on_cpu)
    model.session.close()
    with pytest.raises(ValueError, match="on_cpu: expected 'refuse' or 'serve', got 'maybe'"):
        NpuModel(MODEL, on_cpu="maybe")


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, 6),
        ({"schedule": "0"}, 2),
        ({"schedule": "0,2"}, 4),
        ({"schedule": "0,0"}, 2),
        ({"schedule": "0,1,2", "threads_per_core": 2}, 12),
        ({"tp_mode": "0,1,2"}, 2),
    ],
)
def test_calls_at_once(npu, options, calls):
    model = NpuModel(MODEL, provider_options={**VIRTUAL, **options})
    told = asyncio.run(model.describe())
    assert (told["on_npu"], told["calls_at_once"]) == (True, calls)
    assert "device:" in told["explain"]
    model.session.close()


def test_its_calls_use_all_cores(npu):
    npu.run_time_us = 20_000
    model = NpuModel(MODEL, provider_options=VIRTUAL)

    async def crowd():
        return await asyncio.gather(*[model.run({"x": X}) for _ in range(12)])

    assert len(asyncio.run(crowd())) == 12
    assert all(npu.counters().runs)
    model.session.close()


def test_a_gone_device_is_an_error_where_the_cpu_is_refused(npu):
    """So that the caller tries another board: none of its answers is the CPU's."""
    model = NpuModel(MODEL, provider_options={**VIRTUAL, "schedule": "0,1,2"})
    right = run(model)
    npu.fault("rknn_run", -3)
    for _ in range(5):
        with pytest.raises(RuntimeException, match="RKNN_ERR_DEVICE_UNAVAILABLE"):
            run(model)
    npu.clear_faults()
    np.testing.assert_array_equal(run(model), right)
    model.session.close()


def test_a_missing_device_is_replaced_by_the_cpu_on_request(npu, on_cpu):
    model = NpuModel(MODEL, provider_options=VIRTUAL, on_cpu="serve")
    assert not np.array_equal(run(model), on_cpu)  # float16
    npu.fault("rknn_run", -3)
    for _ in range(5):
        np.testing.assert_array_equal(run(model), on_cpu)
    assert model.session.stats().models[0].fallback_runs == 5
    model.session.close()
