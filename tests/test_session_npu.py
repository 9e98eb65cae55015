"""A session on the (virtual) NPU is onnxruntime's own: what programs rely on holds there too."""

import gc
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

import ort_rknn as ort
from ort_rknn_virtual.control import virtual_npu

MODELS = Path(__file__).parent / "models"
VIRTUAL = {"device": "virtual:rk3588"}
X = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)


@pytest.fixture
def npu():
    device = virtual_npu("rk3588")
    device.reset()
    yield device
    if device.counters().contexts:
        gc.collect()  # an exception's traceback may hold a session
    counters = device.counters()
    device.reset()
    assert counters.contexts == 0, counters
    assert counters.models == 0, counters


@pytest.fixture
def folder(tmp_path):
    """A folder with a model and its twin, to do things to."""
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
        shutil.copy(MODELS / name, tmp_path / name)
    return tmp_path


def session(model=MODELS / "conv_f16.onnx", **options):
    return ort.InferenceSession(model, provider_options={**VIRTUAL, **options})


# Selecting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"providers": [("RKNNExecutionProvider", VIRTUAL)]},
        {"providers": [("RKNNExecutionProvider", VIRTUAL), "CPUExecutionProvider"]},
        {"providers": ["RKNNExecutionProvider"], "provider_options": [VIRTUAL]},
        {"providers": ["RKNNExecutionProvider", "CPUExecutionProvider"], "provider_options": [VIRTUAL, {}]},
        {"providers": ["RKNPU2ExecutionProvider"], "provider_options": VIRTUAL},
        {"providers": ["RknnExecutionProvider", "CPUExecutionProvider"], "provider_options": [VIRTUAL]},
        {"providers": "RKNNExecutionProvider", "provider_options": VIRTUAL},
        {"provider_options": VIRTUAL},
        {"provider_options": [VIRTUAL]},
        {"providers": [], "provider_options": VIRTUAL},
    ],
    ids=str,
)
def test_providers_in_every_spelling(npu, arguments):
    with ort.InferenceSession(MODELS / "conv_f16.onnx", **arguments) as made:
        assert made.get_providers() == ["RKNNExecutionProvider", "CPUExecutionProvider"]
        options = made.get_provider_options()
        assert options["RKNNExecutionProvider"]["device"] == "virtual:rk3588"
        assert options["RKNNExecutionProvider"]["tp_mode"] == "auto"
        assert options["CPUExecutionProvider"] == {}
        assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)


def test_the_order_of_providers_is_law_and_the_cpu_first_takes_every_node(npu, monkeypatch):
    """As in onnxruntime. It may be a mistake, so it is a warning. A compiled model is for the NPU all the same."""
    providers = ["CPUExecutionProvider", ("RKNNExecutionProvider", VIRTUAL)]
    with pytest.warns(
        ort.FallbackWarning, match="CPUExecutionProvider was named before .* Name the NPU's provider first"
    ):
        made = ort.InferenceSession(MODELS / "conv_f16.onnx", providers=providers)
    assert made.get_providers() == ["CPUExecutionProvider"]
    with ort.InferenceSession(MODELS / "conv_f16.rk3588.rknn", providers=providers) as made:
        assert made.get_providers()[0] == "RKNNExecutionProvider"
    monkeypatch.setenv("ORT_RKNN_POLICY", "prefer")
    with ort.InferenceSession(MODELS / "conv_f16.onnx", providers=providers) as made:
        assert made.get_providers() == ["RKNNExecutionProvider", "CPUExecutionProvider"]
        assert "RKNNExecutionProvider comes first, though CPUExecutionProvider was named before it" in made.explain()


