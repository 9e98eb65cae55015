"""What errors say about a model and a runtime; the files may be damaged."""

import json

import pytest

from ort_rknn.adapter import ModelSource
from ort_rknn_librknnrt._hints import describe_model, describe_runtime, run_hint

UNKNOWN = "It is not known which toolkit made the model"


def model(trailer, *, size=None, length=128):
    """A model file as far as its container goes."""
    head = b"RKNN" + bytes(4) + (6).to_bytes(8, "little") + length.to_bytes(8, "little") + bytes(40)
    size = len(trailer) if size is None else size
    return head + bytes(min(length, 4096)) + size.to_bytes(8, "little") + trailer


def described(data, tmp_path):
    path = tmp_path / "model.rknn"
    path.write_bytes(data)
    text = describe_model(ModelSource(str(path)))
    if data:
        assert describe_model(ModelSource(data=data)) == text
    return text


def test_a_model(tmp_path):
    trailer = json.dumps({"version": "2.3.0", "target_platform": ["rk3566", "rk3568"]}).encode()
    assert described(model(trailer), tmp_path) == "The model was made by toolkit 2.3.0 for rk3566, rk3568"
    assert described(model(b'{"version": "2.3.0"}'), tmp_path) == "The model was made by toolkit 2.3.0"


@pytest.mark.parametrize("data", [b"", b"RKN", b"ONNX" * 100])
def test_no_model(tmp_path, data):
    assert described(data, tmp_path) == "The file is not an RKNN model (no RKNN magic)"


@pytest.mark.parametrize(
    "data",
    [
        b"RKNN",
        model(b"{}"),
        model(b"[]"),
        model(b"{"),
        model(b"\xff\xfe"),
        model(b'{"version": 7}'),
        model(b'{"version": "2.3.0"}', size=0),
        model(b'{"version": "2.3.0"}', size=2**63),
        model(b'{"version": "2.3.0"}', length=2**64 - 1),
        model(b'{"version": "2.3.0"}', length=2**62),
        model(b"[" * 200_000),
    ],
    ids=range(11),
)
def test_a_damaged_model(tmp_path, data):
    assert described(data, tmp_path) == UNKNOWN


def test_what_a_model_says_is_cut(tmp_path):
    trailer = json.dumps({"version": "2" * 9999, "target_platform": ["x" * 9999] * 99}).encode()
    assert len(described(model(trailer), tmp_path)) < 256


def test_no_source():
    assert describe_model(ModelSource("/nowhere/model.rknn")) == UNKNOWN
    assert describe_model(ModelSource(data=b"")) == UNKNOWN


def test_a_runtime_says_its_version(tmp_path):
    path = tmp_path / "librknnrt.so"
    path.write_bytes(bytes(99) + b"librknnrt version: 2.3.2 (429f97ae6b@2025-04-09)\0" + bytes(99))
    assert describe_runtime(str(path)) == f"the runtime {path} is 2.3.2"


@pytest.mark.parametrize("content", [b"", b"nothing", b"librknnrt version: ", b"librknnrt version: \xff\xfe "])
def test_a_runtime_that_does_not(tmp_path, content):
    path = tmp_path / "librknnrt.so"
    path.write_bytes(content)
    assert describe_runtime(str(path)) == f"the runtime is {path}"
    path.unlink()
    assert describe_runtime(str(path)) == f"the runtime is {path}"


def test_every_code_of_a_run_has_a_hint():
    for call in ("rknn_inputs_set", "rknn_run", "rknn_outputs_get", "rknn_outputs_release", "rknn_set_input_shapes"):
        for code in range(-16, 0):
            assert run_hint(call, code, 0).endswith(".")
