"""The face of EZ RKNN Async: names, options, input forms, results, asynchronous calls, metadata."""

import io
import shutil
import threading
import time
import warnings
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from ez_async_models import CONV, DEVICE, MODELS, X, fresh_npu, make, model

import ort_rknn
import ort_rknn_ez_async as ez
from ort_rknn_virtual.control import virtual_npu

npu = pytest.fixture(fresh_npu, autouse=True)


def runs(npu):
    return [e for e in npu.events() if e.kind == "run"]


def set_events(npu):
    return [e for e in npu.events() if e.kind == "inputs_set"]


# Names and options ------------------------------------------------------------------------------------------------

NAMES = [
    "InferenceSession",
    "IOBinding",
    "SessionIOBinding",
    "ModelMetadata",
    "NodeArg",
    "OrtValue",
    "RknnProviderOptions",
    "Rknpu2ProviderOptions",
    "Rknpu3ProviderOptions",
    "make_provider_options",
    "make_rknpu2_provider_options",
    "make_rknpu3_provider_options",
    "__version__",
]


def test_the_names_are_there():
    assert all(hasattr(ez, name) for name in NAMES)
    assert sorted(ez.__all__) == sorted(NAMES)
    assert ez.IOBinding is ez.SessionIOBinding
    assert ez.Rknpu2ProviderOptions is ez.RknnProviderOptions
    assert ez.make_rknpu2_provider_options is ez.make_provider_options


def test_the_helpers_give_the_known_defaults():
    assert ez.make_provider_options() == {
        "layout": "original",
        "zero_copy_layout": "nhwc",
        "max_queue_size": 3,
        "threads_per_core": 1,
        "submit_timeout_ms": 10000,
        "sequential_callbacks": True,
        "enable_pacing": False,
        "disable_dup_context": False,
        "custom_op_default_path": False,
    }
    assert ez.make_provider_options(schedule=[0, 1])["schedule"] == [0, 1]
    assert ez.make_rknpu3_provider_options() == {"priority": 0, "run_timeout_ms": 0, "run_core_mask": "auto"}
    with pytest.raises(ValueError, match="'tp_mode' conflicts with 'schedule'; set only one"):
        ez.make_provider_options(schedule=0, tp_mode="all")


def test_all_options_together_and_their_aliases(npu):
    options = ez.make_provider_options(schedule="[0, 1, 2]", threads_per_core=2, max_queue_size=5, layout="nhwc")
    options |= {
        "submit_timeout_ms": " 2000 ",
        "sequential_callbacks": "off",
        "enable_pacing": 0,
        "disable_dup_context": 1,
    }
    options |= {"load_custom_ops_from_default_path": False}
    with ez.InferenceSession(CONV, provider_options={**options, **DEVICE}) as session:
        assert session.get_provider_options() == {"RKNPU2ExecutionProvider": {**options, **DEVICE}}
        assert npu.counters().contexts == 6
        assert npu.counters().models == 6  # disable_dup_context
        session.run(None, X.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"q": 1}, "Unknown provider_options key: q"),
        ({"schedule": []}, "schedule must not be empty"),
        ({"schedule": ""}, "schedule must not be empty"),
        ({"schedule": -1}, "schedule values must be >= 0"),
        ({"schedule": "0,a"}, "'a' is not a core number"),
        ({"schedule": None}, "schedule"),
        ({"schedule": [0], "tp_mode": "all"}, "tp_mode conflicts with schedule; set only one"),
        ({"tp_mode": "1,2"}, "invalid tp_mode"),
        ({"tp_mode": 0}, "tp_mode must be a string"),
        ({"layout": "nhcw"}, "Unknown layout: nhcw"),
        ({"zero_copy_layout": "x"}, "Unknown zero_copy_layout: x"),
        ({"zero_copy_layout": "native"}, "NC1HWC2"),
        ({"max_queue_size": 0}, "max_queue_size must be > 0"),
        ({"max_queue_size": -1}, "max_queue_size must be > 0"),
        ({"threads_per_core": 1.5}, "threads_per_core must be an integer"),
        ({"threads_per_core": 2**32 + 1}, "threads_per_core"),
        ({"sequential_callbacks": "q"}, "sequential_callbacks must be a boolean"),
        ({"custom_op_path": 5}, "custom_op_path must be a path or sequence"),
        ({"custom_op_path": "/nope.so"}, "/nope.so"),
        ({"run_core_mask": "auto"}, "RKNPU3"),
        ({"priority": 1}, "RKNPU3"),
    ],
    ids=str,
)
def test_bad_options_are_runtime_errors(options, text):
    with pytest.raises(RuntimeError, match=text):
        make(**options)