def test_the_environment_selects_it(npu, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    assert ort.get_available_providers()[0] == "RKNNExecutionProvider"
    assert [d.name for d in ort.devices()] == ["virtual:rk3588"]
    with ort.InferenceSession(MODELS / "conv_f16.onnx") as made:
        assert made.get_providers()[0] == "RKNNExecutionProvider"
    with ort.InferenceSession(MODELS / "conv_f16.onnx", providers=["CPUExecutionProvider"]) as made:
        assert made.get_providers() == ["CPUExecutionProvider"]
    monkeypatch.setenv("ORT_RKNN_POLICY", "prefer")
    with ort.InferenceSession(MODELS / "conv_f16.onnx", providers=["CPUExecutionProvider"]) as made:
        assert made.get_providers()[0] == "RKNNExecutionProvider"


def test_option_values_as_objects_and_as_text(npu):
    for schedule in ([0, 1, 2], "0,1,2", "[0, 1, 2]", (0, 1, 2), range(3), np.arange(3)):
        with session(schedule=schedule, threads_per_core="2") as made:
            options = made.get_provider_options()["RKNNExecutionProvider"]
            assert (options["schedule"], options["threads_per_core"]) == ("0,1,2", "2")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shedule": "0"}, "unknown provider option 'shedule'.*schedule, threads_per_core, tp_mode"),
        ({"schedule": "0,a"}, "'a' is not a core number"),
        ({"schedule": "0,3"}, "names core 3, but rk3588 has cores 0, 1, 2 only"),
        ({"schedule": "0", "tp_mode": "all"}, "exclude each other"),
        ({"tp_mode": "1,2"}, "one of 'auto', 'all', '0', '1', '2', '0,1', '0,1,2'"),
        ({"threads_per_core": 0}, "a whole number from 1"),
        ({"layout": "nhcw"}, "one of 'nchw'"),
        ({"layout": {"z": "nhwc"}}, "names an input 'z'; the model has x"),
        ({"input_dtype": "float8"}, "one of 'float32'"),
        ({"adapter": "nope"}, "installed are"),
        ({"run_core_mask": "auto"}, "not honoured.*RKNPU3"),
    ],
)
def test_bad_options_are_errors_that_say_what_is_accepted(npu, options, text):
    with pytest.raises(InvalidArgument, match=text) as caught:
        session(**options)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ort.OptionError)


def test_cores_that_the_soc_lacks(npu):
    with pytest.raises(ort.OptionError, match="tp_mode='0,1,2' names a core that rk3576 lacks: it has cores 0, 1"):
        session(device="virtual:rk3576", tp_mode="0,1,2", rknn_model=MODELS / "conv_f16.rk3576.rknn")
    with pytest.raises(ort.OptionError, match="rk3566 has core 0 only"):
        session(device="virtual:rk3566", schedule=[0, 1], rknn_model=MODELS / "conv_f16.rk3566.rknn")
    for mode in ("auto", "all", "0"):
        with session(device="virtual:rk3566", tp_mode=mode, rknn_model=MODELS / "conv_f16.rk3566.rknn") as made:
            made.run(None, {"x": X})


# Dispatch ---------------------------------------------------------------------------------------------------------


def cores_of_runs(npu):
    return [event.core_mask.bit_length() - 1 for event in npu.events() if event.kind == "run"]


def test_run_n_goes_to_core_schedule_n(npu):
    with session(schedule=[0, 2, 2, 1]) as made:
        for _ in range(10):
            made.run(None, {"x": X})
        assert cores_of_runs(npu) == [0, 2, 2, 1, 0, 2, 2, 1, 0, 2]


def test_tensor_parallel_masks(npu):
    for mode, mask in (("0", 1), ("1", 2), ("2", 4), ("0,1", 3), ("0,1,2", 7), ("all", 7)):
        with session(tp_mode=mode) as made:
            npu.reset()
            made.run(None, {"x": X})
            assert [e.core_mask for e in npu.events() if e.kind == "run"] == [mask], mode


