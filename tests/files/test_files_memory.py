"""Hostile .rknn files: reading any file takes no more memory than its size, or a megabyte, and ends soon."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from ort_rknn.files import read_rknn
from ort_rknn.files._repr import parse_repr

LEAST = 1 << 20
GRAPHS, ATTRIBUTES, INPUT_JSON, OUTPUT_JSON, SHAPE_KIND = 2, 3, 12, 13, 16
TENSORS, INPUTS, OUTPUTS = 0, 2, 3
DIMS, NAME, SCALE, ZERO_POINT = 4, 5, 10, 11


class Builder:
    """FlatBuffers where several fields may lead to the same object, which no honest writer makes."""

    def __init__(self) -> None:
        self.bytes = bytearray(b"\0\0\0\0RKNN")

    def _align(self) -> int:
        self.bytes += bytes(-len(self.bytes) % 4)
        return len(self.bytes)

    def vector(self, items: bytes, count: int) -> int:
        position = self._align()
        self.bytes += struct.pack("<I", count) + items
        return position

    def text(self, text: bytes) -> int:
        return self.vector(text, len(text))

    def table(self, *slots: int) -> tuple[int, dict[int, int]]:
        """Its position, and the position of each slot's offset."""
        vtable = self._align()
        self.bytes += struct.pack("<HH", 4 + 2 * (max(slots) + 1), 4 + 4 * len(slots)) + bytes(2 * (max(slots) + 1))
        position = self._align()
        self.bytes += struct.pack("<i", position - vtable)
        fields = {}
        for slot in slots:
            fields[slot] = len(self.bytes)
            struct.pack_into("<H", self.bytes, vtable + 4 + 2 * slot, fields[slot] - position)
            self.bytes += bytes(4)
        return position, fields

    def lead(self, field: int, target: int) -> None:
        struct.pack_into("<I", self.bytes, field, target - field)

    def file(self, root: int, trailer: bytes = b"{}") -> bytes:
        struct.pack_into("<I", self.bytes, 0, root)
        self.bytes += bytes(-len(self.bytes) % 64)
        head = b"RKNN\0\0\0\0" + struct.pack("<QQ", 6, len(self.bytes)) + bytes(40)
        return head + bytes(self.bytes) + struct.pack("<Q", len(trailer)) + trailer


def one_tensor_many_times(graphs: int, ports: int, name: int, scales: int = 0) -> bytes:
    build = Builder()
    root, model = build.table(GRAPHS, SHAPE_KIND)
    many = build.vector(bytes(4 * graphs), graphs)
    build.lead(model[GRAPHS], many)
    build.lead(model[SHAPE_KIND], build.text(b"dynamic_shape"))
    graph, fields = build.table(TENSORS, INPUTS, OUTPUTS)
    for index in range(graphs):
        build.lead(many + 4 + 4 * index, graph)
    tensors = build.vector(bytes(4), 1)
    build.lead(fields[TENSORS], tensors)
    indices = build.vector(bytes(4 * ports), ports)
    build.lead(fields[INPUTS], indices)
    build.lead(fields[OUTPUTS], indices)
    tensor, fields = build.table(DIMS, NAME, SCALE, ZERO_POINT)
    build.lead(tensors + 4, tensor)
    build.lead(fields[NAME], build.text(b"n" * name))
    build.lead(fields[DIMS], build.vector(struct.pack("<16i", *[100_000] * 16), 16))
    numbers = build.vector(struct.pack(f"<{scales}i", *[1] * scales), scales)
    build.lead(fields[SCALE], numbers)
    build.lead(fields[ZERO_POINT], numbers)
    return build.file(root)


def texts(text: bytes, size: int = 0) -> bytes:
    """A file whose three texts are all this one. ``size``: of its weights."""
    build = Builder()
    root, model = build.table(ATTRIBUTES, INPUT_JSON, OUTPUT_JSON)
    where = build.text(text)
    for field in model.values():
        build.lead(field, where)
    build.vector(bytes(size), size)
    return build.file(root)


def peak(data: bytes) -> int:
    tracemalloc.start()
    try:
        file = read_rknn(data)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not any(len(text) > 5000 for text in file.unknown)
    return taken


@pytest.mark.parametrize(
    "data",
    [
        one_tensor_many_times(512, 4096, 4096),
        one_tensor_many_times(1, 4096, 4096),
        one_tensor_many_times(512, 1, 1),
        one_tensor_many_times(1, 4096, 1),
        one_tensor_many_times(1, 4096, 1, scales=1 << 16),
    ],
    ids=len,
)
def test_offsets_that_all_lead_to_the_same_place(data):
    assert peak(data) < max(len(data), LEAST) + 100_000


#: Items whose value needs many times the memory of their text.
ITEMS = [b"[],", b"{},", b"(),", b"0.5,", b'"ab",', b"'ab',", b"[[[],],],".replace(b",]", b"]"), b'{"a":1},', b"1e9,"]


@pytest.mark.parametrize("count", [1_000, 30_000, 400_000])
@pytest.mark.parametrize("item", ITEMS, ids=bytes.decode)
def test_texts_that_take_many_times_their_length(item, count):
    text = b'{"a":[' + item * count + b"0]}"
    data = texts(text)
    assert peak(data) < max(len(data), LEAST) + 100_000
    # With enough weights the text is parsed: the estimate is what it needs.
    data = texts(text, 20 * len(text)) if count == 30_000 else data
    assert peak(data) < max(len(data), LEAST) + 100_000


@pytest.mark.parametrize("count", [1_000, 30_000])
def test_a_trailer_that_takes_many_times_its_length(count):
    data = Builder().file(0, b'{"norm_tensor":[' + b"[],{}," * count + b"0]}")
    assert peak(data) < max(len(data), LEAST) + 100_000


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["'" + "\\'" * 200_000, '"' + '\\"' * 200_000, "'" + "\\\\" * 200_000 + "\\"])
def test_a_string_without_an_end_is_read_once(text):
    """Trying each quote as a start would take minutes."""
    with pytest.raises(ValueError, match="a string without an end|not a string"):
        parse_repr(text)


@pytest.mark.parametrize("text", ["'", '"', "'a", "'a\\", "'a\\'", "{'a': 'b}", "'a\"", "\"a'"])
def test_short_strings_without_an_end(text):
    with pytest.raises(ValueError, match="a string without an end|not a string"):
        parse_repr(text)


def test_a_model_of_many_inputs_is_read():
    """The budget is enough for a valid file."""
    ports = 60
    build = Builder()
    root, model = build.table(GRAPHS)
    graphs = build.vector(bytes(4), 1)
    build.lead(model[GRAPHS], graphs)
    graph, fields = build.table(TENSORS, INPUTS, OUTPUTS)
    build.lead(graphs + 4, graph)
    tensors = build.vector(bytes(4 * ports), ports)
    build.lead(fields[TENSORS], tensors)
    indices = build.vector(struct.pack(f"<{ports}i", *range(ports)), ports)
    build.lead(fields[INPUTS], indices)
    build.lead(fields[OUTPUTS], indices)
    for index in range(ports):
        tensor, fields = build.table(DIMS, NAME)
        build.lead(tensors + 4 + 4 * index, tensor)
        build.lead(fields[NAME], build.text(f"/model.{index}/some/module/of/the/network/output_0".encode()))
        build.lead(fields[DIMS], build.vector(struct.pack("<4i", 1, 3, 80, 80), 4))
    file = read_rknn(build.file(root))
    assert len(file.inputs) == len(file.outputs) == ports
    assert file.inputs[7].shape == (1, 3, 80, 80)
