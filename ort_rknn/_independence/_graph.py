"""Reads a graph's nodes and constants in place. Only small constants are copied from the file."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..files._onnx_graph import OnnxValue, read_value
from ..files._source import Data
from ..files._wire import BYTES, FIXED32, VARINT, WireError, WireReader, signed
from ._values import ENTRY_LIMIT

#: Maximum number of fields in one file; the largest models seen have some 200,000.
_FIELD_LIMIT = 8_000_000
#: Nodes up to this size are copied from the file, because reading them is faster then.
_COPIED = 1 << 16
#: Attributes up to this size are cached for later nodes with the same attribute.
_SHARED = 64
_ITEM_LIMIT = 1 << 18
_RANK_LIMIT = 64

_MODEL_GRAPH, _MODEL_OPSET_IMPORT, _MODEL_FUNCTIONS = 7, 8, 25
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_FUNCTION_DOMAIN = 10
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE_INITIALIZER = 1, 5, 11, 12, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_F, _ATTRIBUTE_I, _ATTRIBUTE_S, _ATTRIBUTE_T = 1, 2, 3, 4, 5
_ATTRIBUTE_FLOATS, _ATTRIBUTE_INTS = 7, 8
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_INT32, _TENSOR_INT64, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 5, 7, 8, 9
_TENSOR_FLOAT, _TENSOR_LOCATION = 4, 14
_SPARSE_VALUES = 1

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
        return f"{self.op_type} (the node that gives {first!r})"


@dataclass(slots=True)
class NodeGraph:
    """A model's main graph."""

    inputs: list[OnnxValue] = field(default_factory=list)
    """As in the file: may include initializers."""
    outputs: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    opset: int = 0
    """Of the standard domain."""
    replaces_operators: bool = False
    """Whether a function of the model is in the standard domain."""


def read_nodes(data: Data) -> NodeGraph:
    """The model's main graph. Raises WireError. The result must not be used after ``data`` was closed."""
    reader = WireReader(data, _FIELD_LIMIT)
    graph = NodeGraph()
    for number, kind, first, last in reader.fields(0, len(data)):
        if kind != BYTES:
            continue
        if number == _MODEL_GRAPH:
            _read_graph(reader, first, last, graph)
        elif number == _MODEL_OPSET_IMPORT:
            domain, version = "", 0
            for part, part_kind, start, end in reader.fields(first, last):
                if part == _OPSET_DOMAIN and part_kind == BYTES:
                    domain = reader.text(start, end)
                elif part == _OPSET_VERSION and part_kind == VARINT:
                    version = signed(start)
            if domain in ("", "ai.onnx"):
                # If two versions differ, it is unknown which one applies.
                graph.opset = version if graph.opset in (0, version) else -1
        elif number == _MODEL_FUNCTIONS:
            domain = ""
            for part, part_kind, start, end in reader.fields(first, last):
                if part == _FUNCTION_DOMAIN and part_kind == BYTES:
                    domain = reader.text(start, end)
            graph.replaces_operators |= domain in ("", "ai.onnx")
    return graph


def _read_graph(reader: WireReader, start: int, end: int, graph: NodeGraph) -> None:
    shared: dict[bytes, tuple[str, Attribute]] = {}
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES:
            continue
        if number == _GRAPH_NODE:
            graph.nodes.append(_read_node(reader, first, last, shared))
        elif number == _GRAPH_INITIALIZER:
            constant = _read_constant(reader, first, last)
            graph.constants[constant.name] = constant
        elif number == _GRAPH_INPUT:
            graph.inputs.append(read_value(reader, first, last))
        elif number == _GRAPH_OUTPUT:
            graph.outputs.append(read_value(reader, first, last).name)
        elif number == _GRAPH_SPARSE_INITIALIZER:
            for part, part_kind, inner, stop in reader.fields(first, last):
                if part == _SPARSE_VALUES and part_kind == BYTES:
                    values = _read_constant(reader, inner, stop)
                    graph.constants[values.name] = Constant(values.name, None, values.elem_type)
        if len(graph.nodes) > _ITEM_LIMIT or len(graph.constants) > _ITEM_LIMIT or len(graph.outputs) > _ITEM_LIMIT:
            raise WireError(f"offset {first}: more than {_ITEM_LIMIT} of one kind")