def test_contexts_share_the_weights(npu):
    with session(schedule=[0, 1, 2], threads_per_core=4):
        many = npu.counters()
    with session(schedule=[0]):
        one = npu.counters()
    assert many.contexts == 12
    assert one.contexts == 1
    assert many.models == one.models == 1
    with session(schedule=[0, 1], disable_dup_context=True) as made:
        assert npu.counters().models == 2
        first, second = (made.run(None, {"x": X})[0] for _ in range(2))
        assert np.array_equal(first, second)


def test_callers_on_three_threads_get_their_own_answers(npu):
    plain = onnxruntime.InferenceSession(MODELS / "conv_f16.onnx")
    feeds = [np.full((1, 3, 32, 32), k / 16, np.float32) for k in range(16)]
    expected = [plain.run(None, {"x": x})[0] for x in feeds]
    with session(schedule=[0, 1, 2], threads_per_core=2) as made, ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(lambda x: made.run(None, {"x": x})[0], feeds), expected, strict=True):
                assert np.abs(got - want).max() < 1e-2


# onnxruntime's own behaviour --------------------------------------------------------------------------------------


def test_run_is_onnxruntime_s_own_function():
    names = [n for n in vars(onnxruntime.InferenceSession) if n.startswith("run")]
    names += [n for n in dir(onnxruntime.InferenceSession) if n.startswith(("run", "get_", "io_binding", "end_"))]
    for name in names:
        assert getattr(ort.InferenceSession, name) is getattr(onnxruntime.InferenceSession, name), name


def test_validation_is_onnxruntime_s(npu):
    plain = onnxruntime.InferenceSession(MODELS / "conv_f16.onnx")
    feeds = [
        {},
        {"x": X.astype(np.float64)},
        {"x": X[0]},
        {"x": X[:, :2]},
        {"x": X, "z": X},
    ]
    with session() as made:
        for feed in feeds:
            errors = []
            for one in (plain, made):
                with pytest.raises(Exception) as caught:
                    one.run(None, feed)
                errors.append((type(caught.value), str(caught.value)))
            assert errors[0] == errors[1]
        with pytest.raises(InvalidArgument, match="Invalid output name"):
            made.run(["nope"], {"x": X})
        assert np.array_equal(made.run(["y", "y"], {"x": X})[0], made.run(None, {"x": X})[0])


def test_run_async_on_two_cores_needs_no_spinning(npu):
    done, results = threading.Event(), []

    def callback(outputs, data, error):
        results.append((outputs, data, error))
        done.set()

    with session(schedule=[0, 1]) as made:
        assert made.get_session_options().intra_op_num_threads == 5
        assert made.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"
        made.run_async(None, {"x": X}, callback, "data")
        assert done.wait(10)
        (outputs, data, error), expected = results[0], made.run(None, {"x": X})
        assert (data, error) == ("data", "")
        assert np.array_equal(outputs[0], expected[0])


def test_io_binding(npu):
    with session() as made:
        expected = made.run(None, {"x": X})[0]
        binding = made.io_binding()
        binding.bind_cpu_input("x", X)
        binding.bind_output("y")
        made.run_with_iobinding(binding)
        assert np.array_equal(binding.copy_outputs_to_cpu()[0], expected)
        into = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 8, 16, 16), np.float32))
        binding.bind_ortvalue_output("y", into)
        made.run_with_iobinding(binding)
        assert np.array_equal(into.numpy(), expected)
        values = made.run_with_ort_values(["y"], {"x": ort.OrtValue.ortvalue_from_numpy(X)})
        assert np.array_equal(values[0].numpy(), expected)


def test_results_are_writable_and_do_not_alias(npu):
    with session() as made:
        first = made.run(None, {"x": X})[0]
        copy = first.copy()
        first[:] = 0
        second = made.run(None, {"x": X})[0]
        assert np.array_equal(second, copy)
        assert second.flags.c_contiguous and second.flags.writeable


