"""The nodes of an ONNX model's main graph, and a smaller model cut out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import _onnx_proto as proto
from ._onnx_graph import read_value
from ._onnx_scan import MainGraph, Span, read_head, scan
from ._source import Data
from ._wire import BYTES, WireError, WireReader, bytes_field, int_field, text_field


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


class Nodes(MainGraph[PartNode]):
    """A model's main graph, from which smaller models can be cut."""

    def cut(self, nodes: Sequence[PartNode], outputs: Sequence[str]) -> bytes:
        """An ONNX model with these nodes (in the file's order), what they read, and ``outputs``."""
        data = self.data
        used = dict.fromkeys((*(name for node in nodes for name in node.reads), *outputs))
        values = []
        for name in used:
            if name in self.initializers:
                number, span = self.initializers[name]
                values.append(bytes_field(number, data[slice(*span)]))
            elif name in self.inputs:
                values.append(bytes_field(proto.GRAPH_INPUT, data[slice(*self.inputs[name][1])]))
        values += [bytes_field(proto.GRAPH_OUTPUT, data[slice(*self.outputs[name])]) for name in outputs]
        return self.with_parts((), nodes, values)

    def with_parts(
        self,
        made: Sequence[bytes],
        nodes: Sequence[PartNode],
        values: Sequence[bytes],
        *,
        oldest_ir: int = 0,
        functions: bool = False,
    ) -> bytes:
        """An ONNX model with some ``nodes`` of this one; ``made`` and ``values`` are the graph's fields before and
        after them. ``functions``: include the functions of this model."""
        data = self.data
        own = [bytes_field(proto.GRAPH_NODE, data[slice(*node.span)]) for node in nodes]
        kept = self.functions if functions else ()
        return b"".join(
            (
                int_field(proto.MODEL_IR_VERSION, max(self.ir_version, oldest_ir)),
                bytes_field(proto.MODEL_GRAPH, b"".join((*made, *own, text_field(proto.GRAPH_NAME, "part"), *values))),
                *(bytes_field(proto.MODEL_OPSET_IMPORT, data[slice(*span)]) for span in self.opsets),
                *(bytes_field(proto.MODEL_FUNCTIONS, data[slice(*span)]) for span in kept),
            )
        )


def read_nodes(data: Data) -> Nodes:
    """Read the main graph. Raises WireError. The result must not be used after ``data`` was closed."""
    found = Nodes(data)
    scan(found, _read_node)
    return found


def _read_node(reader: WireReader, start: int, end: int) -> PartNode:
    head = read_head(reader, start, end)
    captured: list[str] = []
    has_graph = False
    for span in head.attributes:
        has_graph |= _read_captured(reader, *span, captured, 0)
    inputs, outputs = tuple(head.inputs), tuple(head.outputs)
    return PartNode(head.op_type, head.domain, inputs, outputs, tuple(captured), has_graph, (start, end), head.name)


def _read_captured(reader: WireReader, start: int, end: int, names: list[str], depth: int) -> bool:
    """Add the names that an attribute's graphs read, including their own values. Returns whether it has graphs."""
    if depth > proto.DEPTH_LIMIT:
        raise WireError(f"offset {start}: graphs inside graphs, {proto.DEPTH_LIMIT} deep")
    has_graph = False
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES or number not in (proto.ATTRIBUTE_G, proto.ATTRIBUTE_GRAPHS):
            continue
        has_graph = True
        for part, part_kind, inner, stop in reader.fields(first, last):
            if part_kind != BYTES:
                continue
            if part == proto.GRAPH_OUTPUT:  # may be a value of the outer graph
                names.append(read_value(reader, inner, stop).name)
            elif part == proto.GRAPH_NODE:
                for item, item_kind, begin, finish in reader.fields(inner, stop):
                    if item == proto.NODE_INPUT and item_kind == BYTES:
                        names.append(reader.text(begin, finish))
                    elif item == proto.NODE_ATTRIBUTE and item_kind == BYTES:
                        _read_captured(reader, begin, finish, names, depth + 1)
    return has_graph
