"""read_rknn on files of the vendor's converter, and on other files."""

from __future__ import annotations

import json
import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from ort_rknn.adapter import Quantization
from ort_rknn.files import RknnFileError, is_rknn, is_rknpu3, read_rknn
from ort_rknn.files._repr import parse_repr

MODELS = Path(__file__).parents[1] / "models"
FILES = json.loads((MODELS / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
CONV = MODELS / "conv_f16.rk3588.rknn"


def container(model: bytes = b"", trailer: bytes = b"{}", version: int = 6) -> bytes:
    """An .rknn's container around any model part."""
    model = model or b"\0\0\0\0RKNN" + bytes(56)
    head = b"RKNN\0\0\0\0" + struct.pack("<QQ", version, len(model)) + bytes(40)
    return head + model + struct.pack("<Q", len(trailer)) + trailer


@pytest.mark.parametrize("name", FILES)
def test_real_files_agree_with_the_manifest(name):
    entry = FILES[name]
    declared = entry["declared"]
    file = read_rknn(MODELS / name)
    batch = int(declared["rknn_batch_size"]) or 1

    assert file.unknown == ()
    assert file.size == entry["size"]
    assert file.format_version == 6 and not file.encrypted
    assert file.targets == (entry["target"],)
    assert file.toolkit_version == "2.5.0" and file.compiler.startswith("2.5.0(")
    assert file.framework == "ONNX"
    assert file.custom_string == declared["custom_string"]
    assert file.batch == batch
    assert file.dynamic == (declared["kind"] == "dynamic_shape")
    for side in ("inputs", "outputs"):
        tensors = getattr(file, side)
        assert [tensor.name for tensor in tensors] == [port["name"] for port in entry[side]]
        for tensor, onnx, compiled in zip(tensors, entry[side], declared[side], strict=True):
            assert tensor.dtype == onnx["dtype"]
            assert tensor.runtime_dtype == compiled["dtype"]
            assert tensor.shape[:1] == tuple(size * batch for size in compiled["shape"][:1])
            assert tensor.shape[1:] == tuple(compiled["shape"][1:])
            rank4 = "NHWC" if side == "inputs" else "NCHW"
            assert tensor.layout == (rank4 if len(tensor.shape) == 4 else "UNDEFINED")
            if "scale" in compiled and compiled["dtype"] != "bool":  # a bool is written with scale 1, zero point 0
                assert tensor.quantization.scale == pytest.approx(compiled["scale"])
                assert tensor.quantization.zero_point == compiled["zero_point"]
            else:
                assert tensor.quantization is None


def test_every_kind_of_quantized_file_is_in_the_manifest():
    """The test above proves nothing about scales if no entry has one."""
    inputs = [port for entry in FILES.values() for port in entry["declared"]["inputs"]]
    assert sum("scale" in port and port["dtype"] == "int8" for port in inputs) >= 2
    assert any("scale" in port and port["dtype"] == "bool" for port in inputs)


@pytest.mark.parametrize("name", FILES)
def test_bytes_and_path_read_the_same(name):
    assert read_rknn((MODELS / name).read_bytes()) == read_rknn(str(MODELS / name))


def test_normalization_is_read():
    (image,) = read_rknn(MODELS / "image_u8.rk3588.rknn").inputs
    assert image.mean == pytest.approx((123.675, 116.28, 103.53))
    assert image.std == pytest.approx((58.395, 57.12, 57.375))
    (plain,) = read_rknn(CONV).inputs
    assert (plain.mean, plain.std) == ((0.0,), (1.0,))


def test_mean_and_std_are_equally_long():
    """The file has one mean if all are 0 and one std if all are 1; the values of `line` are not applied to it."""
    file = read_rknn(MODELS / "mean_std.rk3562.rknn")
    assert {tensor.name: (tensor.mean, tensor.std) for tensor in file.inputs} == {
        "rgb": ((0.0,) * 3, (255.0,) * 3),
        "rgba": ((10.0, 20.0, 30.0, 40.0), (1.0,) * 4),
        "gray": ((5.0,), (2.0,)),
        "six": ((0.0,) * 6, (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)),
        "line": ((0.0,), (1.0,)),
    }
    assert file.unknown == ()


@pytest.mark.parametrize("mean", ["[10, 20]", "[10, 20, 30]", "[]", "'all'"])
def test_a_mean_that_is_not_by_channel_is_unknown(mean):
    data = (MODELS / "mean_std.rk3562.rknn").read_bytes()
    before = b"[10, 20, 30, 40]"
    assert data.count(before) == 1
    file = read_rknn(data.replace(before, mean.encode().ljust(len(before))))
    rgba = file.inputs[1]
    assert (rgba.mean, rgba.std) == (None, None)
    assert "the mean and std of 'rgba'" in file.unknown


def test_dynamic_sets_come_largest_first_with_their_outputs():
    file = read_rknn(MODELS / "dynamic.rk3588.rknn")
    assert file.shape_sets == (((1, 3, 32, 32),), ((1, 3, 16, 24),), ((1, 3, 16, 16),))
    assert file.output_shape_sets == (((1, 4, 32, 32),), ((1, 4, 16, 24),), ((1, 4, 16, 16),))
    assert read_rknn(CONV).shape_sets == ()


def test_a_scalar_output_has_no_axes():
    point = read_rknn(MODELS / "scalarish.rk3588.rknn").outputs[2]
    assert (point.name, point.shape, point.layout) == ("point", (), "UNDEFINED")


def test_the_trailer_answers_where_the_model_table_does_not():
    data = bytearray((MODELS / "image_u8.rk3588.rknn").read_bytes())
    data[68:72] = b"XXXX"
    file = read_rknn(bytes(data))
    assert any("identifier" in text for text in file.unknown)
    assert file.targets == ("rk3588",) and file.toolkit_version == "2.5.0" and file.framework == "ONNX"
    (image,), (logits,) = file.inputs, file.outputs
    assert (image.name, image.shape, image.runtime_dtype) == ("image", (1, 3, 24, 24), "int8")
    assert (logits.name, logits.shape) == ("logits", (1, 10))
    assert image.dtype is None and image.quantization is None and image.mean is None
    assert "the quantization of 'image'" in file.unknown


def test_the_graph_answers_where_the_attributes_are_damaged():
    data = CONV.read_bytes()
    start = data.index(b"{'attrs':")
    file = read_rknn(data[:start] + b"!" + data[start + 1 :])
    assert any(text.startswith("the attributes") for text in file.unknown)
    assert file.inputs[0].shape == (1, 3, 32, 32) and file.inputs[0].runtime_dtype == "float16"
    assert file.inputs[0].dtype is None and "the ONNX type of 'x'" in file.unknown


def test_the_shape_sets_survive_damaged_attributes():
    data = (MODELS / "dynamic.rk3588.rknn").read_bytes()
    start = data.index(b"{'attrs':")
    file = read_rknn(data[:start] + b"!" + data[start + 1 :])
    assert file.shape_sets == (((1, 3, 32, 32),), ((1, 3, 16, 24),), ((1, 3, 16, 16),))


@pytest.mark.parametrize("length", [8, 23, 24, 63, 64, 71, 72, 1000, -100, -1])
def test_a_cut_file_says_so(length):
    data = CONV.read_bytes()
    cut = data[:length]
    with pytest.raises(RknnFileError, match=r"cut short, (at least )?[0-9]+ bytes are missing") as caught:
        read_rknn(cut)
    if length < 0:
        assert f"cut short, {-length} bytes are missing ({len(cut)} are there)" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "an empty file"),
        (bytes(100), "zero bytes"),
        (b"\x08\x08\x12\x07pytorch" + bytes(60), "an ONNX model"),
        (b"\x7fELF\x02\x01\x01", "an ELF library"),
        (b"PK\x03\x04" + bytes(30), "a ZIP archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"Not Found\n", "text"),
        (b"RKNX" + bytes(60), "RKNPU3"),
        (b"\x28\0\0\0ORTM" + bytes(60), "ORT format"),
        (b"\x9f\x01\x02\x03\x80", "something unknown"),
        (b"RKN", "text"),
    ],
)
def test_what_is_not_a_model_is_named(data, what):
    with pytest.raises(RknnFileError, match=r"not an \.rknn model; it looks like") as caught:
        read_rknn(data)
    assert what in str(caught.value) and "the model in memory" in str(caught.value)