def test_inputs_in_any_layout(npu):
    with session() as made:
        expected = made.run(None, {"x": X})[0]
        readonly = X.copy()
        readonly.flags.writeable = False
        for given in (np.asfortranarray(X), readonly, X.tolist(), X[:, :, ::-1][:, :, ::-1]):
            assert np.array_equal(made.run(None, {"x": given})[0], expected)


def test_the_session_options_of_the_user_stay_as_they_are(npu, tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    for _ in range(2):
        with ort.InferenceSession(MODELS / "conv_f16.onnx", options, provider_options=VIRTUAL) as made:
            assert "optimized_model_filepath" in made.explain()
            assert made.get_session_options().log_severity_level == 3
    assert options.intra_op_num_threads == 0
    assert options.optimized_model_filepath == str(tmp_path / "optimised.onnx")
    assert not options.has_providers()
    with pytest.raises(RuntimeError):
        options.get_session_config_entry("session.intra_op.allow_spinning")
    assert not (tmp_path / "optimised.onnx").exists()


@pytest.mark.parametrize("as_bytes", [False, True])
def test_asking_for_a_context_model_is_no_error(npu, folder, as_bytes):
    """As on the CPU, where onnxruntime writes none either."""
    options = ort.SessionOptions()
    options.add_session_config_entry("ep.context_enable", "1")
    before = sorted(folder.iterdir())
    model = (folder / "conv_f16.onnx").read_bytes() if as_bytes else folder / "conv_f16.onnx"
    with ort.InferenceSession(model, options, provider_options=VIRTUAL) as made:
        assert made.get_providers()[0] == "RKNNExecutionProvider"
        assert "note:      ep.context_enable is not heeded" in made.explain()
    assert options.get_session_config_entry("ep.context_enable") == "1"
    assert sorted(folder.iterdir()) == before


def test_threads_that_the_user_set_are_kept(npu):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    with ort.InferenceSession(MODELS / "conv_f16.onnx", options, provider_options=VIRTUAL) as made:
        assert made.get_session_options().intra_op_num_threads == 2
        assert made.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "1"


def test_the_model_path_is_the_user_s(npu):
    with session(str(MODELS / "conv_f16.onnx")) as made:
        assert made._model_path == str(MODELS / "conv_f16.onnx")
        assert made._model_bytes is None
    data = (MODELS / "conv_f16.rk3588.rknn").read_bytes()
    with session(data) as made:
        assert made._model_path is None
        assert made._model_bytes == data


def test_profiling_gives_one_file_with_our_kernel(npu, tmp_path):
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    with ort.InferenceSession(MODELS / "conv_f16.onnx", options, provider_options=VIRTUAL) as made:
        made.run(None, {"x": X})
        file = Path(made.end_profiling())
    assert "RKNNExecutionProvider" in file.read_text()
    assert list(tmp_path.iterdir()) == [file]


def test_models_in_memory(npu):
    onnx, rknn = ((MODELS / n).read_bytes() for n in ("conv_f16.onnx", "conv_f16.rk3588.rknn"))
    expected = onnxruntime.InferenceSession(onnx).run(None, {"x": X})[0]
    with session(onnx, rknn_model=MODELS / "conv_f16.rk3588.rknn") as made:
        assert np.abs(made.run(None, {"x": X})[0] - expected).max() < 1e-2
    with session(rknn, onnx_model=MODELS / "conv_f16.onnx") as made:
        assert np.abs(made.run(None, {"x": X})[0] - expected).max() < 1e-2
    with session(onnx) as made:  # no twin can be found: a stand-in
        assert "stand-in" in made.explain()
        assert np.abs(made.run(None, {"x": X})[0] - expected).max() < 1e-2


# Life and death ---------------------------------------------------------------------------------------------------


class Pickled(ort.InferenceSession):
    """The recipe that programs use to send a session to another process."""

    def __init__(self, path):
        super().__init__(path, provider_options=VIRTUAL)
        self.path = path

    def __getstate__(self):
        return {"path": self.path}

    def __setstate__(self, state):
        self.__init__(state["path"])


def test_a_subclass_that_pickles_itself(npu):
    import pickle

    made = Pickled(MODELS / "conv_f16.onnx")
    again = pickle.loads(pickle.dumps(made))
    assert again.get_providers()[0] == "RKNNExecutionProvider"
    assert np.array_equal(again.run(None, {"x": X})[0], made.run(None, {"x": X})[0])
    with pytest.raises(TypeError):
        pickle.dumps(session())


def test_dropping_it_gives_everything_back_without_the_collector(npu):
    gc.collect()
    gc.disable()
    try:
        made = session(schedule=[0, 1, 2])
        made.run(None, {"x": X})
        executor = weakref.ref(made._npu.executor)
        dead = weakref.ref(made)
        del made
        assert dead() is None
        assert executor() is None or executor().closed
        assert npu.counters().contexts == 0
    finally:
        gc.enable()


def test_close_waits_for_what_runs_and_ends_it_for_good(npu):
    npu.run_time_us = 200_000
    made = session(schedule=[0])
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(made.run, None, {"x": X})
        while not any(event.kind == "inputs_set" for event in npu.events()):
            pass
        made.close()
        closed = time.monotonic_ns()
        (run,) = (event for event in npu.events() if event.kind == "run")
        assert run.end_ns < closed
        assert running.result(20)[0].shape == (1, 8, 16, 16)
    made.close()
    assert npu.counters().contexts == 0
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.run(None, {"x": X})
    assert made.get_inputs()[0].name == "x"
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.set_providers(["CPUExecutionProvider"])
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.run(None, {"x": X})


def test_set_providers_plans_again(npu):
    with session(schedule=[0]) as made:
        made.set_providers(["CPUExecutionProvider"])
        assert made.get_providers() == ["CPUExecutionProvider"]
        assert npu.counters().contexts == 0
        on_cpu = made.run(None, {"x": X})[0]
        made.set_providers([("RKNNExecutionProvider", {**VIRTUAL, "schedule": "1"})])
        assert made.get_providers()[0] == "RKNNExecutionProvider"
        assert made.get_provider_options()["RKNNExecutionProvider"]["schedule"] == "1"
        assert np.abs(made.run(None, {"x": X})[0] - on_cpu).max() < 1e-2
        with pytest.raises(ort.OptionError):
            made.set_providers([("RKNNExecutionProvider", {**VIRTUAL, "schedule": "7"})])
        assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)


