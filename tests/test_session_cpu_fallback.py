"""Falling back to the CPU is always reported: one warning, one record, or an error where no CPU is allowed."""

import logging
import sys
import warnings

import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.cpu_sessions import CPU, OURS, feed, outcome, two_io, without_npu

import ort_rknn
from ort_rknn import FallbackWarning, NpuUnavailable, OptionError

no_npu = pytest.fixture(without_npu, autouse=True)
path = pytest.fixture(two_io)


def test_not_requested(path, caplog, no_npu):
    """No warning (warnings are errors here) and one INFO record."""
    caplog.set_level(logging.DEBUG, "ort_rknn")
    ort_rknn.InferenceSession(path)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "the fake NPU is switched off. switch it on" in record.getMessage()


def test_others_were_named(path, caplog, no_npu):
    caplog.set_level(logging.DEBUG, "ort_rknn")
    ort_rknn.InferenceSession(path, providers=[CPU])
    assert not caplog.records
    assert not no_npu.queries  # no adapter is bothered


ASKED = {
    "named": ({"providers": [OURS]}, {}),
    "named with the CPU": ({"providers": [OURS, CPU]}, {}),
    "named bare": ({"providers": OURS}, {}),
    "named after the CPU": ({"providers": [CPU, OURS]}, {}),
    "an alias": ({"providers": ["RKNPU2ExecutionProvider"]}, {}),
    "options in a tuple": ({"providers": [(OURS, {"schedule": [0, 1]}), CPU]}, {}),
    "options apart": ({"providers": [OURS, CPU], "provider_options": [{"tp_mode": "all"}, {}]}, {}),
    "options alone, a dict": ({"provider_options": {"schedule": "0,1"}}, {}),
    "options alone, a list": ({"provider_options": [{"schedule": "0,1"}]}, {}),
    "no options alone": ({"provider_options": {}}, {}),
    "ORT_RKNN_DEVICE": ({}, {"ORT_RKNN_DEVICE": "rk3588"}),
    "ORT_RKNN_POLICY": ({}, {"ORT_RKNN_POLICY": "prefer"}),
    "ORT_RKNN_POLICY over names": ({"providers": [CPU]}, {"ORT_RKNN_POLICY": "prefer"}),
}


@pytest.mark.parametrize("case", ASKED)
def test_a_request_gets_one_warning_and_one_record(case, path, caplog, monkeypatch, capfd):
    caplog.set_level(logging.DEBUG, "ort_rknn")
    arguments, environment = ASKED[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = sys._getframe().f_lineno + 1
        session = ort_rknn.InferenceSession(path, **arguments)
    (warning,) = caught
    assert warning.category is FallbackWarning
    assert (warning.filename, warning.lineno) == (__file__, line)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(warning.message) == record.getMessage()
    assert record.getMessage() == "this session runs on the CPU: no NPU: the fake NPU is switched off. switch it on"
    assert session.get_providers() == [CPU]
    assert len(session.run(None, feed())) == 2
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_the_warning_points_at_a_subclass_constructor(path):
    class Mine(ort_rknn.InferenceSession):
        def __init__(self, path):
            self.line = sys._getframe().f_lineno + 1
            super().__init__(path, providers=[OURS])

    with pytest.warns(FallbackWarning) as caught:
        mine = Mine(path)
    assert (caught[0].filename, caught[0].lineno) == (__file__, mine.line)


def test_the_warning_points_at_set_providers(path):
    session = ort_rknn.InferenceSession(path, providers=[CPU])
    with pytest.warns(FallbackWarning) as caught:
        line = sys._getframe().f_lineno + 1
        session.set_providers([OURS])
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)
    assert "fell back" in session.explain()


def test_the_warning_can_be_made_an_error_and_leaves_no_session(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FallbackWarning, match="switch it on"):
            ort_rknn.InferenceSession(path, providers=[OURS])