def test_a_real_onnx_is_named(tmp_path):
    for path in MODELS.glob("*.onnx"):
        with pytest.raises(RknnFileError, match="looks like an ONNX model") as caught:
            read_rknn(path)
        assert str(path) in str(caught.value)


def test_magic():
    assert is_rknn(CONV.read_bytes()[:8]) and is_rknn(b"CYPTRKNN")
    assert not is_rknn(b"RKNX") and not is_rknn(b"") and not is_rknn(b"\x08\x08")
    assert is_rknpu3(b"RKNX\0\0\0\0") and not is_rknpu3(b"RKNN\0\0\0\0")


@pytest.mark.parametrize("at", [16, None])
def test_impossible_lengths_are_errors(at):
    data = bytearray(CONV.read_bytes())
    where = at if at is not None else 64 + struct.unpack_from("<Q", data, 16)[0]
    struct.pack_into("<Q", data, where, 2**60)
    with pytest.raises(RknnFileError, match=f"damaged: its .* part is said to be {2**60} bytes long"):
        read_rknn(bytes(data))


def test_an_encrypted_file_is_unknown_not_wrong():
    file = read_rknn(b"CYPTRKNN" + os.urandom(500))
    assert file.encrypted and file.format_version is None and file.inputs == () and "encrypted" in file.unknown[0]