@pytest.mark.parametrize("fails", [False, True])
def test_close_while_set_providers_is_at_work(npu, monkeypatch, fails):
    import ort_rknn._making as making

    made, original = session(), making.make
    begun, go = threading.Event(), threading.Event()

    def slowly(*args, **kwargs):
        begun.set()
        assert go.wait(20)
        if fails:
            raise ValueError("no")
        return original(*args, **kwargs)

    monkeypatch.setattr(making, "make", slowly)
    with ThreadPoolExecutor(2) as pool:
        setting = pool.submit(made.set_providers, [("RKNNExecutionProvider", VIRTUAL)])
        assert begun.wait(20)
        made.close()  # does not wait for it
        go.set()
        assert isinstance(setting.exception(20), ValueError if fails else RuntimeException)
    assert npu.counters().contexts == 0
    with pytest.raises(RuntimeException, match="the session was closed"):
        made.run(None, {"x": X})


def test_ten_thousand_runs_leak_nothing(npu):
    import resource

    with session(schedule=[0, 1, 2]) as made:
        feed = {"x": X}
        for _ in range(2000):
            made.run(None, feed)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(10_000):
            made.run(None, feed)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2048  # KiB
        assert npu.counters().outputs == 0


# Falling back -----------------------------------------------------------------------------------------------------


def test_no_twin_on_a_device_is_a_stand_in_only_where_it_is_virtual(npu, folder):
    (folder / "conv_f16.rk3588.rknn").unlink()
    with session(folder / "conv_f16.onnx") as made:
        assert "stand-in" in made.explain()