STRICT = {
    "ORT_RKNN_STRICT": ({}, {"ORT_RKNN_STRICT": "1"}, "ORT_RKNN_STRICT=1"),
    "ORT_RKNN_STRICT, named": ({"providers": [OURS]}, {"ORT_RKNN_STRICT": "1"}, "ORT_RKNN_STRICT=1"),
    "policy only": ({}, {"ORT_RKNN_POLICY": "only"}, "ORT_RKNN_POLICY=only"),
    "policy only over names": ({"providers": [CPU]}, {"ORT_RKNN_POLICY": "only"}, "ORT_RKNN_POLICY=only"),
}


@pytest.mark.parametrize("case", STRICT)
def test_strict(case, path, monkeypatch):
    arguments, environment, by = STRICT[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NpuUnavailable, match="switch it on") as caught:
        ort_rknn.InferenceSession(path, **arguments)
    assert by in str(caught.value)
    assert isinstance(caught.value, state.Fail)


def test_strict_does_not_apply_if_other_providers_are_named(path, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    assert ort_rknn.InferenceSession(path, providers=[CPU]).get_providers() == [CPU]


@pytest.mark.parametrize("arguments", [{"providers": [OURS]}, {"provider_options": {"tp_mode": "0"}}])
def test_no_cpu_in_the_session_config(path, arguments):
    options = ort_rknn.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(NpuUnavailable, match=r"session\.disable_cpu_ep_fallback=1"):
        ort_rknn.InferenceSession(path, options, **arguments)


def test_no_cpu_in_the_session_config_without_a_request(path):
    """Then onnxruntime decides; for it the CPU provider is not a fallback if it is the only provider."""
    options = ort_rknn.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    theirs = outcome(lambda: type(onnxruntime.InferenceSession(path, options).get_providers()))
    assert outcome(lambda: type(ort_rknn.InferenceSession(path, options).get_providers())) == theirs


def test_bad_options_are_errors_without_an_npu_too(path):
    with pytest.raises(OptionError, match="unknown provider option 'sechdule'"):
        ort_rknn.InferenceSession(path, providers=[(OURS, {"sechdule": "0"})])
    with pytest.raises(ValueError, match="exclude each other"):
        ort_rknn.InferenceSession(path, provider_options={"schedule": 0, "tp_mode": "all"})


def test_bad_policy(path, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_POLICY", "always")
    with pytest.raises(OptionError, match="respect, prefer, only"):
        ort_rknn.InferenceSession(path)


def test_a_compiled_model_runs_its_onnx_on_the_cpu(models):
    with pytest.warns(FallbackWarning):
        session = ort_rknn.InferenceSession(models / "two_io.rk3588.rknn", providers=[OURS])
    assert session._model_path == str(models / "two_io.rk3588.rknn")
    assert len(session.run(None, feed())) == 2
    assert "two_io.onnx" in session.explain()
    session.set_providers([CPU])
    assert session._model_path == str(models / "two_io.rk3588.rknn")


def test_a_compiled_model_alone_is_an_error_that_says_what_was_looked_for(models, tmp_path):
    alone = tmp_path / "alone.rk3588.rknn"
    alone.write_bytes((models / "two_io.rk3588.rknn").read_bytes())
    with pytest.raises(NpuUnavailable, match=r"looked for alone\.onnx, alone\.rk3588\.onnx") as caught:
        ort_rknn.InferenceSession(alone)
    assert "switch it on" in str(caught.value)
    with pytest.raises(NpuUnavailable, match="in memory has no file beside it"):
        ort_rknn.InferenceSession(alone.read_bytes())
    with pytest.warns(FallbackWarning):
        session = ort_rknn.InferenceSession(alone, provider_options={"onnx_model": str(models / "two_io.onnx")})
    assert len(session.run(None, feed())) == 2


def test_disabled(path, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DISABLE", "1")
    session = ort_rknn.InferenceSession(path)
    assert len(session.run(None, feed())) == 2
    assert "ORT_RKNN_DISABLE=1" in session.explain()
    with pytest.raises(state.InvalidProtobuf):
        ort_rknn.InferenceSession(path.replace(".onnx", ".rk3588.rknn"))
    session.close()
    with pytest.raises(state.RuntimeException, match="closed"):
        session.run(None, feed())
