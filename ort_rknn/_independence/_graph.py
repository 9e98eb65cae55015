"""Reads a graph's nodes, with their attributes, and its constants. Only small constants are copied from the file."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..files import _onnx_proto as proto
from ..files._onnx_scan import MainGraph, read_head, scan
from ..files._source import Data
from ..files._wire import BYTES, FIXED32, VARINT, WireError, WireReader, signed
from ._values import ENTRY_LIMIT

#: Nodes up to this size are copied from the file, because reading them is faster then.
_COPIED = 1 << 16
#: Attributes up to this size are cached for later nodes with the same attribute.
_SHARED = 64
_RANK_LIMIT = 64

#: Fields of a tensor that contain its elements.
_TENSOR_NUMBERS = (proto.TENSOR_RAW, proto.TENSOR_INT32S, proto.TENSOR_INT64S, proto.TENSOR_FLOATS)
#: numpy's types of raw data by TensorProto.DataType.
_RAW = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
#: Types whose elements may be in int32_data.
_IN_INT32 = frozenset((2, 3, 4, 5, 6, 9))

Numbers = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor in the file."""

    name: str
    dims: tuple[int, ...] | None
    """None if they are unknown (a sparse tensor)."""
    elem_type: int
    """TensorProto.DataType."""
    numbers: Numbers | None = None
    """The elements of a small numeric tensor, in its shape."""


@dataclass(slots=True)
class Attribute:
    """An attribute of a node, as far as the rules use it."""

    number: int | None = None
    real: float | None = None
    text: str | None = None
    numbers: list[int] = field(default_factory=list)
    reals: list[float] = field(default_factory=list)
    tensor: Constant | None = None


@dataclass(slots=True)
class Node:
    """A node. Its attributes are read on demand."""

    op_type: str
    domain: str
    name: str
    inputs: list[str]
    outputs: list[str]
    _reader: WireReader
    _spans: list[tuple[int, int]]
    _shared: dict[bytes, tuple[str, Attribute]]
    """Attributes that were read before, by their bytes: most nodes of a graph have the same ones."""
    _attributes: dict[str, Attribute] | None = None

    @property
    def attributes(self) -> dict[str, Attribute]:
        """By name. Raises WireError if one is damaged."""
        if self._attributes is None:
            self._attributes = dict(self._read(*span) for span in self._spans)
        return self._attributes

    def _read(self, start: int, end: int) -> tuple[str, Attribute]:
        if end - start > _SHARED:
            return _read_attribute(self._reader, start, end)
        contents = self._reader.data[start:end]
        found = self._shared.get(contents)
        if found is None:
            found = self._shared[contents] = _read_attribute(self._reader, start, end)
        return found

    def __str__(self) -> str:
        if self.name:
            return f"{self.op_type} {self.name!r}"
        first = next((name for name in self.outputs if name), "")
        return f"{self.op_type} (the node that produces {first!r})"


class NodeGraph(MainGraph[Node]):
    """A model's main graph."""

    def constants(self) -> dict[str, Constant]:
        """The initializers by name. Raises WireError if one is damaged."""
        reader = WireReader(self.data, proto.FIELD_LIMIT)
        found: dict[str, Constant] = {}
        for name, (number, span) in self.initializers.items():
            if number == proto.GRAPH_INITIALIZER:
                found[name] = _read_constant(reader, *span)
                continue
            for part, kind, first, last in reader.fields(*span):
                if part == proto.SPARSE_VALUES and kind == BYTES:
                    found[name] = Constant(name, None, _read_constant(reader, first, last).elem_type)
        return found


def read_nodes(data: Data) -> NodeGraph:
    """The model's main graph. Raises WireError. The result must not be used after ``data`` was closed."""
    graph = NodeGraph(data)
    shared: dict[bytes, tuple[str, Attribute]] = {}
    scan(graph, lambda reader, start, end: _read_node(reader, start, end, shared))
    return graph


def _read_node(reader: WireReader, start: int, end: int, shared: dict[bytes, tuple[str, Attribute]]) -> Node:
    if end - start <= _COPIED:
        # The copy's fields count too, so that reading a message always uses up the limit.
        inner = WireReader(reader.data[start:end], reader.left)
        start, end = 0, end - start
    else:
        inner = reader
    head = read_head(inner, start, end)
    reader.left -= len(head.inputs) + len(head.outputs) + len(head.attributes)
    return Node(head.op_type, head.domain, head.name, head.inputs, head.outputs, inner, head.attributes, shared)