def test_a_twin_for_another_soc_is_not_used(npu, folder):
    shutil.copy(MODELS / "conv_f16.rk3566.rknn", folder / "conv_f16.rk3588.rknn")
    with session(folder / "conv_f16.onnx") as made:
        assert "conv_f16.rk3588.rknn is not used" in made.explain()
        assert "rk3566" in made.explain()


def test_a_damaged_compiled_model_is_not_used(npu, folder):
    (folder / "conv_f16.rk3588.rknn").write_bytes(b"RKNN\0\0\0\0\x06" + bytes(7) + b"\xff" * 8 + bytes(1000))
    with session(folder / "conv_f16.onnx") as made:
        assert "conv_f16.rk3588.rknn is not used" in made.explain()


def test_a_compiled_model_that_only_the_runtime_can_refuse(npu, folder):
    content = bytearray((folder / "conv_f16.rk3588.rknn").read_bytes())
    content[64:2000] = bytes(1936)
    (folder / "conv_f16.rk3588.rknn").write_bytes(content)
    with pytest.warns(ort.FallbackWarning, match="does not load.*RKNN_ERR_MODEL_INVALID"):
        made = session(folder / "conv_f16.onnx")
    assert made.get_providers() == ["CPUExecutionProvider"]


@pytest.fixture
def free_dims(tmp_path):
    """An ONNX that no stand-in can be made of."""
    shutil.copy(MODELS / "dynamic.onnx", tmp_path / "free.onnx")
    return tmp_path / "free.onnx"


def test_a_fallback_warns_once_with_reason_and_remedy(npu, free_dims, caplog):
    with caplog.at_level(logging.INFO, "ort_rknn"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = session(free_dims)
    assert made.get_providers() == ["CPUExecutionProvider"]
    assert [w.category for w in caught] == [ort.FallbackWarning]
    assert caught[0].filename == __file__
    assert "free dimensions" in str(caught[0].message) and "rknn-toolkit2" in str(caught[0].message)
    assert [r.levelname for r in caplog.records if r.name == "ort_rknn"] == ["WARNING"]
    assert "fell back" in made.explain()


@pytest.mark.parametrize("how", ["ORT_RKNN_STRICT", "ORT_RKNN_POLICY", "config"])
def test_strict_raises_instead(npu, free_dims, monkeypatch, how):
    options = None
    if how == "config":
        options = ort.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    else:
        monkeypatch.setenv(how, "1" if how.endswith("STRICT") else "only")
    with pytest.raises(Fail, match="free dimensions.*no fallback to the CPU") as caught:
        ort.InferenceSession(free_dims, options, provider_options=VIRTUAL)
    assert isinstance(caught.value, ort.NpuUnavailable)


@pytest.mark.parametrize("call", ["rknn_init", "rknn_query", "rknn_dup_context", "rknn_set_core_mask"])
def test_a_model_that_does_not_load_falls_back_with_the_runtime_s_words(npu, call):
    npu.fault(call, -4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = session(schedule=[0, 1])
    assert made.get_providers() == ["CPUExecutionProvider"]
    assert f"{call} failed: RKNN_ERR_MALLOC_FAIL (-4)" in str(caught[0].message)
    assert npu.counters().contexts == 0


def test_a_model_that_does_not_load_is_an_error_with_fallback_disabled(npu):
    npu.fault("rknn_init", -4)
    with pytest.raises(Fail, match="RKNN_ERR_MALLOC_FAIL"):
        ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=VIRTUAL, enable_fallback=0)


def test_a_compiled_model_without_onnx_and_npu_is_an_error_that_says_what_was_looked_for(tmp_path):
    (tmp_path / "only.rk3588.rknn").write_bytes((MODELS / "conv_f16.rk3588.rknn").read_bytes())
    with pytest.raises(ort.NpuUnavailable, match=r"looked for .*only\.onnx"):
        ort.InferenceSession(tmp_path / "only.rk3588.rknn")


@pytest.mark.parametrize("call", ["rknn_inputs_set", "rknn_run", "rknn_outputs_get", "rknn_outputs_release"])
def test_an_error_at_a_run_names_model_core_and_code(npu, call):
    with session(schedule=[1]) as made:
        made.run(None, {"x": X})
        npu.fault(call, -2, times=1)
        with pytest.raises(RuntimeException) as caught:
            made.run(None, {"x": X})
        for word in ("conv_f16.rk3588.rknn", "core 1", call, "RKNN_ERR_TIMEOUT", "-2"):
            assert word in str(caught.value)
        assert made.get_providers()[0] == "RKNNExecutionProvider"
        assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)