def test_a_container_of_another_version():
    file = read_rknn(container(trailer=b'{"version": "9.1.0", "target_platform": ["rk9999"]}', version=9))
    assert file.format_version == 9 and file.targets == ("rk9999",) and file.toolkit_version == "9.1.0"
    assert any("container version 9" in text for text in file.unknown)
    with_other_lengths = b"RKNN\0\0\0\0" + struct.pack("<QQ", 9, 2**50) + bytes(200)
    assert "container version 9 is not known" in read_rknn(with_other_lengths).unknown[0]


def test_the_previous_generation_has_a_narrow_header():
    trailer = b'{"version": "1.7.5", "target_platform": ["rk1808"], "norm_tensor": [], "graph": []}'
    data = b"RKNN\0\0\0\0" + struct.pack("<QQ", 1, 16) + b"VPMN" + bytes(12) + struct.pack("<Q", len(trailer)) + trailer
    file = read_rknn(data)
    assert file.targets == ("rk1808",) and file.toolkit_version == "1.7.5" and file.unknown != ()


def test_bytes_after_the_end_are_noted():
    assert read_rknn(CONV.read_bytes() + b"tail").unknown == ("4 bytes after the end of the model",)


@pytest.mark.parametrize(
    "trailer",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"graph": {}, "norm_tensor": 3, "version": [], "target_platform": {"a": 1}}',
        b'{"graph": [{"left": "input", "right": "norm_tensor", "right_tensor_id": []}], "norm_tensor": [[], 1, {}]}',
        b'{"norm_tensor": [{"tensor_id": 0, "url": "x", "size": [1, true, "3"], "dtype": 4}],'
        b' "graph": [{"left": "input", "right": "norm_tensor", "right_tensor_id": 0}]}',
        b'{"norm_tensor": [{"tensor_id": 0, "url": "x", "size": [-1, 1e99]}], "graph": [3]}',
    ],
)
def test_odd_trailers_are_unknown_not_errors(trailer):
    file = read_rknn(container(trailer=trailer))
    assert "the inputs and outputs" in file.unknown
    assert all(tensor.shape is None for tensor in file.inputs)


def test_not_regular_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_rknn(tmp_path / "none.rknn")
    with pytest.raises(IsADirectoryError):
        read_rknn(tmp_path)
    os.mkfifo(tmp_path / "pipe.rknn")
    with pytest.raises(RknnFileError, match="not a regular file"):
        read_rknn(tmp_path / "pipe.rknn")


@pytest.mark.wall_clock
def test_a_large_file_is_not_read_into_memory_and_not_left_open(tmp_path, descriptors):
    """300 MB of weights between the header and the trailer."""
    path = tmp_path / "large.rknn"
    length = 300 << 20
    trailer = b'{"version": "2.5.0", "target_platform": ["rk3588"]}'
    with path.open("wb") as file:
        file.write(b"RKNN\0\0\0\0" + struct.pack("<QQ", 6, length) + bytes(40) + b"\x10\0\0\0RKNN")
        file.seek(64 + length)
        file.write(struct.pack("<Q", len(trailer)) + trailer)
    open_before = descriptors()
    tracemalloc.start()
    try:
        began = time.thread_time()
        assert read_rknn(path).targets == ("rk3588",)
        took = time.thread_time() - began
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert took < 0.2
    assert descriptors() == open_before
    assert str(path) not in Path("/proc/self/maps").read_text()


@pytest.mark.wall_clock
def test_reading_is_quick():
    best = min(_seconds(lambda: read_rknn(CONV)) for _ in range(20))
    assert best < 0.005


def _seconds(call) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": [1, -2.5, 1e-7, 3e20], "b": {"c": True, "d": None, "e": False}},
        {"it's": 'say "x"', "back\\slash": "line\nbreak\ttab", "é\x00\x7f\u200b": "\U0001f600", "'\"": "\ud800"},
        {"True": "None", "(": ")", "nan": "inf", "a, 'b': {": "}"},
        [float("inf"), [], [[]]],
    ],
)
def test_repr_is_read_back(value):
    assert parse_repr(repr(value)) == value


def test_repr_tuples_become_lists():
    assert parse_repr("{'a': (1, 2)}") == {"a": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{'a'}",
        "f()",
        "{'a': __import__('os')}",
        "[" * 200_000,
        "'\\x'",
        "'\\N{nothing}'",
        "{1, 2}",
    ],
)
def test_what_is_not_plain_data_is_refused(text):
    with pytest.raises(ValueError):
        parse_repr(text)


@pytest.mark.wall_clock
def test_hostile_repr_text_is_bounded():
    text = "[" + "1," * 500_000 + "1]"
    tracemalloc.start()
    try:
        began = time.process_time()
        parse_repr(text)
        assert time.process_time() - began < 3
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_quantization_is_the_seams_own():
    assert isinstance(read_rknn(MODELS / "conv_i8.rk3588.rknn").inputs[0].quantization, Quantization)