@pytest.mark.parametrize(
    "providers",
    [
        None,
        [],
        "RKNPU2ExecutionProvider",
        ["RKNNExecutionProvider"],
        ["RKNPU2ExecutionProvider", "CPUExecutionProvider"],
        [("RKNPU2ExecutionProvider", {}), "CPUExecutionProvider"],
    ],
    ids=str,
)
def test_providers(providers):
    with ez.InferenceSession(CONV, providers=providers, provider_options=[DEVICE]) as session:
        assert session.get_providers() == ["RKNPU2ExecutionProvider"]


@pytest.mark.parametrize(
    ("providers", "options", "text"),
    [
        (["CUDAExecutionProvider"], None, "Unsupported execution provider: CUDAExecutionProvider"),
        (["RKNPU3ExecutionProvider"], None, "Provider/model mismatch: requested RKNPU3 but the model header is RKNPU2"),
        ([5], None, "provider entry must be a name"),
        ([("RKNPU2ExecutionProvider", {}, {})], None, "provider tuple must be"),
        (["RKNPU2ExecutionProvider", "RKNNExecutionProvider"], None, "exactly one RKNN execution provider"),
        (5, None, "providers must be a string or sequence"),
        ([("RKNPU2ExecutionProvider", {"schedule": 0})], {"schedule": 0}, "both inline and via provider_options"),
        (None, 5, "provider_options must be a dict or a sequence whose first item is a dict"),
        (None, [DEVICE, {"schedule": 0}], "belongs to no RKNN provider"),
        (["RKNPU2ExecutionProvider", "CPUExecutionProvider"], [DEVICE, {"a": 1}], "belongs to no RKNN provider"),
    ],
    ids=str,
)
def test_bad_providers_are_runtime_errors(providers, options, text):
    with pytest.raises(RuntimeError, match=text):
        ez.InferenceSession(CONV, providers=providers, provider_options=options)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("/nope/m.rknn", "Unable to open RKNN model: /nope/m.rknn"),
        (str(MODELS), "RKNN model is too small"),
        (b"", "model data must not be empty"),
        (b"RK", "RKNN model is too small to contain a valid header"),
        (b"/tmp/model.rknn", "Unknown RKNN model magic: 2f 74 6d 70"),
        (b"RKNX" + bytes(60), "RKNPU3"),
        (b"RKNN" + bytes(60), "in memory"),
        (5, "path_or_bytes must be a path-like object or string"),
    ],
)
def test_models_that_are_none(given, text):
    with pytest.raises(RuntimeError, match=text):
        ez.InferenceSession(given, provider_options=DEVICE)


def test_a_model_that_the_runtime_refuses(npu):
    npu.fault("rknn_init", -6)
    with pytest.raises(RuntimeError, match=r"rknn_init failed: RKNN_ERR_MODEL_INVALID \(-6\)"):
        make()


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, io.BytesIO])
def test_models_in_memory(wrap):
    with make(wrap(CONV.read_bytes())) as session:
        assert session.run(None, X)[0].shape == (1, 8, 16, 16)


def test_the_runtime_library_of_the_environment(npu, monkeypatch):
    """Its SoC is the model's, where nothing else tells it."""
    monkeypatch.setenv("ZTU_RKNPU2_RUNTIME_LIBRARY", str(npu.library))
    with ez.InferenceSession(CONV) as session:
        assert session.get_providers() == ["RKNPU2ExecutionProvider"]
        session.run(None, X)
    assert len(runs(npu)) == 1
    monkeypatch.setenv("ZTU_RKNPU2_RUNTIME_LIBRARY", "/nope/librknnrt.so")
    with pytest.warns(ort_rknn.FallbackWarning, match="/nope/librknnrt.so"):
        assert ez.InferenceSession(CONV).get_providers() == ["CPUExecutionProvider"]


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


