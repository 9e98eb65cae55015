"""Whether a compiled model is still valid, in onnxruntime's terms; and sessions that accept only optimal ones."""

import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.models_in_parts import their_session, three_steps, write_in_parts
from support.virtual_sessions import emptied_rk3588

import ort_rknn as ort
from ort_rknn.files import read_rknn
from ort_rknn.files.compatibility import compatibility, info_text, parse_info

VIRTUAL = {"device": "virtual:rk3588"}
NPU, CPU = "RKNNExecutionProvider", "CPUExecutionProvider"
X = np.random.default_rng(1).standard_normal((1, 3, 32, 32), dtype=np.float32)
OPTIMAL, PREFER, UNSUPPORTED = "EP_SUPPORTED_OPTIMAL", "EP_SUPPORTED_PREFER_RECOMPILATION", "EP_UNSUPPORTED"


device = pytest.fixture(emptied_rk3588, autouse=True)


@pytest.fixture
def file(models):
    return read_rknn(models / "conv_f16.rk3588.rknn")


@pytest.mark.parametrize(
    "changes, known, word, reason",
    [
        ({}, {}, OPTIMAL, ""),
        ({}, {"runtime": "2.5.1 (abc)", "driver": "0.9.8"}, OPTIMAL, ""),
        ({"targets": ("rk3576",)}, {}, UNSUPPORTED, "compiled for rk3576"),
        ({"targets": ("rk3576",)}, {"loaded": True}, UNSUPPORTED, "compiled for rk3576"),
        ({}, {"runtime": "2.3.2"}, UNSUPPORTED, "newer than the runtime's 2.3.2"),
        ({}, {"runtime": "2.3.2", "loaded": True}, PREFER, "newer than the runtime's 2.3.2"),
        ({"toolkit_version": "1.6.0"}, {"runtime": "2.3.2"}, PREFER, "older than the runtime 2.3.2"),
        ({"toolkit_version": "2.3.0"}, {"runtime": "2.3.2"}, OPTIMAL, ""),
        ({"toolkit_version": None}, {"runtime": "2.3.2"}, OPTIMAL, ""),
        ({"toolkit_version": "0.0.0 (stand-in)"}, {"runtime": "2.3.2"}, OPTIMAL, ""),
        ({}, {"runtime": "2.5.0", "driver": "0.9.3"}, PREFER, "driver is 0.9.3"),
        ({"toolkit_version": "1.6.0"}, {"runtime": "1.6.0", "driver": "0.9.3"}, OPTIMAL, ""),
    ],
)
def test_verdicts(file, changes, known, word, reason):
    verdict = compatibility(replace(file, **changes), soc="rk3588", **known)
    assert verdict.word == word
    assert reason in str(verdict)
    assert bool(verdict.reasons) == bool(reason)


def test_a_verdicts_text_is_read_back(file):
    text = info_text(file)
    assert text == "rknn;target=rk3588;toolkit=2.5.0;container=6"
    back = parse_info(text)
    assert (back.targets, back.toolkit_version, back.format_version) == (("rk3588",), "2.5.0", 6)
    for other in ("", "qnn;target=rk3588", "rknnx", "\0"):
        assert parse_info(other) is None
    for strange in ("rknn", "rknn;;;=;target", "rknn;container=" + "9" * 5000, "rknn;target=" + "x," * 4000):
        assert parse_info(strange) is not None


def older(folder, models, version=b"1.4.0"):
    """The model as an older toolkit would have written it."""
    shutil.copy(models / "conv_f16.onnx", folder)
    content = (models / "conv_f16.rk3588.rknn").read_bytes()
    assert b"2.5.0" in content
    (folder / "conv_f16.rk3588.rknn").write_bytes(content.replace(b"2.5.0", version))
    return folder / "conv_f16.onnx"


def only_optimal():
    so = onnxruntime.SessionOptions()
    so.log_severity_level = 3
    so.add_session_config_entry("session.fail_on_suboptimal_compiled_model", "1")
    return so


def test_explain_reports_the_verdict(tmp_path, models):
    with ort.InferenceSession(models / "conv_f16.onnx", provider_options=VIRTUAL) as made:
        assert f"verdict:   {OPTIMAL}" in made.explain()
    with ort.InferenceSession(older(tmp_path, models), provider_options=VIRTUAL) as made:
        assert f"verdict:   {PREFER}: it was made with rknn-toolkit2 1.4.0, older" in made.explain()
        made.run(None, {"x": X})
    shutil.copy(models / "conv_f16.rk3566.rknn", tmp_path / "conv_f16.rk3588.rknn")
    with pytest.warns(ort.FallbackWarning):
        made = ort.InferenceSession(tmp_path / "conv_f16.onnx", provider_options=VIRTUAL)
    assert f"verdict:   conv_f16.rk3588.rknn: {UNSUPPORTED}: it was compiled for rk3566" in made.explain()


def test_our_session_rejects_a_suboptimal_model(tmp_path, models):
    ort.InferenceSession(models / "conv_f16.onnx", only_optimal(), provider_options=VIRTUAL).close()
    with pytest.raises(state.Fail, match=f"{PREFER}.*session.fail_on_suboptimal_compiled_model=1"):
        ort.InferenceSession(older(tmp_path, models), only_optimal(), provider_options=VIRTUAL)


def test_the_unmodified_onnxruntime_rejects_a_suboptimal_model(tmp_path, models):
    ort.register(device=VIRTUAL["device"])
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
        shutil.copy(models / name, tmp_path)
    their_session(tmp_path / "conv_f16.onnx", only_optimal()).run(None, {"x": X})
    with pytest.raises(Exception, match=PREFER):
        their_session(older(tmp_path, models), only_optimal())


def test_each_part_is_judged(tmp_path):
    path = write_in_parts(tmp_path, three_steps())
    with ort.InferenceSession(path, only_optimal(), provider_options=VIRTUAL) as made:
        assert made.explain().count(f"verdict:   {OPTIMAL}") == 2
    part = tmp_path / "m.rk3588_parts" / "part1.rknn"
    part.write_bytes(part.read_bytes().replace(b"0.0.0", b"1.4.0"))
    with ort.InferenceSession(path, provider_options=VIRTUAL) as made:
        assert PREFER in made.explain()
    for model in (path, tmp_path / "m.rk3588_ctx.onnx"):
        with pytest.raises(state.Fail, match=PREFER):
            ort.InferenceSession(model, only_optimal(), provider_options=VIRTUAL)


def test_onnxruntimes_functions(models, tmp_path):
    ask = getattr(state, "get_model_compatibility_for_ep_devices", None)
    if ask is None:
        pytest.skip("this onnxruntime has no such function")
    ort.register(device=VIRTUAL["device"])
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == NPU]
    words = {
        "rknn;target=rk3588;toolkit=2.5.0;container=6": OPTIMAL,
        "rknn;target=rk3566;toolkit=2.5.0": UNSUPPORTED,
        "": "EP_NOT_APPLICABLE",
        "other": "EP_NOT_APPLICABLE",
    }
    for text, word in words.items():
        assert word in str(ask(devices, text)), text
    read = getattr(state, "get_compatibility_info_from_model", None)
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
        shutil.copy(models / name, tmp_path)
    so = onnxruntime.SessionOptions()
    so.log_severity_level = 3
    so.add_session_config_entry("ep.context_enable", "1")
    their_session(tmp_path / "conv_f16.onnx", so)
    if read is not None:
        text = read(str(tmp_path / "conv_f16_ctx.onnx"), NPU)
        assert text == "rknn;target=rk3588;toolkit=2.5.0;container=6"
