"""Scans an ONNX model's main graph once. The caller decides how nodes are represented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from . import _onnx_proto as proto
from ._onnx_graph import OnnxValue, read_value
from ._source import Data
from ._wire import BYTES, VARINT, WireError, WireReader, signed

#: Start and end of a message in the data.
Span = tuple[int, int]
NodeT = TypeVar("NodeT")


@dataclass(slots=True)
class NodeHead:
    """The fields of every node. "ai.onnx" is the domain ""."""

    op_type: str = ""
    domain: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    """As written: "" for an omitted one."""
    outputs: list[str] = field(default_factory=list)
    attributes: list[Span] = field(default_factory=list)


@dataclass(slots=True)
class MainGraph(Generic[NodeT]):
    """A model's main graph, without the content of nodes and tensors."""

    data: Data
    nodes: list[NodeT] = field(default_factory=list)
    initializers: dict[str, tuple[int, Span]] = field(default_factory=dict)
    """By name: the graph field that contains it (dense or sparse), and its position."""
    inputs: dict[str, tuple[OnnxValue, Span]] = field(default_factory=dict)
    """Without initializers."""
    outputs: dict[str, Span] = field(default_factory=dict)
    ir_version: int = 0
    opset: int = 0
    """Of the standard domain; -1 if the model names two."""
    opsets: list[Span] = field(default_factory=list)
    functions: list[Span] = field(default_factory=list)
    replaces_operators: bool = False
    """Whether a function of the model is in the standard domain."""


def scan(found: MainGraph[NodeT], read_node: Callable[[WireReader, int, int], NodeT]) -> None:
    """Fill ``found`` from its data. ``read_node`` converts the position of a NodeProto to its representation. Raises
    WireError."""
    reader = WireReader(found.data, proto.FIELD_LIMIT)
    fed: list[tuple[OnnxValue, Span]] = []
    for number, kind, first, last in reader.fields(0, len(found.data)):
        if number == proto.MODEL_IR_VERSION and kind != BYTES:
            found.ir_version = first
        elif kind != BYTES:
            continue
        elif number == proto.MODEL_OPSET_IMPORT:
            found.opsets.append((first, last))
            domain, version = read_opset(reader, first, last)
            if domain == "":
                # If two versions differ, it is unknown which one applies.
                found.opset = version if found.opset in (0, version) else -1
        elif number == proto.MODEL_FUNCTIONS:
            found.functions.append((first, last))
            found.replaces_operators |= _last_text(reader, first, last, proto.FUNCTION_DOMAIN) in ("", "ai.onnx")
        elif number == proto.MODEL_GRAPH:
            _scan_graph(reader, first, last, found, fed, read_node)
    found.inputs = {value.name: (value, span) for value, span in fed if value.name not in found.initializers}


def _scan_graph(
    reader: WireReader,
    start: int,
    end: int,
    found: MainGraph[NodeT],
    fed: list[tuple[OnnxValue, Span]],
    read_node: Callable[[WireReader, int, int], NodeT],
) -> None:
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES:
            continue
        if number == proto.GRAPH_NODE:
            found.nodes.append(read_node(reader, first, last))
        elif number == proto.GRAPH_INITIALIZER:
            name = _last_text(reader, first, last, proto.TENSOR_NAME)
            found.initializers[name] = (number, (first, last))
        elif number == proto.GRAPH_SPARSE_INITIALIZER:
            for part, part_kind, inner, stop in reader.fields(first, last):
                if part == proto.SPARSE_VALUES and part_kind == BYTES:
                    name = _last_text(reader, inner, stop, proto.TENSOR_NAME)
                    found.initializers[name] = (number, (first, last))
        elif number == proto.GRAPH_INPUT:
            fed.append((read_value(reader, first, last), (first, last)))
        elif number == proto.GRAPH_OUTPUT:
            found.outputs[read_value(reader, first, last).name] = (first, last)
        if max(len(found.nodes), len(found.initializers), len(fed), len(found.outputs)) > proto.ITEM_LIMIT:
            raise WireError(f"offset {first}: more than {proto.ITEM_LIMIT} of one kind")


def read_head(reader: WireReader, start: int, end: int) -> NodeHead:
    """The common fields of the NodeProto from ``start`` to ``end``. Raises WireError."""
    head = NodeHead()
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES:
            continue
        if number == proto.NODE_INPUT:
            head.inputs.append(reader.text(first, last))
        elif number == proto.NODE_OUTPUT:
            head.outputs.append(reader.text(first, last))
        elif number == proto.NODE_ATTRIBUTE:
            head.attributes.append((first, last))
        elif number == proto.NODE_OP_TYPE:
            head.op_type = reader.text(first, last)
        elif number == proto.NODE_NAME:
            head.name = reader.text(first, last)
        elif number == proto.NODE_DOMAIN:
            head.domain = reader.text(first, last)
    if head.domain == "ai.onnx":
        head.domain = ""
    return head


def read_opset(reader: WireReader, start: int, end: int) -> tuple[str, int]:
    """Domain and version of an OperatorSetIdProto; "ai.onnx" is the domain "". Raises WireError."""
    domain, version = "", 0
    for number, kind, first, last in reader.fields(start, end):
        if number == proto.OPSET_DOMAIN and kind == BYTES:
            domain = reader.text(first, last)
        elif number == proto.OPSET_VERSION and kind == VARINT:
            version = signed(first)
    return ("" if domain == "ai.onnx" else domain), version


def _last_text(reader: WireReader, start: int, end: int, wanted: int) -> str:
    """A message's text field (as in protobuf, the last one counts); "" if there is none."""
    text = ""
    for number, kind, first, last in reader.fields(start, end):
        if number == wanted and kind == BYTES:
            text = reader.text(first, last)
    return text