def _read_attribute(reader: WireReader, start: int, end: int) -> tuple[str, Attribute]:
    data = reader.data
    name = ""
    found = Attribute()
    for number, kind, first, last in reader.fields(start, end):
        if number == proto.ATTRIBUTE_NAME and kind == BYTES:
            name = reader.text(first, last)
        elif number == proto.ATTRIBUTE_I and kind == VARINT:
            found.number = signed(first)
        elif number == proto.ATTRIBUTE_F and kind == FIXED32:
            found.real = struct.unpack("<f", data[last - 4 : last])[0]
        elif number == proto.ATTRIBUTE_S and kind == BYTES:
            found.text = reader.text(first, min(last, first + 4096))
        elif number == proto.ATTRIBUTE_T and kind == BYTES:
            found.tensor = _read_constant(reader, first, last)
        elif number == proto.ATTRIBUTE_INTS:
            found.numbers += _read_varints(reader, kind, first, last)
        elif number == proto.ATTRIBUTE_FLOATS:
            found.reals += _read_reals(data, kind, first, last)
    return name, found


def _read_constant(reader: WireReader, start: int, end: int) -> Constant:
    name = ""
    elem_type = 0
    dims: list[int] = []
    outside = False
    spans: list[tuple[int, int, int, int]] = []
    for number, kind, first, last in reader.fields(start, end):
        if number == proto.TENSOR_DIMS:
            dims += _read_varints(reader, kind, first, last)
            if len(dims) > _RANK_LIMIT:
                raise WireError(f"offset {first}: a tensor of more than {_RANK_LIMIT} dimensions")
        elif number == proto.TENSOR_DATA_TYPE and kind == VARINT:
            elem_type = first
        elif number == proto.TENSOR_NAME and kind == BYTES:
            name = reader.text(first, last)
        elif number == proto.TENSOR_LOCATION and kind == VARINT:
            outside = first != 0
        elif number in _TENSOR_NUMBERS and len(spans) <= ENTRY_LIMIT:
            spans.append((number, kind, first, last))
    shape = tuple(dims)
    size = 1
    for dim in dims:
        size *= dim
    if any(dim < 0 for dim in dims):
        raise WireError(f"offset {start}: a tensor with a negative dimension")
    numbers = None if outside or size > ENTRY_LIMIT else _read_numbers(reader, elem_type, spans, size)
    return Constant(name, shape, elem_type, None if numbers is None else numbers.reshape(shape))


def _read_numbers(
    reader: WireReader, elem_type: int, spans: list[tuple[int, int, int, int]], size: int
) -> Numbers | None:
    """The elements of a tensor of ``size`` numbers; None if they have another type, or are missing."""
    if elem_type not in _RAW:
        return None
    found: list[float] = []
    for number, kind, first, last in spans:
        if number == proto.TENSOR_RAW:
            kind_of_number = np.dtype(_RAW[elem_type])
            if last - first != size * kind_of_number.itemsize:
                return None
            return np.frombuffer(reader.data[first:last], kind_of_number)
        # A packed number takes at most ten bytes.
        if last - first > 10 * ENTRY_LIMIT:
            return None
        if number == proto.TENSOR_FLOATS and elem_type == 1:
            found += _read_reals(reader.data, kind, first, last)
        elif (number == proto.TENSOR_INT64S and elem_type == 7) or (
            number == proto.TENSOR_INT32S and elem_type in (2, 3, 4, 5, 6, 9)
        ):
            found += _read_varints(reader, kind, first, last)
        else:
            return None
    if len(found) != size:
        return None
    return np.array(found, np.float64 if elem_type == 1 else np.int64)


def _read_varints(reader: WireReader, kind: int, first: int, last: int) -> list[int]:
    """A repeated integer field: one number, or packed ones."""
    if kind == VARINT:
        return [signed(first)]
    if kind != BYTES:
        return []
    data = reader.data[first:last]
    numbers: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            numbers.append(signed(value & 0xFFFFFFFFFFFFFFFF))
            value = shift = 0
        elif shift > 63:
            raise WireError(f"offset {first}: a number of more than ten bytes")
        else:
            shift += 7
    return numbers


def _read_reals(data: Data, kind: int, first: int, last: int) -> list[float]:
    if kind == FIXED32:
        return list(struct.unpack("<f", data[last - 4 : last]))
    if kind != BYTES or (last - first) % 4:
        return []
    return list(struct.unpack(f"<{(last - first) // 4}f", data[first:last]))
