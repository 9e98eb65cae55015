"""The face of EZ RKNN Async: metadata, run() with its input forms and results, batches."""

from collections import UserDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from support.ez_async_models import CONV, DEVICE, MODELS, X, fresh_npu, make, model, runs

import ort_rknn_ez_async as ez
from ort_rknn_virtual.control import virtual_npu

npu = pytest.fixture(fresh_npu, autouse=True)


def set_events(npu):
    return [e for e in npu.events() if e.kind == "inputs_set"]


# Metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "shape", "says"),
    [
        ("nchw", [1, 3, 32, 32], "NCHW"),
        ("original", [1, 3, 32, 32], "NCHW"),
        ("nchw_software", [1, 3, 32, 32], "NCHW"),
        ("ORIGINAL_software", [1, 3, 32, 32], "NCHW"),
        ("nhwc", [1, 32, 32, 3], "NHWC"),
        ("any", [1, 32, 32, 3], "NHWC"),
    ],
)
def test_the_six_layouts(npu, layout, shape, says):
    with make() as session:
        (expected,) = session.run(None, X)
    with make(layout=layout) as session:
        (x,) = session.get_inputs()
        assert (x.name, x.shape, x.layout, x.strides) == ("x", shape, says, [])
        feed = X if says == "NCHW" else X.transpose(0, 2, 3, 1)
        for _ in range(2):
            assert np.array_equal(session.run(None, {"x": feed})[0], expected)
        with pytest.raises(RuntimeError, match="Input 'x' shape mismatch: expected"):
            session.run(None, X if says == "NHWC" else X.transpose(0, 2, 3, 1))


def test_metadata():
    with make() as session:
        assert session.input_names == ["x"]
        assert session.output_names == ["y"]
        (y,) = session.get_outputs()
        assert (y.name, y.shape, y.type, y.layout) == ("y", [1, 8, 16, 16], "tensor(float)", "NCHW")
        (x,), (y,) = session.get_native_inputs(), session.get_native_outputs()
        assert (x.type, x.shape, x.layout) == ("tensor(float16)", [1, 32, 32, 3], "NHWC")
        assert (y.type, y.shape, y.layout) == ("tensor(float16)", [1, 16, 16, 8], "NHWC")
        assert "made by" in session.get_modelmeta().custom_metadata_map["rknn_custom_string"]
    with make(model("conv_i8")) as session:
        assert session.get_modelmeta().custom_metadata_map == {}
        assert session.get_native_inputs()[0].type == "tensor(int8)"
    with make(model("tokens_i64")) as session:
        assert [(i.type, i.layout) for i in session.get_inputs()] == [("tensor(int64)", "UNDEFINED")]


# run --------------------------------------------------------------------------------------------------------------


def test_the_numbers_are_the_onnx_s():
    expected = onnxruntime.InferenceSession(MODELS / "conv_f16.onnx").run(None, {"x": X})[0]
    with make() as session:
        assert np.abs(session.run(None, X)[0] - expected).max() < 1e-2


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool"]
)
def test_every_dtype_goes_to_the_runtime_as_it_is(npu, dtype):
    """The event log has the size of the buffer that the runtime was given, and its address."""
    x = np.zeros((1, 3, 32, 32), dtype)
    x[0, 0] = 1
    with make() as session:
        (result,) = session.run(None, x)
        (event,) = set_events(npu)
        assert event.nbytes == x.nbytes
        assert event.address == x.ctypes.data
        assert result.dtype == np.float32
        assert np.array_equal(result, session.run(None, x.astype(np.float32))[0])


def test_input_forms():
    a = np.random.default_rng(1).standard_normal((1, 3, 16, 16), dtype=np.float32)
    b = np.ones((1, 16), np.float32)
    with make(model("two_io")) as session:
        expected = session.run(None, {"a": a, "b": b})
        for feed in ({"b": b, "a": a}, [a, b], (a, b), UserDict(a=a, b=b), {"a": a.tolist(), "b": b.tolist()}):
            for got, want in zip(session.run(None, feed), expected, strict=True):
                assert np.array_equal(got, want)
        values = {"a": ez.OrtValue.ortvalue_from_numpy(a), "b": b}
        assert np.array_equal(session.run(None, values)[0], expected[0])
        for feed, text in (
            (a, "Model expects multiple inputs"),
            ([a], "Input list size mismatch"),
            ({"a": a}, "Missing input: b"),
            (None, "input_feed must be a numpy array, list/tuple, or dict"),
            ("ab", "input_feed must be"),
            ({"a": a[0], "b": b}, "Input rank mismatch for 'a'"),
            ({"a": a, "b": b[:, :3]}, "Input 'b' shape mismatch: expected"),
            ({"a": a, "b": np.array(["x"] * 16).reshape(1, 16)}, "Unsupported numpy dtype for RKNN tensor"),
            ({"a": a, "b": b.astype(complex)}, "Unsupported numpy dtype for RKNN tensor"),
        ):
            with pytest.raises(RuntimeError, match=text):
                session.run(None, feed)


def test_outputs_by_name():
    a, b = np.ones((1, 3, 16, 16), np.float32), np.ones((1, 16), np.float32)
    with make(model("two_io")) as session:
        first, second = session.run(None, [a, b])
        got = session.run(["vector", "map", "vector"], [a, b])
        assert [g.shape for g in got] == [second.shape, first.shape, second.shape]
        got[0][:] = 7  # no sharing between outputs that are the same
        assert np.array_equal(got[2], second)
        assert len(session.run([], [a, b])) == 2
        assert len(session.run("map", [a, b])) == 1
        assert all(g.dtype == np.float32 and g.flags.writeable and g.flags.c_contiguous for g in got)
        with pytest.raises(RuntimeError, match="Unknown output name: q"):
            session.run(["q"], [a, b])
        with pytest.raises(RuntimeError, match="output_names must be a sequence or None"):
            session.run(5, [a, b])


