"""Our rknnlite: results and messages for inputs that do not fit, and for failing starts and runs."""

import logging
import warnings

import numpy as np
import pytest
from support.rknnlite_models import CONV, X, started, virtual_rk3588, without_npu

import ort_rknn as ort
from ort_rknn_rknnlite.api import RKNNLite, RKNNLiteError

npu = pytest.fixture(virtual_rk3588)
no_npu = pytest.fixture(without_npu)


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"inputs": (X,)}, "inputs must be a list of numpy arrays"),
        ({"inputs": [X.tolist()]}, "inputs must be a list of numpy arrays"),
        ({"inputs": [X, X]}, "the model has the 1 inputs x, and 2 were given"),
        ({"inputs": [X.astype(np.float64)]}, "input 'x' is float64; it can be float32"),
        ({"inputs": [X], "data_type": "uint8"}, "input 'x' is float32, and data_type says uint8"),
        ({"inputs": [X], "data_format": "nhcw"}, "data_format 'nhcw' is unknown"),
        ({"inputs": [X], "data_format": ["nhwc", "nhwc"]}, "a list with one word for each of the 1 inputs"),
        (
            {"inputs": [X], "inputs_pass_through": [0, 0]},
            r"inputs_pass_through is \[0, 0\]: expected a list with a 0 or 1 for each of the 1 ",
        ),
        (
            {"inputs": [X], "inputs_pass_through": 1},
            "inputs_pass_through is 1: expected a list with a 0 or 1 for each of the 1 ",
        ),
        (
            {"inputs": [X], "inputs_pass_through": "1"},
            "inputs_pass_through is '1': expected a list with a 0 or 1 for each of the 1 ",
        ),
        ({"inputs": [X], "inputs_pass_through": [2]}, r"inputs_pass_through is \[2\]: expected a list with a 0 or 1"),
        ({"inputs": [X], "inputs_pass_through": [1]}, "input 'x' passed through must be float16, not float32"),
        (
            {"inputs": [X.astype(np.uint8)], "inputs_pass_through": [True]},
            "input 'x' passed through must be float16, not uint8",
        ),
        (
            {"inputs": [X], "data_type": np.float32},
            "data_type is <class 'numpy.float32'>: expected a word, or a list with one ",
        ),
        ({"inputs": [X.astype(">f4")]}, "input 'x' is >f4; it can be float32"),
        ({"inputs": [X.transpose(0, 3, 1, 2)]}, r"\[1, 3, 32, 32\], which is NCHW: .* data_format='nchw'"),
        ({"inputs": [X[0]]}, r"has shape \[32, 32, 3\]; the model takes \[1, 32, 32, 3\] \(NHWC\)"),
        ({"inputs": [X[0]], "inputs_pass_through": [1]}, r"has shape \[32, 32, 3\]; the model takes \[1, 32, 32, 3\]"),
        ({"inputs": [np.concatenate([X, X])]}, r"\[2, 32, 32, 3\]; the model takes \[1, 32, 32, 3\]"),
    ],
)
def test_inputs_that_do_not_fit(npu, caplog, arguments, text, raises):
    made = started()
    npu.reset()
    if raises:
        made.raise_errors = True
        with pytest.raises(RKNNLiteError, match=text) as caught:
            made.inference(**arguments)
        assert caught.value.call == "inference"
    else:
        assert made.inference(**arguments) is None
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert record.name == "ort_rknn.rknnlite"
        assert record.getMessage().startswith("RKNNLite.inference: ")
        import re

        assert re.search(text, record.getMessage())
    assert [e for e in npu.events() if e.kind == "run"] == []
    made.release()


def test_a_run_that_fails_gives_none_and_never_an_old_result(npu, caplog):
    made = started()
    (want,) = made.inference([X])
    for call, code, name in (
        ("rknn_inputs_set", -5, "PARAM_INVALID"),
        ("rknn_run", -2, "TIMEOUT"),
        ("rknn_outputs_get", -1, "FAIL"),
    ):
        npu.fault(call, code, times=1)
        assert made.inference([X + 1]) is None
        assert f"{call} failed: RKNN_ERR_{name} ({code})" in caplog.text
    np.testing.assert_array_equal(made.inference([X])[0], want)
    made.release()


def test_starts_that_fail(npu, caplog, tmp_path):
    made = RKNNLite()
    assert made.load_rknn(tmp_path / "none.rknn") == -1
    assert made.load_rknn(CONV, key_path="key") == -1
    assert made.init_runtime() == -1
    assert made.inference([X]) is None
    assert made.get_sdk_version() is None
    assert made.list_support_target_platform(tmp_path / "none.rknn") is None
    assert made.load_rknn(CONV) == 0
    for arguments, text in (
        ({"core_mask": 5}, "core_mask 5 is not supported; it can be one of 0x0, 0x1, 0x2, 0x3, 0x4, 0x7, 0xffff"),
        ({"target": "rk3576"}, "target is 'rk3576', and the device here is virtual:rk3588"),
        ({"async_mode": True}, "async_mode is not supported"),
        ({"device_id": "1234"}, "device_id is for boards at the other end of a cable"),
    ):
        caplog.clear()
        assert made.init_runtime(**arguments) == -1
        assert text in caplog.text
    npu.fault("rknn_init", -6)
    assert made.init_runtime() == -1
    assert "rknn_init failed: RKNN_ERR_MODEL_INVALID (-6)" in caplog.text
    npu.clear_faults()
    assert made.init_runtime(target="RK3588") == 0
    made.release()
    (tmp_path / "bad.rknn").write_bytes(b"garbage")
    assert made.load_rknn(tmp_path / "bad.rknn") == 0  # as the vendor's: nobody looks into it yet
    assert made.init_runtime() == -1
    assert "not an .rknn model" in caplog.text


def test_without_npu_and_without_onnx(no_npu, tmp_path, monkeypatch, caplog):
    alone = tmp_path / "alone.rknn"
    alone.write_bytes(CONV.read_bytes())
    made = RKNNLite()
    assert made.load_rknn(alone) == 0
    assert made.init_runtime() == -1
    assert "its ONNX (alone.onnx) is not beside it" in caplog.text
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    assert made.load_rknn(CONV) == 0
    assert made.init_runtime() == -1
    assert "no fallback to the CPU: ORT_RKNN_STRICT=1" in caplog.text


def test_invented_numbers_are_reported(npu, tmp_path, caplog):
    """Without a twin the virtual NPU invents them; programs of this API have no explain(), so a message says so."""
    alone = tmp_path / "alone.rknn"
    alone.write_bytes(CONV.read_bytes())
    made = started(alone)
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.name == "ort_rknn.rknnlite"
    assert record.getMessage() == (
        "alone.rknn has no ONNX twin (alone.onnx): the virtual NPU's numbers are a deterministic function of the inputs"
    )
    a, b = made.inference([X])[0], made.inference([X + 1])[0]
    assert a.shape == (1, 8, 16, 16)
    assert not np.array_equal(a, b)
    made.release()


def test_the_cpu_is_reported_once_at_the_programs_call(no_npu, caplog):
    made = RKNNLite()
    made.load_rknn(CONV)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert made.init_runtime() == 0
    assert [(w.category, w.filename) for w in caught] == [(ort.FallbackWarning, __file__)]
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "on the CPU" in made.get_sdk_version()
    made.release()
    assert made.inference([X]) is None