# run_async --------------------------------------------------------------------------------------------------------


class Collector:
    def __init__(self, wanted):
        self.calls, self.wanted, self.done = [], wanted, threading.Event()

    def __call__(self, results, data, error):
        self.calls.append((results, data, error))
        if len(self.calls) == self.wanted:
            self.done.set()


def test_callbacks_get_results_data_and_an_empty_error():
    with make(schedule=[0, 1, 2]) as session:
        expected = session.run(None, X)[0]
        got = Collector(6)
        assert session.run_async(["y"], {"x": X}, got, "data") is None
        session.run_async(None, X, callback=got)
        for k in range(4):
            session.run_async(output_names=[], input_feed=[X], callback=got, user_data=k, run_options=None)
        assert got.done.wait(10)
        assert [(d, e) for _, d, e in got.calls] == [("data", ""), (None, ""), *((k, "") for k in range(4))]
        assert all(len(r) == 1 and np.array_equal(r[0], expected) for r, _, _ in got.calls)


def test_a_failed_run_gives_none_and_a_text(npu):
    with make(schedule=[0]) as session:
        npu.fault("rknn_outputs_get", -4, times=1)
        got = Collector(2)
        session.run_async(None, X, got, 1)
        session.run_async(None, X, got, 2)
        assert got.done.wait(10)
        assert got.calls[0][:2] == (None, 1)
        assert "rknn_outputs_get failed: RKNN_ERR_MALLOC_FAIL (-4)" in got.calls[0][2]
        assert got.calls[1][2] == ""


@pytest.mark.parametrize("sequential", [True, False])
def test_the_order_of_callbacks(npu, sequential):
    npu.run_time_us = 2000
    npu.core_factor(0, 30)
    with make(schedule=[0, 1, 2], sequential_callbacks=sequential, max_queue_size=20) as session:
        got = Collector(9)
        for k in range(9):
            session.run_async(None, X, got, k)
        assert got.done.wait(10)
        order = [d for _, d, _ in got.calls]
        assert sorted(order) == list(range(9))
        assert (order == list(range(9))) == sequential


def test_the_arrays_may_be_changed_at_once(npu):
    npu.run_time_us = 20_000
    with make(schedule=[0]) as session:
        expected = session.run(None, X)[0]
        got, x = Collector(4), X.copy()
        for _ in range(4):
            x[:] = X
            session.run_async(None, x, got)
            x[:] = 0
        assert got.done.wait(10)
        assert all(np.array_equal(r[0], expected) for r, _, _ in got.calls)
        x[:] = X
        assert session.run_pipeline(x, depth=1) is None
        x[:] = 0
        assert np.array_equal(session.flush()[0][0], expected)


def test_a_full_queue_of_asynchronous_calls_times_out(npu):
    npu.run_time_us = 300_000
    with make(schedule=[0], max_queue_size=1, submit_timeout_ms=50) as session:
        session.run_async(None, X, print_nothing)
        session.run_async(None, X, print_nothing)
        with pytest.raises(RuntimeError, match="RunAsync submit timed out"):
            session.run_async(None, X, print_nothing)


def print_nothing(results, data, error):
    pass


def test_arguments_of_run_async_are_checked_at_once():
    with make() as session:
        with pytest.raises(TypeError, match="callback"):
            session.run_async(None, X, None)
        with pytest.raises(RuntimeError, match="Unknown output name: q"):
            session.run_async(["q"], X, print_nothing)
        with pytest.raises(RuntimeError, match="Input rank mismatch"):
            session.run_async(None, X[0], print_nothing)