def test_run_timeout(npu):
    npu.run_time_us = 300_000
    with session(run_timeout_ms=20) as made, pytest.raises(RuntimeException, match="RKNN_ERR_TIMEOUT"):
        made.run(None, {"x": X})


# Plain onnxruntime ------------------------------------------------------------------------------------------------

PLAIN = """
import numpy as np, onnxruntime, ort_rknn, sys
ort_rknn.register(device="virtual:rk3588")
so = onnxruntime.SessionOptions()
devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == "RKNNExecutionProvider"]
so.add_provider_for_devices(devices, {"schedule": "0,1,2"})
s = onnxruntime.InferenceSession(sys.argv[1], so)
cpu = onnxruntime.InferenceSession(sys.argv[1])
x = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
assert s.get_providers()[0] == "RKNNExecutionProvider", s.get_providers()
a, b = s.run(None, {"x": x})[0], cpu.run(None, {"x": x})[0]
assert 0 < np.abs(a - b).max() < 1e-2, np.abs(a - b).max()
from ort_rknn_virtual.control import virtual_npu
assert len([e for e in virtual_npu("rk3588").events() if e.kind == "run"]) == 1
try:
    ort_rknn.unregister()
except ort_rknn.capi.onnxruntime_pybind11_state.Fail as error:
    assert "1 sessions" in str(error)
else:
    raise SystemExit("unregistered under a live session")
del s
ort_rknn.unregister()
assert "RKNNExecutionProvider" not in onnxruntime.get_available_providers()
"""


def test_plain_onnxruntime_runs_the_twin_beside_its_model():
    """No import swap: a session of the unmodified onnxruntime, with our provider registered."""
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(MODELS / "conv_f16.onnx")], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


# Nothing between the caller's array and the runtime ---------------------------------------------------------------


def test_the_runtime_reads_the_caller_s_own_memory(npu):
    """No copy of ours before the runtime's conversion: the address that it is given is the array's."""
    x = np.ascontiguousarray(X)
    with session(schedule="0,1,2") as made:
        for _ in range(3):
            made.run(None, {"x": x})
        assert {e.address for e in npu.events() if e.kind == "inputs_set"} == {x.ctypes.data}
        assert {e.nbytes for e in npu.events() if e.kind == "inputs_set"} == {x.nbytes}


@pytest.mark.parametrize("layout", ["nchw", "original", "nchw_software", "original_software", "nhwc", "any", "NHWC"])
def test_what_a_layout_declares_is_what_it_accepts(npu, layout):
    expected = onnxruntime.InferenceSession(MODELS / "conv_f16.onnx").run(None, {"x": X})[0]
    with session(layout=layout) as made:
        channels_last = layout.lower() in ("nhwc", "any")
        assert made.get_inputs()[0].shape == ([1, 32, 32, 3] if channels_last else [1, 3, 32, 32])
        given = np.ascontiguousarray(X.transpose(0, 2, 3, 1)) if channels_last else X
        assert np.abs(made.run(None, {"x": given})[0] - expected).max() < 1e-2
        wrong = X if channels_last else np.ascontiguousarray(X.transpose(0, 2, 3, 1))
        with pytest.raises(InvalidArgument, match="Got invalid dimensions"):
            made.run(None, {"x": wrong})


