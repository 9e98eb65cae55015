"""Model files given to a session: recognized by content, and rejected with helpful messages."""

import shutil

import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import InvalidProtobuf, NoSuchFile

import ort_rknn as ort
from ort_rknn._planning.facts import kind_of

VIRTUAL = {"device": "virtual:rk3588"}
CPU = "CPUExecutionProvider"


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "it looks like an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer: fetch the file itself"),
        (b"<!DOCTYPE html><html>", "a web page, as a download that needed a login leaves it"),
        (b"RKNX" + bytes(200), "a model for RKNPU3, which this runtime generation cannot run"),
        (bytes(1000), "nothing but zero bytes"),
        (b"RKNN\0\0\0\0\6" + bytes(20), "cut short, at least 3 bytes are missing"),
        (b"RKNN\0\0\0\0\6" + bytes(7) + b"\xff" * 8 + bytes(100), "damaged: its model part is said to be"),
    ],
)
@pytest.mark.parametrize(
    "arguments", [{}, {"provider_options": VIRTUAL}, {"providers": [CPU]}], ids=["nobody asked", "asked", "others"]
)
def test_what_is_no_compiled_model(tmp_path, content, text, arguments):
    path = tmp_path / "model.RKNN"
    path.write_bytes(content)
    with pytest.raises(InvalidProtobuf, match=text) as caught:
        ort.InferenceSession(path, **arguments)
    assert str(caught.value).startswith(f"[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : {path}: ")


@pytest.mark.parametrize("content, text", [(b"RKNNxx", "cut short"), (b"RKNX" + bytes(99), "a model for RKNPU3")])
def test_what_is_no_compiled_model_in_memory(content, text):
    with pytest.raises(InvalidProtobuf, match=f"the model in memory: .*{text}"):
        ort.InferenceSession(content)


def test_a_compiled_model_that_is_not_there_is_onnxruntimes_error(tmp_path):
    with pytest.raises(NoSuchFile):
        ort.InferenceSession(tmp_path / "model.rknn", provider_options=VIRTUAL)


def test_an_encrypted_model_goes_to_the_runtime(tmp_path):
    """Only the runtime can read it; the virtual one cannot."""
    path = tmp_path / "model.rknn"
    path.write_bytes(b"CYPTRKNN" + bytes(500))
    assert kind_of(path) == kind_of(path.read_bytes()) == "rknn"
    with pytest.raises(ort.NpuUnavailable, match=r"model\.rknn does not load on virtual:rk3588"):
        ort.InferenceSession(path, provider_options=VIRTUAL)


def test_content_counts_not_the_name(models, tmp_path):
    onnx, rknn = tmp_path / "onnx.rknn", tmp_path / "rknn.onnx"
    shutil.copy(models / "conv_f16.onnx", onnx)
    shutil.copy(models / "conv_f16.rk3588.rknn", rknn)
    assert (kind_of(onnx), kind_of(rknn)) == ("onnx", "rknn")
    assert ort.InferenceSession(onnx, providers=[CPU]).get_inputs()[0].name == "x"
    with ort.InferenceSession(rknn, provider_options=VIRTUAL) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"


@pytest.mark.parametrize(
    "model, options, text",
    [
        (
            "conv_f16.onnx",
            {"onnx_model": "x.onnx"},
            r"onnx_model='x\.onnx' has no effect here: conv_f16\.onnx is the ONNX",
        ),
        (
            "conv_f16.rk3588.rknn",
            {"rknn_model": "x"},
            r"rknn_model='x' has no effect here: conv_f16\.rk3588\.rknn is a com",
        ),
        (
            "conv_f16.rk3588.rknn",
            {"onnx_model": "gone.onnx"},
            r"onnx_model='gone\.onnx' cannot be read: .*No such file",
        ),
    ],
)
@pytest.mark.parametrize("device", ["virtual:rk3588", "rk3566"])
def test_options_that_would_be_without_effect(models, model, options, text, device):
    with pytest.raises(ort.OptionError, match=text):
        ort.InferenceSession(models / model, provider_options={"device": device, **options})


def test_an_onnx_option_that_names_no_onnx(models):
    rknn = str(models / "conv_i8.rk3588.rknn")
    with pytest.raises(ort.OptionError, match=r"cannot be read: .*it looks like a compiled Rockchip model"):
        ort.InferenceSession(models / "conv_f16.rk3588.rknn", provider_options={**VIRTUAL, "onnx_model": rknn})


def test_a_twin_that_does_not_load_gives_way_to_the_next_one(models, tmp_path, caplog):
    """Fit by name, target and version, but not of this ONNX: found when it is loaded."""
    from ort_rknn_virtual.control import virtual_npu

    npu = virtual_npu("rk3588")
    npu.reset()
    shutil.copy(models / "conv_f16.onnx", tmp_path / "m.onnx")
    shutil.copy(models / "conv_f16.rk3588.rknn", tmp_path / "m-rk3588.rknn")
    shutil.copy(models / "two_io.rk3588.rknn", tmp_path / "m.rk3588.rknn")
    with ort.InferenceSession(tmp_path / "m.onnx", provider_options={"device": "virtual:rk3588"}) as session:
        told = session.explain()
        assert session.get_providers()[0] == "RKNNExecutionProvider"
        assert "compiled model m-rk3588.rknn" in told
        assert "m.rk3588.rknn is not used: " in told
    assert any("m.rk3588.rknn" in r.getMessage() and r.levelname == "WARNING" for r in caplog.records)
    assert npu.counters().contexts == 0
