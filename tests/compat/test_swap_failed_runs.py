"""Under the import swap with policy "prefer", a run that fails on the NPU is served by the CPU: the program was written
for onnxruntime alone, where it would not fail."""

import asyncio
import importlib
import logging
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import RuntimeException
from support.models_in_parts import three_steps, write_in_parts
from support.virtual_sessions import virtual_rk3588

import ort_rknn

MODEL = Path(__file__).parents[1] / "models" / "conv_f16.onnx"
X = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
CALLS = ("rknn_run", "rknn_inputs_set", "rknn_outputs_get")

npu = pytest.fixture(virtual_rk3588)


@pytest.fixture(autouse=True)
def clean():
    yield
    ort_rknn.uninstall()


def session(policy="prefer", model=MODEL, **options):
    with ort_rknn.swapped(policy, device="virtual:rk3588", options=options):
        return importlib.import_module("onnxruntime").InferenceSession(model, providers=["RKNNExecutionProvider"])


def on_cpu(model=MODEL, x=X):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


WAYS = {
    "run": lambda s, feed: s.run(None, feed),
    "submit": lambda s, feed: s.submit(None, feed).result(20),
    "map": lambda s, feed: next(s.map([feed])),
    "run_awaitable": lambda s, feed: asyncio.run(s.run_awaitable(None, feed)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("options", [{}, {"schedule": "0,1,2"}, {"schedule": "0,1", "retries": "0"}], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_the_cpu_serves_it(npu, caplog, call, options, way):
    with session(**options) as made, caplog.at_level(logging.WARNING, "ort_rknn"):
        before = made.run(None, {"x": X})[0]
        npu.fault(call, -1)
        for _ in range(4):
            np.testing.assert_array_equal(way(made, {"x": X})[0], on_cpu())
        served = [r.message for r in caplog.records if "goes to the CPU" in r.message]
        assert len(served) == 1 and call in served[0]
        assert made.stats().models[0].fallback_runs == 4
        assert "4 runs failed on the NPU and went to the CPU; the last reason: " in made.explain()
        npu.clear_faults()
        made.run(None, {"x": X})  # a core that is out of service is tried again after a pause
        assert made.get_providers()[0] == "RKNNExecutionProvider"
        assert before.shape == on_cpu().shape


def test_one_failure_is_one_run_on_the_cpu(npu):
    with session(retries="0") as made:
        expected = made.run(None, {"x": X})[0]
        npu.fault("rknn_run", -1, times=1)
        np.testing.assert_array_equal(made.run(None, {"x": X})[0], on_cpu())
        for _ in range(3):
            np.testing.assert_array_equal(made.run(None, {"x": X})[0], expected)
        assert made.stats().models[0].fallback_runs == 1


def test_a_model_in_parts(npu, tmp_path):
    model = write_in_parts(tmp_path, three_steps())
    with session(model=model) as made:
        feed = {value.name: np.ones([d if isinstance(d, int) else 1 for d in value.shape], np.float32)
                for value in made.get_inputs()}  # fmt: skip
        expected = made.run(None, feed)
        npu.fault("rknn_run", -1)
        for a, b in zip(made.run(None, feed), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-2)


@pytest.mark.parametrize("how", ["respect", "our own session", "only"])
def test_elsewhere_it_is_an_error(npu, how):
    if how == "our own session":
        made = ort_rknn.InferenceSession(MODEL, provider_options={"device": "virtual:rk3588"})
    else:
        made = session(how)
    with made:
        npu.fault("rknn_run", -1)
        with pytest.raises(RuntimeException, match="RKNN error code -1"):
            made.run(None, {"x": X})


def test_after_disable_fallback_it_is_an_error(npu):
    with session() as made:
        npu.fault("rknn_run", -1)
        made.disable_fallback()
        with pytest.raises(RuntimeException, match="RKNN error code -1"):
            made.run(None, {"x": X})
        made.enable_fallback()
        np.testing.assert_array_equal(made.run(None, {"x": X})[0], on_cpu())
