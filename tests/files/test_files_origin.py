"""The record of a compiled model's origin."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ort_rknn.files import OnnxFileError, Origin, is_stale, origin

MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes((MODELS / "conv_f16.onnx").read_bytes())
    return path


def with_external(folder: Path, count: int, prefix: str = "w") -> Path:
    names = [f"{prefix}{k}" for k in range(count)]
    tensors = [numpy_helper.from_array(np.full((4, 4), k, np.float32), name) for k, name in enumerate(names)]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Sum", ["x", *names], ["y"])], "g",
        [info("x", TensorProto.FLOAT, (4, 4))], [info("y", TensorProto.FLOAT, (4, 4))], tensors,
    )  # fmt: skip
    path = folder / "e.onnx"
    onnx.save(
        helper.make_model(graph), path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0
    )
    return path


def touch(path: Path, seconds: int = 5) -> None:
    info = path.stat()
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns + seconds * 10**9))


def test_it_says_what_the_file_is(model):
    record = Origin.of(model, toolkit="2.5.0", options="float16")
    content = model.read_bytes()
    assert (record.onnx_name, record.size, record.mtime_ns) == ("m.onnx", len(content), model.stat().st_mtime_ns)
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert record.external == () and record.toolkit == "2.5.0" and record.options == "float16"


def test_it_travels_as_text(model):
    record = Origin.of(model, toolkit="2.5.0", options='é "x"')
    text = record.to_custom_string()
    assert text.isascii() and len(text) < 1024 and text.startswith('{"ort_rknn_origin":')
    assert Origin.parse(text) == record


@given(
    name=st.text(min_size=1, max_size=20).filter(lambda text: "/" not in text and "\\" not in text and "\0" not in text
                                                 and text != ".."),
    size=st.integers(0, 2**63), mtime=st.integers(-(2**40), 2**63), options=st.text(max_size=20),
)  # fmt: skip
def test_any_record_travels(name, size, mtime, options):
    record = Origin(name, size, mtime, "0" * 64, toolkit="2.5.0", options=options)
    assert Origin.parse(record.to_custom_string()) == record


def test_other_json_in_the_custom_string_is_left_alone(model):
    record = Origin.of(model)
    text = record.to_custom_string()
    assert Origin.parse('{"labels": ["a", "b"], ' + text[1:]) == record
    assert Origin.parse('{"labels": ["a", "b"]}') is None


@pytest.mark.parametrize("text", [None, "", "labels: a, b", "[1]", "null", '{"ort_rknn_origin": null}'])
def test_no_record(text):
    assert Origin.parse(text) is None


def test_a_record_of_a_later_version_is_not_understood(model):
    text = Origin.of(model).to_custom_string()
    assert Origin.parse(text.replace('"v":1', '"v":2')) is None


@pytest.mark.parametrize("name", ["../up.bin", "/etc/passwd", "a/../../b", "..", "\\\\host\\share", "a\0b"])
def test_a_record_that_points_outside_is_not_taken(model, name):
    outside = origin.FileRecord(name, 1, 1, "0" * 64)
    record = dataclasses.replace(Origin.of(model), external=(outside,))
    assert Origin.parse(record.to_custom_string()) is None


def test_fresh(model, monkeypatch):
    record = Origin.of(model)
    monkeypatch.setattr(origin, "sha256_of", lambda path: pytest.fail("hashed without need"))
    assert is_stale(record, model) is None


def test_another_mtime_with_the_same_contents_is_fresh(model):
    record = Origin.of(model)
    touch(model)
    assert is_stale(record, model) is None


def test_another_name_is_fresh(model):
    record = Origin.of(model)
    assert is_stale(record, model.rename(model.with_name("renamed.onnx"))) is None


def test_another_size_is_stale_without_hashing(model, monkeypatch):
    record = Origin.of(model)
    model.write_bytes(model.read_bytes() + b"\0")
    monkeypatch.setattr(origin, "sha256_of", lambda path: pytest.fail("hashed without need"))
    assert f"has {record.size + 1} bytes, it had {record.size}" in is_stale(record, model)


def test_other_contents_of_the_same_size_are_stale(model):
    record = Origin.of(model)
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    touch(model)
    assert "m.onnx has other contents" in is_stale(record, model)


@pytest.mark.parametrize("mtime", [0, 315532800, 1_700_000_000])
def test_an_mtime_that_every_version_has_proves_nothing(model, mtime):
    """Archives, images and reproducible builds give every file the same mtime, in whole seconds."""
    os.utime(model, (mtime, mtime))
    record = Origin.of(model)
    assert is_stale(record, model) is None
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(model, (mtime, mtime))
    assert "m.onnx has other contents" in is_stale(record, model)


@pytest.mark.parametrize("count", [1, 5])
def test_weights_with_such_an_mtime(tmp_path, count):
    path = with_external(tmp_path, count)
    last = tmp_path / f"w{count - 1}"
    os.utime(last, (0, 0))
    record = Origin.of(path)
    assert is_stale(record, path) is None
    last.write_bytes(last.read_bytes()[:-1] + b"\x01")
    os.utime(last, (0, 0))
    assert "other contents" in is_stale(record, path)


def test_a_missing_onnx_is_a_reason_not_an_exception(model):
    record = Origin.of(model)
    model.unlink()
    assert "cannot be compared" in is_stale(record, model)
    model.mkdir()
    assert "not a regular file" in is_stale(record, model)


@pytest.mark.parametrize("count", [1, 4, 5, 60])
def test_external_data(tmp_path, count):
    path = with_external(tmp_path, count)
    record = Origin.of(path)
    assert len(record.external) == (count if count <= 4 else 1)
    assert Origin.parse(record.to_custom_string()) == record
    assert is_stale(record, path) is None
    last = tmp_path / f"w{count - 1}"
    touch(last)
    assert is_stale(record, path) is None
    content = last.read_bytes()
    last.write_bytes(content[:-1] + b"\x01")
    touch(last, 60)
    assert "other contents" in is_stale(record, path)
    last.write_bytes(content + b"more")
    assert "bytes" in is_stale(record, path)
    last.unlink()
    assert "cannot be compared" in is_stale(record, path)


def test_external_data_outside_the_folder_is_refused(tmp_path):
    path = with_external(tmp_path, 1, prefix="weights")
    path.write_bytes(path.read_bytes().replace(b"weights0", b"../etc/x"))
    with pytest.raises(OnnxFileError, match="outside the model's folder"):
        Origin.of(path)


def test_a_record_that_is_too_long_says_what_to_shorten(model, tmp_path):
    record = Origin.of(model, options="o" * 1000)
    with pytest.raises(ValueError, match=r"fewer than 1024; shorten the options \(give their hash instead\)"):
        record.to_custom_string()
    with pytest.raises(ValueError, match="shorten the ONNX's file name"):
        dataclasses.replace(record, options="", onnx_name="é" * 180).to_custom_string()
    long_names = Origin.of(with_external(tmp_path, 4, prefix="w" * 200))
    with pytest.raises(ValueError, match="shorten the file name 'www"):
        long_names.to_custom_string()


def test_the_limit_is_exact(model):
    record = Origin.of(model, options="")
    room = 1023 - len(dataclasses.replace(record, options="x").to_custom_string()) + 1
    assert len(dataclasses.replace(record, options="x" * room).to_custom_string()) == 1023
    with pytest.raises(ValueError, match="1024 characters"):
        dataclasses.replace(record, options="x" * (room + 1)).to_custom_string()


@pytest.mark.wall_clock
def test_checking_is_quick(model):
    record = Origin.of(model)
    began = time.thread_time()
    for _ in range(100):
        is_stale(record, model)
    assert time.thread_time() - began < 0.1
