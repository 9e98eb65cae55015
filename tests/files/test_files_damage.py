"""Damaged and hostile files: only the documented errors, in bounded time and memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ort_rknn.files import OnnxFileError, Origin, RknnFile, RknnFileError, judge_twin, read_onnx, read_rknn
from ort_rknn.files._wire import bytes_field, text_field

MODELS = Path(__file__).parents[1] / "models"
RKNN = {name: (MODELS / f"{name}.rknn").read_bytes() for name in ("conv_i8.rk3588", "dynamic.rk3588", "nd.rk3588")}
ONNX = {name: (MODELS / f"{name}.onnx").read_bytes() for name in ("image_u8", "dynamic", "two_io")}
PATIENT = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

flips = st.lists(st.tuples(st.integers(0, 2**31), st.integers(1, 255)), min_size=1, max_size=8)


def flipped(data: bytes, changes: list[tuple[int, int]], start: int = 0, end: int | None = None) -> bytes:
    out = bytearray(data)
    span = (len(data) if end is None else end) - start
    for at, bits in changes:
        out[start + at % span] ^= bits
    return bytes(out)


def check_rknn(data: bytes) -> RknnFile | None:
    """The file is read or refused; what is read has the documented types and can be judged."""
    try:
        file = read_rknn(data)
    except RknnFileError:
        return None
    for tensor in file.inputs + file.outputs:
        assert isinstance(tensor.name, str) and tensor.name
        assert tensor.shape is None or all(type(size) is int and size >= 0 for size in tensor.shape)
        assert tensor.quantization is None or tensor.quantization.scale > 0
        assert tensor.mean is None or all(type(value) is float for value in tensor.mean)
    for shapes in file.shape_sets:
        assert len(shapes) == len(file.inputs)
    judge_twin(file, soc="rk3588", runtime_version="2.3.2")
    Origin.parse(file.custom_string)
    return file


def check_onnx(data: bytes) -> None:
    try:
        read_onnx(data)
    except OnnxFileError as error:
        assert str(error)


@pytest.mark.parametrize("name", RKNN)
@PATIENT
@given(at=st.integers(0, 2**31))
def test_rknn_cut_anywhere(name, at):
    data = RKNN[name]
    with pytest.raises(RknnFileError):
        read_rknn(data[: at % len(data)])


@pytest.mark.parametrize("name", RKNN)
@PATIENT
@given(changes=flips)
def test_rknn_with_flipped_bytes(name, changes):
    check_rknn(flipped(RKNN[name], changes))


@pytest.mark.parametrize("name", RKNN)
@PATIENT
@given(changes=flips)
def test_rknn_with_flipped_bytes_in_the_tables(name, changes):
    """The tail of the FlatBuffers part has the tables and texts; most of the rest is weights."""
    data = RKNN[name]
    end = 64 + struct.unpack_from("<Q", data, 16)[0]
    check_rknn(flipped(data, changes, max(64, end - 6000), end))
    check_rknn(flipped(data, changes, 0, 400))
    check_rknn(flipped(data, changes, end, len(data)))


@PATIENT
@given(tail=st.binary(max_size=300))
@example(tail=b"")
def test_random_bytes_behind_the_magic(tail):
    check_rknn(b"RKNN\0\0\0\0" + tail)
    head = b"RKNN\0\0\0\0" + struct.pack("<QQ", 6, len(tail)) + bytes(40)
    check_rknn(head + tail + struct.pack("<Q", 0))
    check_rknn(head + tail + struct.pack("<Q", len(tail)) + tail)


@PATIENT
@given(offset=st.integers(-(2**31), 2**31 - 1), slot=st.integers(0, 200))
def test_wild_offsets(offset, slot):
    """Every aligned word of the head of the tables, set to anything."""
    data = bytearray(RKNN["conv_i8.rk3588"])
    struct.pack_into("<i", data, 64 + 4 * slot, offset)
    check_rknn(bytes(data))


@pytest.mark.parametrize("name", ONNX)
@PATIENT
@given(at=st.integers(0, 2**31))
def test_onnx_cut_anywhere(name, at):
    check_onnx(ONNX[name][: at % len(ONNX[name])])


@pytest.mark.parametrize("name", ONNX)
def test_onnx_cut_within_the_graph_is_refused(name):
    data = ONNX[name]
    for at in range(100, len(data) // 2, 97):
        with pytest.raises(OnnxFileError, match=r"a damaged ONNX model; offset \d+: "):
            read_onnx(data[:at])


@pytest.mark.parametrize("name", ONNX)
@PATIENT
@given(changes=flips)
def test_onnx_with_flipped_bytes(name, changes):
    check_onnx(flipped(ONNX[name], changes))
    check_onnx(flipped(ONNX[name], changes, 0, 300))
    check_onnx(flipped(ONNX[name], changes, len(ONNX[name]) - 300))


@PATIENT
@given(data=st.binary(max_size=400))
def test_random_bytes_as_onnx(data):
    check_onnx(data)
    check_onnx(b"\x08\x08" + bytes_field(7, data))
    check_onnx(bytes_field(7, bytes_field(1, text_field(4, "EPContext") + text_field(7, "com.microsoft") + data)))
    check_onnx(bytes_field(7, bytes_field(11, bytes_field(2, data))))


@PATIENT
@given(text=st.text(max_size=300))
@example(text='{"ort_rknn_origin": ' + "[" * 2000)
@example(text='{"ort_rknn_origin": {"v": 1, "onnx": ["m", 1, 1, "' + "g" * 64 + '"]}}')
@example(text='{"ort_rknn_origin": {"v": 1, "onnx": ["m", true, 1, "' + "0" * 64 + '"]}}')
@example(text='{"ort_rknn_origin": {"v": 1, "onnx": ["", 1, 1, "' + "0" * 64 + '"]}}')
@example(
    text='{"ort_rknn_origin": {"v": 1, "onnx": ["m", 1, 1, "' + "0" * 64 + '"], "external": [["/etc/x", 1, 1, ""]]}}'
)
@example(text='["ort_rknn_origin"]')
def test_foreign_custom_strings_have_no_origin(text):
    assert Origin.parse(text) is None
    assert Origin.parse('{"ort_rknn_origin": ' + text + "}") is None


def nested(depth: int, wrap, seed: bytes = b"") -> bytes:
    for _ in range(depth):
        seed = wrap(seed)
    return seed


def an_if(graph: bytes) -> bytes:
    return bytes_field(1, text_field(4, "If") + bytes_field(5, bytes_field(6, graph)))


def a_sequence(element: bytes) -> bytes:
    return bytes_field(4, bytes_field(1, element))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes_field(7, nested(2000, an_if)), "graphs inside graphs"),
        (bytes_field(7, bytes_field(11, bytes_field(2, nested(2000, a_sequence)))), "types inside types"),
        (b"\x08" + b"\xff" * 11, "more than ten bytes"),
        (b"\x0b\x0c", "wire type 3"),
        (b"\x3a\x05abc", "has 5 bytes, its message 3 more"),
        (b"\x3a\x02\x0a\x05", "has 5 bytes, its message 0 more"),
        (b"\x08\x08", "the end, where a graph was expected"),
        (b"\x00\x00\x00\x00", "found the number 0"),
        (b"\x12\x00\x3d\x00", "the data ends within a field|a field goes on after the end"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "bytes, its message 0 more"),
    ],
)  # fmt: skip
def test_hostile_onnx_is_refused_with_the_offset(data, message):
    with pytest.raises(OnnxFileError, match=message) as caught:
        read_onnx(data)
    assert "offset" in str(caught.value)


@pytest.mark.wall_clock
def test_a_file_of_empty_fields_ends_soon(monkeypatch):
    """16 MB of two-byte nodes: far more fields than the limit, which the test lowers to keep it short."""
    monkeypatch.setattr("ort_rknn.files._onnx_proto.FIELD_LIMIT", 100_000)
    began = time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises(OnnxFileError, match="more fields than any model has"):
            read_onnx(bytes_field(7, b"\x0a\x00" * (8 << 20)))
        with pytest.raises(OnnxFileError, match="more fields than any model has"):
            read_onnx(bytes_field(7, bytes_field(1, b"\x3a\x01x" + b"\x0a\x00" * (8 << 20))))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert time.thread_time() - began < 10


def test_the_field_limit_spans_nested_messages(monkeypatch):
    graph = bytes_field(5, b"\x10\x01" * 40) * 50
    monkeypatch.setattr("ort_rknn.files._onnx_proto.FIELD_LIMIT", 3000)
    assert len(read_onnx(bytes_field(7, graph)).initializers) == 50
    monkeypatch.setattr("ort_rknn.files._onnx_proto.FIELD_LIMIT", 1500)
    with pytest.raises(OnnxFileError, match="more fields"):
        read_onnx(bytes_field(7, graph))
