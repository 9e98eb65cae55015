"""A session on the (virtual) NPU is onnxruntime's own: it has the behavior that programs rely on."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import InvalidArgument
from support.virtual_sessions import MODELS, VIRTUAL, X, folder_with_twin, session, virtual_rk3588

import ort_rknn as ort

npu = pytest.fixture(virtual_rk3588)
folder = pytest.fixture(folder_with_twin)


# onnxruntime's own behavior --------------------------------------------------------------------------------------


def test_what_is_not_overridden():
    names = [n for n in vars(onnxruntime.InferenceSession) if n.startswith("run")]
    names += [n for n in dir(onnxruntime.InferenceSession) if n.startswith(("run", "get_", "io_binding", "end_"))]
    for name in set(names) - {"run", "run_async"}:  # a message for a feed that is no dict; close() waits for run_async
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
    options.profile_file_prefix = str(tmp_path / "profile")
    options.log_severity_level = 3
    for _ in range(2):
        with ort.InferenceSession(MODELS / "conv_f16.onnx", options, provider_options=VIRTUAL) as made:
            assert made.get_session_options().log_severity_level == 3
    assert options.intra_op_num_threads == 0
    assert options.profile_file_prefix == str(tmp_path / "profile")
    assert not options.has_providers()
    with pytest.raises(RuntimeError):
        options.get_session_config_entry("session.intra_op.allow_spinning")


@pytest.mark.parametrize("as_bytes", [False, True])
def test_asking_for_a_context_model_is_no_error(npu, folder, as_bytes):
    """It is written if there is a compiled model; a stand-in for a model in memory is not one."""
    options = ort.SessionOptions()
    options.add_session_config_entry("ep.context_enable", "1")
    before = sorted(folder.iterdir())
    model = (folder / "conv_f16.onnx").read_bytes() if as_bytes else folder / "conv_f16.onnx"
    with ort.InferenceSession(model, options, provider_options=VIRTUAL) as made:
        assert made.get_providers()[0] == "RKNNExecutionProvider"
        assert f"note:      ep.context_enable: {'nothing is' if as_bytes else ''}" in made.explain()
    assert options.get_session_config_entry("ep.context_enable") == "1"
    written = [] if as_bytes else [folder / "conv_f16_ctx.onnx"]
    assert sorted(folder.iterdir()) == sorted([*before, *written])


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


@pytest.mark.parametrize("layout", ["nchw", "nchw_software", "nhwc", "NHWC"])
def test_what_a_layout_declares_is_what_it_accepts(npu, layout):
    expected = onnxruntime.InferenceSession(MODELS / "conv_f16.onnx").run(None, {"x": X})[0]
    with session(layout=layout) as made:
        channels_last = layout.lower() == "nhwc"
        assert made.get_inputs()[0].shape == ([1, 32, 32, 3] if channels_last else [1, 3, 32, 32])
        given = np.ascontiguousarray(X.transpose(0, 2, 3, 1)) if channels_last else X
        assert np.abs(made.run(None, {"x": given})[0] - expected).max() < 1e-2
        wrong = X if channels_last else np.ascontiguousarray(X.transpose(0, 2, 3, 1))
        with pytest.raises(InvalidArgument, match="Got invalid dimensions"):
            made.run(None, {"x": wrong})
