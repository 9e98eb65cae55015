"""The C ABI's callbacks: no exception leaves one but as a status; which slots are filled; which calls keep the GIL."""

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.ep_feeds import CPU, X, elementwise
from support.ep_models import OURS, mixed
from support.fake_npu import AdapterError, RknnError

import ort_rknn
from ort_rknn._ep import abi, provider


class Odd(Exception):
    def __str__(self):
        raise ValueError("no text")


ERRORS = {
    "ValueError": (lambda: ValueError("Boom: npu é 字"), state.InvalidArgument, "Boom: npu é 字"),
    "TypeError": (lambda: TypeError("Boom"), state.InvalidArgument, "Boom"),
    "FileNotFoundError": (lambda: FileNotFoundError(2, "Boom"), state.NoSuchFile, "Boom"),
    "RuntimeError": (lambda: RuntimeError("Boom"), state.RuntimeException, "Boom"),
    "MemoryError": (lambda: MemoryError(), state.RuntimeException, "MemoryError"),
    "SystemExit": (lambda: SystemExit(3), state.RuntimeException, "3"),
    "GeneratorExit": (lambda: GeneratorExit(), state.RuntimeException, "GeneratorExit"),
    "StopIteration": (lambda: StopIteration(), state.RuntimeException, "StopIteration"),
    "Fail": (lambda: state.Fail("Boom"), state.Fail, "Boom"),
    "NotImplemented": (lambda: state.NotImplemented("Boom"), state.NotImplemented, "Boom"),
    "EPFail": (lambda: state.EPFail("Boom"), state.RuntimeException, "Boom"),
    "RknnError": (lambda: RknnError("rknn_run", -3), state.RuntimeException, r"RKNN_ERR_DEVICE_UNAVAILABLE \(-3\)"),
    "AdapterError": (lambda: AdapterError("Boom"), state.RuntimeException, "Boom"),
    "a status": (lambda: abi.OrtCallFailed("Boom", 1), state.Fail, "Boom"),
    "a status EP_FAIL": (lambda: abi.OrtCallFailed("Boom", 11), state.RuntimeException, "Boom"),
    "NUL": (lambda: RuntimeError("Boom\0hidden"), state.RuntimeException, r"Boom\?hidden"),
    "surrogate": (lambda: RuntimeError("Boom \ud800"), state.RuntimeException, r"Boom \?"),
    "long": (lambda: RuntimeError("Boom" * 50_000), state.RuntimeException, "Boom" * 10),
    "no text": (lambda: Odd(), state.RuntimeException, "ValueError while an error was reported"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_no_exception_leaves_a_callback_but_as_a_status(npu, blob, session_on, case, capfd):
    raised, expected, text = ERRORS[case]
    elementwise(npu, lambda a: a)
    session = session_on(mixed(blob))
    npu.errors[0] = raised
    for _ in range(3):
        with pytest.raises(expected, match=text) as caught:
            session.run(None, {"X": X})
        assert caught.type is expected
    # The session was not silently rebuilt on the CPU (onnxruntime does that on EP_FAIL), and continues to work.
    assert session.get_providers() == [OURS, CPU]
    assert npu.loads == 1
    npu.errors.clear()
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], np.maximum(X + 1, 0))
    assert "EP Error" not in capfd.readouterr().out


def test_errors_name_model_core_and_code(npu, models):
    session = ort_rknn.InferenceSession(models / "conv_f16.onnx", provider_options={"schedule": "1"})
    npu.errors[2] = lambda: RknnError("rknn_run", -2, "the NPU hangs: reset it")
    with pytest.raises(state.RuntimeException) as caught:
        session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})
    for part in ("conv_f16.rk3588.rknn", "core 1", "RKNN error code -2", "RKNN_ERR_TIMEOUT", "reset it"):
        assert part in str(caught.value)
    assert str(caught.value).count("[ONNXRuntimeError]") == 1


def test_which_calls_keep_the_gil():
    """The allocator's owner may log to Python while another thread waits for the allocator: so the one call that may
    wait releases the GIL, and the short getters, for which a release costs more than the call, do not."""
    python_api = 4  # ctypes' FUNCFLAG_PYTHONAPI
    for name, (_, prototype) in {**abi._API, **abi._EP_API}.items():
        assert bool(prototype._flags_ & python_api) == (name != "KernelContext_GetOutput"), name


def test_releasing_the_factory_is_no_python():
    """It is called after Python has ended: the symbol is a libc function that does nothing."""
    import ctypes

    points = provider.entry_points()
    libc = ctypes.CDLL(None).pthread_mutexattr_destroy
    assert points["ReleaseEpFactory"] == ctypes.cast(libc, ctypes.c_void_p).value
    assert libc(0) == 0
    assert set(points) == {"CreateEpFactories", "ReleaseEpFactory"}


def test_slots_that_onnxruntime_calls_unchecked_are_filled():
    table = provider._factory_callbacks
    assert {"GetName", "GetVendor", "GetSupportedDevices", "CreateEp", "ReleaseEp", "GetVersion"} <= set(table)
    assert "CreateDataTransfer" in table
    assert {"GetName", "GetCapability", "Compile", "ReleaseNodeComputeInfos"} <= set(provider._ep_callbacks)
    assert {"CreateState", "Compute", "ReleaseState"} == set(provider._info_callbacks)