def _read_node(reader: WireReader, start: int, end: int, shared: dict[bytes, tuple[str, Attribute]]) -> Node:
    if end - start <= _COPIED:
        # The copy's fields count too, so that reading a message always uses up the limit.
        inner = WireReader(reader.data[start:end], reader.left)
        start, end = 0, end - start
    else:
        inner = reader
    op_type = domain = name = ""
    inputs: list[str] = []
    outputs: list[str] = []
    spans: list[tuple[int, int]] = []
    for number, kind, first, last in inner.fields(start, end):
        if kind != BYTES:
            continue
        if number == _NODE_INPUT:
            inputs.append(inner.text(first, last))
        elif number == _NODE_OUTPUT:
            outputs.append(inner.text(first, last))
        elif number == _NODE_ATTRIBUTE:
            spans.append((first, last))
        elif number == _NODE_OP_TYPE:
            op_type = inner.text(first, last)
        elif number == _NODE_NAME:
            name = inner.text(first, last)
        elif number == _NODE_DOMAIN:
            domain = inner.text(first, last)
    reader.left -= len(inputs) + len(outputs) + len(spans)
    return Node(op_type, "" if domain == "ai.onnx" else domain, name, inputs, outputs, inner, spans, shared)


def _read_attribute(reader: WireReader, start: int, end: int) -> tuple[str, Attribute]:
    data = reader.data
    name = ""
    found = Attribute()
    for number, kind, first, last in reader.fields(start, end):
        if number == _ATTRIBUTE_NAME and kind == BYTES:
            name = reader.text(first, last)
        elif number == _ATTRIBUTE_I and kind == VARINT:
            found.number = signed(first)
        elif number == _ATTRIBUTE_F and kind == FIXED32:
            found.real = struct.unpack("<f", data[last - 4 : last])[0]
        elif number == _ATTRIBUTE_S and kind == BYTES:
            found.text = reader.text(first, min(last, first + 4096))
        elif number == _ATTRIBUTE_T and kind == BYTES:
            found.tensor = _read_constant(reader, first, last)
        elif number == _ATTRIBUTE_INTS:
            found.numbers += _read_varints(reader, kind, first, last)
        elif number == _ATTRIBUTE_FLOATS:
            found.reals += _read_reals(data, kind, first, last)
    return name, found


def _read_constant(reader: WireReader, start: int, end: int) -> Constant:
    name = ""
    elem_type = 0
    dims: list[int] = []
    outside = False
    spans: list[tuple[int, int, int, int]] = []
    for number, kind, first, last in reader.fields(start, end):
        if number == _TENSOR_DIMS:
            dims += _read_varints(reader, kind, first, last)
            if len(dims) > _RANK_LIMIT:
                raise WireError(f"offset {first}: a tensor of more than {_RANK_LIMIT} dimensions")
        elif number == _TENSOR_TYPE and kind == VARINT:
            elem_type = first
        elif number == _TENSOR_NAME and kind == BYTES:
            name = reader.text(first, last)
        elif number == _TENSOR_LOCATION and kind == VARINT:
            outside = first != 0
        elif number in (_TENSOR_RAW, _TENSOR_INT32, _TENSOR_INT64, _TENSOR_FLOAT) and len(spans) <= ENTRY_LIMIT:
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
        if number == _TENSOR_RAW:
            kind_of_number = np.dtype(_RAW[elem_type])
            if last - first != size * kind_of_number.itemsize:
                return None
            return np.frombuffer(reader.data[first:last], kind_of_number)
        # A packed number takes at most ten bytes.
        if last - first > 10 * ENTRY_LIMIT:
            return None
        if number == _TENSOR_FLOAT and elem_type == 1:
            found += _read_reals(reader.data, kind, first, last)
        elif (number == _TENSOR_INT64 and elem_type == 7) or (
            number == _TENSOR_INT32 and elem_type in (2, 3, 4, 5, 6, 9)
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
