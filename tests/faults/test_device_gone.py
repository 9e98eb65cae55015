"""The device disappears: a session that has its ONNX and may fall back continues on the CPU, and returns to the
device."""

import asyncio
import gc
import logging
import os
import time

import numpy as np
import onnxruntime
import pytest
from support.models_in_parts import their_session, three_steps, write_in_parts
from support.virtual_sessions import MODELS, X, session, virtual_rk3588

import ort_rknn as ort

npu = pytest.fixture(virtual_rk3588)
OPTIONS = [{}, {"schedule": "1"}, {"schedule": "0,1,2"}, {"schedule": "auto"}, {"tp_mode": "0,1,2"}]


def on_the_cpu(model, feed):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def runs(npu):
    return [event for event in npu.events() if event.kind == "run"]


def comes_back(npu, run):
    before, end = sum(npu.counters().runs), time.monotonic() + 5
    while sum(npu.counters().runs) < before + 5:
        assert time.monotonic() < end, "the device is not used again"
        run()
        time.sleep(0.001)


@pytest.mark.parametrize("options", OPTIONS)
def test_it_goes_on_and_returns(npu, caplog, options):
    with session(**options) as made, caplog.at_level(logging.WARNING, "ort_rknn"):
        on_npu = made.run(None, {"x": X})[0]
        npu.fault("rknn_run", -3)
        results = [made.run(None, {"x": X})[0] for _ in range(100)]
        for result in results:
            np.testing.assert_array_equal(result, on_the_cpu(MODELS / "conv_f16.onnx", {"x": X}))
        assert not np.array_equal(on_npu, results[0])  # float16 and float32: each is the one that it says
        assert len(runs(npu)) <= 12
        assert "the device is gone, and runs go to the CPU: 100 so far" in made.explain()
        assert made.stats().models[0].fallback_runs == 100
        npu.clear_faults()
        comes_back(npu, lambda: made.run(None, {"x": X}))
        np.testing.assert_array_equal(made.run(None, {"x": X})[0], on_npu)
        assert "the device was gone" in made.explain()
        told = [r.message for r in caplog.records if "device is" in r.message]
        assert ["the device is gone" in told[0], "the device is back" in told[1]] == [True, True]
        assert len(told) == 2
    assert npu.counters().misuses == 0


@pytest.mark.parametrize("way", ["submit", "map", "run_awaitable", "batch", "bytes", "nhwc", "binding"])
def test_ways_to_call(npu, way, tmp_path):
    model, feed, given = MODELS / "conv_f16.onnx", {"x": X}, {"schedule": "0,1,2"}
    if way == "batch":
        model, given = MODELS / "free_batch.onnx", {"schedule": "0,1,2", "split_batch": True}
    if way == "nhwc":
        feed, given = {"x": np.ascontiguousarray(X.transpose(0, 2, 3, 1))}, {"layout": "nhwc"}
    with session(model.read_bytes() if way == "bytes" else model, **given) as made:
        if way == "batch":
            one = made.get_inputs()[0]
            feed = {one.name: np.random.default_rng(1).standard_normal((7, *one.shape[1:]), dtype=np.float32)}
        right = on_the_cpu(model, {"x": X} if way == "nhwc" else feed)
        npu.fault("rknn_run", -3)
        if way == "submit":
            got = [f.result(timeout=60)[0] for f in [made.submit(None, feed) for _ in range(20)]]
        elif way == "map":
            got = [result[0] for result in made.map([feed] * 20)]
        elif way == "run_awaitable":

            async def together():
                return await asyncio.gather(*[made.run_awaitable(None, feed) for _ in range(20)])

            got = [result[0] for result in asyncio.run(together())]
        elif way == "binding":
            binding = made.io_binding()
            binding.bind_cpu_input("x", X)
            binding.bind_output(made.get_outputs()[0].name)
            made.run_with_iobinding(binding)
            got = [binding.copy_outputs_to_cpu()[0]]
        else:
            got = [made.run(None, feed)[0] for _ in range(20)]
        for result in got:
            np.testing.assert_allclose(result, right, rtol=1e-5, atol=1e-6)