# run_pipeline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3, 7])
def test_the_pipeline_gives_depth_nones_then_results_in_order(depth):
    feeds = [np.full(X.shape, k / 8, np.float32) for k in range(12)]
    with make(schedule=[0, 1, 2], threads_per_core=2) as session:
        expected = [session.run(None, f)[0] for f in feeds]
        got = [session.run_pipeline(f, depth=depth) for f in feeds]
        assert [g is None for g in got] == [k < depth for k in range(12)]
        rest = session.flush()
        assert len(rest) == depth
        for result, want in zip([g for g in got if g is not None] + rest, expected, strict=True):
            assert np.array_equal(result[0], want)
        assert session.flush() == []


def test_the_pipeline_begins_anew_on_reset_and_on_another_depth():
    with make() as session:
        assert [session.run_pipeline(X, 2) is None for _ in range(3)] == [True, True, False]
        assert [session.run_pipeline(X, 2, True) is None] + [session.run_pipeline(X, 2) is None for _ in range(2)] == [
            True,
            True,
            False,
        ]
        assert [session.run_pipeline(X, 1) is None for _ in range(2)] == [True, False]
        with pytest.raises(RuntimeError, match="pipeline depth must be > 0"):
            session.run_pipeline(X, 0)
        with pytest.raises(TypeError, match="depth"):
            session.run_pipeline(X, -1)


def test_a_failed_frame_raises_on_the_call_that_would_return_it(npu):
    with make(schedule=[0]) as session:
        npu.fault("rknn_run", -1, times=1)
        assert session.run_pipeline(X, 2) is None
        assert session.run_pipeline(X, 2) is None
        with pytest.raises(RuntimeError, match="RKNN_ERR_FAIL"):
            session.run_pipeline(X, 2)
        assert session.run_pipeline(X, 2) is not None


# Weights, the CPU, the end ----------------------------------------------------------------------------------------


def test_weights_of_another_session(npu):
    with make() as first, ez.InferenceSession(CONV, provider_options=DEVICE, use_weight_from=first) as second:
        assert np.array_equal(first.run(None, X)[0], second.run(None, X)[0])
    for wrong, error in ((5, TypeError), (first, RuntimeError)):
        with pytest.raises(error):
            ez.InferenceSession(CONV, provider_options=DEVICE, use_weight_from=wrong)


@pytest.fixture
def beside(tmp_path):
    for name in ("conv_f16", "image_u8", "conv_i8"):
        for end in (".onnx", ".rk3588.rknn"):
            shutil.copy(MODELS / (name + end), tmp_path)
    return tmp_path


def test_without_an_npu_the_onnx_runs_on_the_cpu_and_a_warning_says_so(beside):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session = ez.InferenceSession(
            beside / "conv_f16.rk3588.rknn", provider_options=ez.make_provider_options(schedule=0)
        )
    assert [w.category for w in caught] == [ort_rknn.FallbackWarning]
    assert caught[0].filename == __file__
    assert session.get_providers() == ["CPUExecutionProvider"]
    with make(beside / "conv_f16.rk3588.rknn") as on_npu:
        for ours, theirs in zip(
            session.get_inputs() + session.get_outputs() + session.get_native_inputs() + session.get_native_outputs(),
            on_npu.get_inputs() + on_npu.get_outputs() + on_npu.get_native_inputs() + on_npu.get_native_outputs(),
            strict=True,
        ):
            assert repr(ours) == repr(theirs)
        assert session.get_modelmeta() == on_npu.get_modelmeta()
        assert np.abs(session.run(None, X)[0] - on_npu.run(None, X)[0]).max() < 1e-2
        many = np.concatenate([X, X])
        flag = {"ztu_modelrt_dispatch_batch": True}
        assert np.abs(session.run(None, many, flag)[0] - on_npu.run(None, many, flag)[0]).max() < 1e-2
        for text, feed in (("shape mismatch", X[:, :2]), ("rank mismatch", X[0])):
            for one in (session, on_npu):
                with pytest.raises(RuntimeError, match=text):
                    one.run(None, feed)
    got = Collector(1)
    session.run_async(None, X.astype(np.float64), got, "d")
    assert got.done.wait(10)
    assert got.calls[0][1:] == ("d", "")
    assert session.run_pipeline(X, 1) is None
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(None, X)