def test_integer_outputs_are_float32_too():
    ids = np.arange(16, dtype=np.int64)[None]
    plain = onnxruntime.InferenceSession(MODELS / "tokens_i64.onnx").run(None, {"ids": ids})
    with make(model("tokens_i64")) as session:
        features, label = session.run(None, ids)
        assert label.dtype == np.float32
        assert np.array_equal(label, plain[1])
        assert np.abs(features - plain[0]).max() < 1e-2


def test_schedule_sends_run_n_to_its_core(npu):
    with make(schedule=[0, 2, 2, 1]) as session:
        for _ in range(8):
            session.run(None, X)
    assert [e.core_mask for e in runs(npu)] == [1, 4, 4, 2] * 2


def test_callers_on_many_threads_get_their_own_answers():
    feeds = [np.full(X.shape, k / 16, np.float32) for k in range(16)]
    with make(schedule=[0, 1, 2], threads_per_core=2) as session, ThreadPoolExecutor(8) as pool:
        expected = [session.run(None, f)[0] for f in feeds]
        for got, want in zip(pool.map(lambda f: session.run(None, f)[0], feeds * 5), expected * 5, strict=True):
            assert np.array_equal(got, want)


def test_a_full_queue_times_out(npu):
    npu.run_time_us = 400_000
    with make(schedule=[0], max_queue_size=1, submit_timeout_ms=100) as session, ThreadPoolExecutor(4) as pool:
        results = [pool.submit(session.run, None, X) for _ in range(4)]
        errors = [r.exception() for r in results]
        refused = [e for e in errors if e is not None]
        assert len(refused) == 2  # one runs, one waits
        assert all("run submit timed out: async queue/callback pipeline is saturated" in str(e) for e in refused)


def test_an_error_of_the_runtime_is_named_and_over():
    with make(schedule=[1]) as session:
        virtual_npu("rk3588").fault("rknn_run", -2, times=1)
        with pytest.raises(RuntimeError, match=r"rknn_run failed: RKNN_ERR_TIMEOUT \(-2\).*core 1"):
            session.run(None, X)
        assert session.run(None, X)[0].shape == (1, 8, 16, 16)


def test_weights_of_another_session(npu):
    with make() as first, ez.InferenceSession(CONV, provider_options=DEVICE, use_weight_from=first) as second:
        assert np.array_equal(first.run(None, X)[0], second.run(None, X)[0])
    for wrong, error in ((5, TypeError), (first, RuntimeError)):
        with pytest.raises(error):
            ez.InferenceSession(CONV, provider_options=DEVICE, use_weight_from=wrong)


def test_print_perf(monkeypatch, capfd):
    monkeypatch.setenv("ZTU_EZRKNN_ASYNC_PRINT_PERF", "1")
    with make() as session:
        session.run(None, X)
    line = capfd.readouterr().err
    assert line.startswith("[ztu_ez_rknn_async_perf] ") and "total_us=" in line


# Batches ----------------------------------------------------------------------------------------------------------


class RunOptions:
    def get_run_config_entry(self, key):
        return "on" if key == "ztu_modelrt_dispatch_batch" else ""


def batch_flags():
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("ztu_modelrt_dispatch_batch", "1")
    return [{"ztu_modelrt_dispatch_batch": v} for v in (True, 1, "true", "ON")] + [options, RunOptions()]


@pytest.mark.parametrize("flag", batch_flags(), ids=str)
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "nchw_software"])
def test_dispatch_batch(npu, flag, layout):
    x = np.random.default_rng(2).standard_normal((7, 3, 32, 32), dtype=np.float32)
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if layout == "nhwc" else x
    with make(schedule=[0, 1, 2], layout=layout) as session:
        expected = np.concatenate([session.run(None, x[k : k + 1])[0] for k in range(7)])
        (got,) = session.run(None, x, flag)
        assert np.array_equal(got, expected)
        assert {e.core_mask for e in runs(npu)} == {1, 2, 4}


def test_dispatch_batch_refusals():
    flag = {"ztu_modelrt_dispatch_batch": True}
    with make() as session:
        with pytest.raises(RuntimeError, match="shape mismatch"):
            session.run(None, np.zeros((2, 3, 32, 32), np.float32))
        with pytest.raises(RuntimeError, match="shape mismatch"):
            session.run(None, np.zeros((2, 3, 32, 32), np.float32), {"ztu_modelrt_dispatch_batch": "off"})
        with pytest.raises(RuntimeError, match="positive first dimension"):
            session.run(None, np.zeros((0, 3, 32, 32), np.float32), flag)
        with pytest.raises(RuntimeError, match="Batch input 'x' shape mismatch"):
            session.run(None, np.zeros((2, 3, 32, 31), np.float32), flag)
        with pytest.raises(RuntimeError, match="RunAsync does not support dispatch batch"):
            session.run_async(None, X, print, None, flag)
    with make(model("two_io")) as session, pytest.raises(RuntimeError, match="Batch size mismatch across inputs"):
        session.run(None, [np.zeros((2, 3, 16, 16), np.float32), np.zeros((3, 16), np.float32)], flag)
    with make(model("batch4")) as session, pytest.raises(RuntimeError, match="batch dimension == 1"):
        session.run(None, np.zeros((8, 3, 16, 16), np.float32), flag)