def test_strict_sessions_raise(npu, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    with session() as made:
        npu.fault("rknn_run", -3)
        for _ in range(3):
            with pytest.raises(
                ort.capi.onnxruntime_pybind11_state.RuntimeException, match=r"DEVICE_UNAVAILABLE \(-3\)"
            ):
                made.run(None, {"x": X})


def test_the_user_may_switch_it_off_and_on(npu):
    with session() as made:
        npu.fault("rknn_run", -3)
        made.disable_fallback()
        with pytest.raises(Exception, match="DEVICE_UNAVAILABLE"):
            made.run(None, {"x": X})
        made.enable_fallback()
        made.run(None, {"x": X})
    model = MODELS / "conv_f16.onnx"
    device = {"device": "virtual:rk3588"}
    made = ort.InferenceSession(model, provider_options=device, enable_fallback=0)
    with made, pytest.raises(Exception, match="DEVICE_UNAVAILABLE"):
        made.run(None, {"x": X})


@pytest.mark.parametrize("code", [-1, -2, -4])
def test_other_codes_are_errors(npu, code):
    with session() as made:
        npu.fault("rknn_run", code)
        with pytest.raises(Exception, match=rf"\({code}\)"):
            made.run(None, {"x": X})


def test_without_the_onnx_it_is_an_error(npu, tmp_path):
    path = tmp_path / "conv_f16.rk3588.rknn"
    path.write_bytes((MODELS / path.name).read_bytes())
    with session(path) as made:
        npu.fault("rknn_run", -3)
        with pytest.raises(Exception, match="DEVICE_UNAVAILABLE"):
            made.run(None, {"x": X})


@pytest.mark.parametrize("kept", [True, False])
def test_a_compiled_model_was_given_and_its_onnx_is_beside_it(npu, tmp_path, descriptors, kept):
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
        (tmp_path / name).write_bytes((MODELS / name).read_bytes())
    before = descriptors()
    with session(tmp_path / "conv_f16.rk3588.rknn") as made:
        on_npu = made.run(None, {"x": X})[0]
        assert "no CPU where the device is gone" not in made.explain()
        if not kept:
            (tmp_path / "conv_f16.onnx").unlink()
        npu.fault("rknn_run", -3)
        right = on_the_cpu(MODELS / "conv_f16.onnx", {"x": X})
        for _ in range(5):
            np.testing.assert_array_equal(made.run(None, {"x": X})[0], right)
        npu.clear_faults()
        comes_back(npu, lambda: made.run(None, {"x": X}))
        np.testing.assert_array_equal(made.run(None, {"x": X})[0], on_npu)
    assert descriptors() == before


def test_what_only_a_compiled_model_gives_is_an_error(npu):
    with session(output_dtype="native") as made:
        npu.fault("rknn_run", -3)
        with pytest.raises(Exception, match="DEVICE_UNAVAILABLE"):
            made.run(None, {"x": X})


def test_an_onnx_that_was_changed_meanwhile_is_not_used(npu, tmp_path, caplog):
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
        (tmp_path / name).write_bytes((MODELS / name).read_bytes())
    path = tmp_path / "conv_f16.onnx"
    with session(path) as made, caplog.at_level(logging.WARNING, "ort_rknn"):
        with open(path, "r+b") as file:
            file.write(b"\0\0\0")
        npu.fault("rknn_run", -3)
        with pytest.raises(Exception, match="DEVICE_UNAVAILABLE"):
            made.run(None, {"x": X})
        assert "the ONNX does not run on the CPU" in caplog.text


def test_a_deleted_onnx_is_still_held(npu, tmp_path):
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
        (tmp_path / name).write_bytes((MODELS / name).read_bytes())
    path = tmp_path / "conv_f16.onnx"
    with session(path) as made:
        path.unlink()
        npu.fault("rknn_run", -3)
        right = on_the_cpu(MODELS / "conv_f16.onnx", {"x": X})
        np.testing.assert_array_equal(made.run(None, {"x": X})[0], right)


PARTS_X = np.random.default_rng(3).standard_normal((1, 3, 8, 8), dtype=np.float32)


@pytest.fixture
def parts(tmp_path):
    """The ONNX of a model in parts."""
    return write_in_parts(tmp_path, three_steps())


def goes_on_and_returns(npu, run, right):
    """The results of ``run`` with the device, without it, and with it again."""
    on_npu = run()
    npu.fault("rknn_run", -3)
    for _ in range(20):
        for one, other in zip(run(), right):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    npu.clear_faults()
    end = time.monotonic() + 30
    while not all(np.array_equal(one, other) for one, other in zip(run(), on_npu)):  # each part tries by itself
        assert time.monotonic() < end, "the device is not used again"
        time.sleep(0.01)


def whole_on_the_cpu(model, feed):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.parametrize("given", ["the ONNX", "the model in parts"])
@pytest.mark.parametrize("schedule", [None, "0,1,2"])
def test_a_model_in_parts(npu, parts, given, schedule):
    model = parts if given == "the ONNX" else parts.with_name("m.rk3588_ctx.onnx")
    right = whole_on_the_cpu(parts, {"x": PARTS_X})
    with session(model, **({"schedule": schedule} if schedule else {})) as made:
        goes_on_and_returns(npu, lambda: made.run(None, {"x": PARTS_X}), right)
        assert made.explain().count("the device was gone") == 2
        assert len([m for m in made.stats().models if m.fallback_runs]) == 2


def test_a_model_in_parts_whose_onnx_is_gone(npu, parts):
    right = whole_on_the_cpu(parts, {"x": PARTS_X})
    with session(parts) as made:
        parts.unlink()
        npu.fault("rknn_run", -3)
        for one, other in zip(made.run(None, {"x": PARTS_X}), right):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_model_in_parts_whose_onnx_was_changed(npu, parts):
    with session(parts) as made:
        with open(parts, "r+b") as file:
            file.write(b"\0\0\0")
        npu.fault("rknn_run", -3)
        with pytest.raises(Exception, match="DEVICE_UNAVAILABLE"):
            made.run(None, {"x": PARTS_X})


def test_a_model_in_parts_without_its_onnx(npu, parts):
    """explain() says for each part what is missing."""
    parts.unlink()
    with session(parts.with_name("m.rk3588_ctx.onnx")) as made:
        assert made.explain().count("no CPU where the device is gone") == 2
        npu.fault("rknn_run", -3)
        with pytest.raises(Exception, match="DEVICE_UNAVAILABLE"):
            made.run(None, {"x": PARTS_X})


def test_a_strict_model_in_parts(npu, parts, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    with session(parts) as made:
        npu.fault("rknn_run", -3)
        with pytest.raises(Exception, match="DEVICE_UNAVAILABLE"):
            made.run(None, {"x": PARTS_X})


def test_a_model_in_parts_that_may_not_fall_back(npu, parts):
    with session(parts) as made:
        made.disable_fallback()
        npu.fault("rknn_run", -3)
        with pytest.raises(Exception, match="DEVICE_UNAVAILABLE"):
            made.run(None, {"x": PARTS_X})
        made.enable_fallback()
        made.run(None, {"x": PARTS_X})


@pytest.mark.parametrize("kind", ["a twin", "a model in parts"])
def test_onnxruntimes_own_class(npu, parts, kind):
    options = {"device": "virtual:rk3588"}
    ort.register(**options)
    if kind == "a twin":
        run, feed, onnx = their_session(MODELS / "conv_f16.onnx", None, options).run, {"x": X}, MODELS / "conv_f16.onnx"
    else:
        model = parts.with_name("m.rk3588_ctx.onnx")
        run, feed, onnx = their_session(model, None, options).run, {"x": PARTS_X}, parts
    goes_on_and_returns(npu, lambda: run(None, feed), whole_on_the_cpu(onnx, feed))


def test_nodes_release_what_they_hold(npu, parts):
    def descriptors():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    with session(parts) as made:
        made.run(None, {"x": PARTS_X})
    before = descriptors()
    for _ in range(5):
        with session(parts) as made:
            npu.fault("rknn_run", -3)
            made.run(None, {"x": PARTS_X})
            npu.clear_faults()
    del made
    assert descriptors() <= before