@pytest.mark.filterwarnings("ignore::ort_rknn.FallbackWarning")
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_on_the_cpu_are_normalised_as_the_compiled_model_does(beside, layout):
    pixels = np.load(MODELS / "image_u8.rk3588.golden.npz")["input/image"]  # NHWC
    pixels = pixels if layout == "nhwc" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    path = beside / "image_u8.rk3588.rknn"
    with make(path, layout=layout) as on_npu, ez.InferenceSession(path, provider_options={"layout": layout}) as on_cpu:
        for feed in (pixels, pixels.astype(np.float32)):
            assert np.abs(on_cpu.run(None, feed)[0] - on_npu.run(None, feed)[0]).max() < 0.1


def test_no_npu_and_no_onnx_is_an_error(tmp_path):
    shutil.copy(CONV, tmp_path / "only.rknn")
    with pytest.raises(RuntimeError, match=r"looked for .*only\.onnx"):
        ez.InferenceSession(tmp_path / "only.rknn")


def test_an_onnx_runs_its_twin(npu, beside):
    with make(beside / "conv_f16.onnx") as session:
        assert session.get_providers() == ["RKNPU2ExecutionProvider"]
        session.run(None, X)
    assert len(runs(npu)) == 1
    with ez.InferenceSession(beside / "conv_f16.onnx", providers=["CPUExecutionProvider"]) as session:
        assert session.get_providers() == ["CPUExecutionProvider"]


def test_enable_fallback_0_insists(beside):
    with pytest.raises(RuntimeError, match="no fallback"):
        ez.InferenceSession(beside / "conv_f16.rk3588.rknn", enable_fallback=0)


def test_deleting_waits_for_everything_submitted(npu):
    npu.run_time_us = 30_000
    session = make(schedule=[0, 1])
    got = Collector(4)
    for k in range(4):
        session.run_async(None, X, got, k)
    del session
    assert [d for _, d, _ in got.calls] == [0, 1, 2, 3]
    assert npu.counters().contexts == 0


def test_close_is_for_good():
    session = make()
    session.close()
    session.close()
    for call in (
        lambda: session.run(None, X),
        lambda: session.run_async(None, X, print_nothing),
        lambda: session.run_pipeline(X),
    ):
        with pytest.raises(RuntimeError, match="the session was closed"):
            call()
    assert session.get_inputs()[0].name == "x"


def test_print_perf(monkeypatch, capfd):
    monkeypatch.setenv("ZTU_EZRKNN_ASYNC_PRINT_PERF", "1")
    with make() as session:
        session.run(None, X)
    line = capfd.readouterr().err
    assert line.startswith("[ztu_ez_rknn_async_perf] ") and "total_us=" in line


@pytest.mark.wall_clock
def test_pacing_sleeps(npu):
    npu.run_time_us = 20_000
    with make(schedule=[0], enable_pacing=True) as session:
        session.run(None, X)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(5):
            session.run(None, X)
        assert time.perf_counter() - wall > 0.08
        assert time.process_time() - cpu < 0.05


def test_the_pipeline_is_paced_too(npu):
    npu.run_time_us = 30_000
    with make(schedule=[0, 1, 2], enable_pacing=True, max_queue_size=20) as session:
        session.run(None, X)
        before = time.perf_counter()
        for _ in range(9):
            assert session.run_pipeline(X, depth=9) is None
        # One per third of a run: without pacing there is room for all of them at once.
        assert time.perf_counter() - before >= 8 * 0.010
        assert len(session.flush()) == 9


def test_pacing_gives_the_pipeline_up_in_time(npu):
    npu.run_time_us = 200_000
    with make(schedule=[0], enable_pacing=True, max_queue_size=20, submit_timeout_ms=50) as session:
        session.run(None, X)
        session.run_pipeline(X)
        with pytest.raises(RuntimeError, match="enable_pacing: the next place is free in"):
            session.run_pipeline(X)
        assert len(session.flush()) == 1
