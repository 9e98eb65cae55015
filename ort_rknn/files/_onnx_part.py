"""The nodes of an ONNX model's main graph, and a smaller model cut out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ._onnx_graph import OnnxValue, read_value
from ._source import Data
from ._wire import BYTES, WireError, WireReader, bytes_field, int_field, text_field

_FIELD_LIMIT = 8_000_000
_ITEM_LIMIT = 1 << 18
_DEPTH_LIMIT = 32

_IR_VERSION, _GRAPH, _OPSET_IMPORT, _FUNCTIONS = 1, 7, 8, 25
_FUNCTION_DOMAIN = 10
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 2, 5, 11, 12, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 3, 4, 5, 7
_ATTRIBUTE_G, _ATTRIBUTE_GRAPHS = 6, 11
_TENSOR_NAME = 8
_SPARSE_VALUES = 1

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PartNode:
    """A node, and its position in the file."""

    op_type: str
    domain: str
    """ "" for the standard one."""
    inputs: tuple[str, ...]
    """As written: "" for an omitted one."""
    outputs: tuple[str, ...]
    captured: tuple[str, ...]
    """Names that its subgraphs may read."""
    has_graph: bool
    span: Span
    name: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        """All names that it reads."""
        return tuple(name for name in (*self.inputs, *self.captured) if name)


@dataclass(slots=True)
class Nodes:
    """A model's main graph."""

    data: Data
    nodes: list[PartNode] = field(default_factory=list)
    initializers: dict[str, tuple[int, Span]] = field(default_factory=dict)
    """By name: the graph field that contains it (dense or sparse), and its position."""
    inputs: dict[str, tuple[OnnxValue, Span]] = field(default_factory=dict)
    """Without initializers."""
    outputs: dict[str, Span] = field(default_factory=dict)
    ir_version: int = 0
    opsets: list[Span] = field(default_factory=list)
    functions: list[Span] = field(default_factory=list)
    replaces_operators: bool = False
    """Whether a function of the model is in the standard domain."""

    def cut(self, nodes: Sequence[PartNode], outputs: Sequence[str]) -> bytes:
        """An ONNX model with these nodes (in the file's order), what they read, and ``outputs``."""
        data = self.data
        used = dict.fromkeys((*(name for node in nodes for name in node.reads), *outputs))
        parts = [bytes_field(_GRAPH_NODE, data[slice(*node.span)]) for node in nodes]
        parts.append(text_field(_GRAPH_NAME, "part"))
        for name in used:
            if name in self.initializers:
                number, span = self.initializers[name]
                parts.append(bytes_field(number, data[slice(*span)]))
            elif name in self.inputs:
                parts.append(bytes_field(_GRAPH_INPUT, data[slice(*self.inputs[name][1])]))
        parts += [bytes_field(_GRAPH_OUTPUT, data[slice(*self.outputs[name])]) for name in outputs]
        return b"".join(
            (
                int_field(_IR_VERSION, self.ir_version),
                bytes_field(_GRAPH, b"".join(parts)),
                *(bytes_field(_OPSET_IMPORT, data[slice(*span)]) for span in self.opsets),
            )
        )


def read_nodes(data: Data) -> Nodes:
    """Read the main graph. Raises WireError. The result must not be used after ``data`` was closed."""
    reader = WireReader(data, _FIELD_LIMIT)
    found = Nodes(data)
    fed: list[tuple[OnnxValue, Span]] = []
    for number, kind, first, last in reader.fields(0, len(data)):
        if number == _IR_VERSION and kind != BYTES:
            found.ir_version = first
        elif kind == BYTES and number == _OPSET_IMPORT:
            found.opsets.append((first, last))
        elif kind == BYTES and number == _FUNCTIONS:
            found.functions.append((first, last))
            parts = reader.fields(first, last)
            domains = [
                reader.text(start, end) for part, k, start, end in parts if part == _FUNCTION_DOMAIN and k == BYTES
            ]
            found.replaces_operators |= (domains or [""])[-1] in ("", "ai.onnx")
        elif kind == BYTES and number == _GRAPH:
            _read_graph(reader, first, last, found, fed)
    found.inputs = {value.name: (value, span) for value, span in fed if value.name not in found.initializers}
    return found


def _read_graph(reader: WireReader, start: int, end: int, found: Nodes, fed: list[tuple[OnnxValue, Span]]) -> None:
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES:
            continue
        if number == _GRAPH_NODE:
            found.nodes.append(_read_node(reader, first, last))
        elif number == _GRAPH_INITIALIZER:
            found.initializers[_tensor_name(reader, first, last)] = (number, (first, last))
        elif number == _GRAPH_SPARSE:
            for part, part_kind, inner, stop in reader.fields(first, last):
                if part == _SPARSE_VALUES and part_kind == BYTES:
                    found.initializers[_tensor_name(reader, inner, stop)] = (number, (first, last))
        elif number == _GRAPH_INPUT:
            fed.append((read_value(reader, first, last), (first, last)))
        elif number == _GRAPH_OUTPUT:
            found.outputs[read_value(reader, first, last).name] = (first, last)
        if max(len(found.nodes), len(found.initializers), len(fed), len(found.outputs)) > _ITEM_LIMIT:
            raise WireError(f"offset {first}: more than {_ITEM_LIMIT} of one kind")


def _read_node(reader: WireReader, start: int, end: int) -> PartNode:
    op_type = domain = own_name = ""
    inputs: list[str] = []
    outputs: list[str] = []
    captured: list[str] = []
    has_graph = False
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES:
            continue
        if number == _NODE_INPUT:
            inputs.append(reader.text(first, last))
        elif number == _NODE_OUTPUT:
            outputs.append(reader.text(first, last))
        elif number == _NODE_NAME:
            own_name = reader.text(first, last)
        elif number == _NODE_OP_TYPE:
            op_type = reader.text(first, last)
        elif number == _NODE_DOMAIN:
            domain = reader.text(first, last)
        elif number == _NODE_ATTRIBUTE:
            has_graph |= _read_captured(reader, first, last, captured, 0)
    domain = "" if domain == "ai.onnx" else domain
    return PartNode(op_type, domain, tuple(inputs), tuple(outputs), tuple(captured), has_graph, (start, end), own_name)


def _read_captured(reader: WireReader, start: int, end: int, names: list[str], depth: int) -> bool:
    """Add the names that an attribute's graphs read, including their own values. Returns whether it has graphs."""
    if depth > _DEPTH_LIMIT:
        raise WireError(f"offset {start}: graphs inside graphs, {_DEPTH_LIMIT} deep")
    has_graph = False
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES or number not in (_ATTRIBUTE_G, _ATTRIBUTE_GRAPHS):
            continue
        has_graph = True
        for part, part_kind, inner, stop in reader.fields(first, last):
            if part_kind != BYTES:
                continue
            if part == _GRAPH_OUTPUT:  # may be a value of the outer graph
                names.append(read_value(reader, inner, stop).name)
            elif part == _GRAPH_NODE:
                for item, item_kind, begin, finish in reader.fields(inner, stop):
                    if item == _NODE_INPUT and item_kind == BYTES:
                        names.append(reader.text(begin, finish))
                    elif item == _NODE_ATTRIBUTE and item_kind == BYTES:
                        _read_captured(reader, begin, finish, names, depth + 1)
    return has_graph


def _tensor_name(reader: WireReader, start: int, end: int) -> str:
    for number, kind, first, last in reader.fields(start, end):
        if number == _TENSOR_NAME and kind == BYTES:
            return reader.text(first, last)
    return ""