@pytest.mark.wall_clock
def test_onnxruntime_s_run_async_uses_the_cores(npu):
    npu.run_time_us = 5000
    done = threading.Semaphore(0)
    with session(schedule="0,1,2") as made:
        made.run(None, {"x": X})
        before = threading.active_count()
        for _ in range(60):
            made.run_async(None, {"x": X}, lambda outputs, data, error: done.release(), None)
        for _ in range(60):
            assert done.acquire(timeout=10)
        runs = [e for e in npu.events() if e.kind == "run"]
        together = [{o.core_mask for o in runs if o.start_ns < e.end_ns and e.start_ns < o.end_ns} for e in runs]
        assert {1, 2, 4} in together, "at some time all three cores worked"
        assert threading.active_count() <= before + 4


@pytest.mark.wall_clock
def test_the_first_idle_core_takes_the_next_run(npu):
    """schedule="auto": a slow core takes less, the others its share."""
    npu.run_time_us = 5000
    npu.core_factor(0, 4.0)
    with session(schedule="auto") as made, ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: made.run(None, {"x": X}), range(36)))
        slow, *others = npu.counters().runs
        assert slow * 2.5 < min(others)
        assert made.get_provider_options()["RKNNExecutionProvider"]["schedule"] == "auto"


@pytest.mark.wall_clock
def test_a_slow_core_holds_up_nobody_else(npu):
    npu.run_time_us = 2000
    npu.core_factor(0, 50.0)
    finished = []
    with session(schedule="0,1,2") as made, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda k: (made.run(None, {"x": X}), finished.append(k)), range(6)))
        # Runs 0 and 3 wait for core 0, a tenth of a second each; the four others do not wait for those.
        ends = sorted((e.end_ns, e.core_mask) for e in npu.events() if e.kind == "run")
        assert [mask for _, mask in ends][:4].count(1) == 0


def test_a_model_in_onnxruntime_s_own_format_is_no_way_round_strict(npu, tmp_path, monkeypatch):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(MODELS / "conv_f16.onnx", options, ["CPUExecutionProvider"])
    with pytest.warns(ort.FallbackWarning, match="onnxruntime's own format"):
        made = session(tmp_path / "m.ort")
    assert made.run(None, {"x": X})[0].shape == (1, 8, 16, 16)
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    with pytest.raises(ort.NpuUnavailable, match="onnxruntime's own format"):
        session(tmp_path / "m.ort")


def test_a_model_that_cannot_be_read_is_onnxruntime_s_error_not_a_warning(npu, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidProtobuf):
        session(tmp_path / "m.onnx")


def test_close_goes_on_after_it_was_interrupted(npu, monkeypatch):
    made = session(schedule="0,1")
    executor = made._npu.executor
    lane = executor._lanes[-1]

    def interrupted(self, turn):
        raise KeyboardInterrupt

    held = lane.take()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(lane), "_await", interrupted)
        made.close()
    assert npu.counters().contexts == 2
    lane.give_back(held)
    made.close()
    assert npu.counters().contexts == 0


def test_a_toolkit_newer_than_the_runtime_is_worth_a_note(npu, tmp_path):
    """Told by explain() in a process of its own: the virtual runtime's version is read when it is loaded."""
    code = "import ort_rknn, sys; print(ort_rknn.InferenceSession(sys.argv[1]).explain())"
    environment = {**os.environ, "ORT_RKNN_DEVICE": "virtual:rk3588", "RKNN_VIRTUAL_VERSION": "2.3.0"}
    command = [sys.executable, "-c", code, str(MODELS / "conv_f16.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    assert "note:      the runtime loaded it, but:" in done.stdout
    assert "2.5" in done.stdout and "2.3.0" in done.stdout
