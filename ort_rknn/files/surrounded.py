"""An ONNX model with extra nodes before and after its graph: other dtypes and axis orders for its callers.

The model is copied field by field, whatever the fields are; weights are never parsed. An input keeps its name, so the
graph behind it reads a tensor with another name; likewise for outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from . import _onnx_proto as proto
from . import _onnx_write as onnx
from ._onnx_graph import read_string_pair
from ._wire import BYTES, WireError, WireReader, bytes_field, int_field, text_field, varint
from .onnx_model import OnnxFileError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Edge", "Step", "redeclared", "surrounded"]

#: The standard domain's version, if a model does not import that domain.
_OPSET = 17

_Chunk: TypeAlias = "bytes | memoryview"


@dataclass(frozen=True, slots=True)
class Step:
    """A node with one output: its first input is the incoming tensor, its second, if it has one, is ``constant``."""

    op_type: str
    """In the standard domain."""
    attributes: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    constant: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """The new declaration of an input or output of the graph."""

    name: str
    elem_type: int
    """The declared TensorProto.DataType, in place of the graph's own."""
    steps: Sequence[Step]
    """From the caller's tensor to the graph's for an input, and the other way for an output."""
    order: Sequence[int] | None = None
    """The graph's own dimensions in their new order; None: unchanged."""


def surrounded(
    data: bytes, inputs: Sequence[Edge], outputs: Sequence[Edge], locations: Mapping[str, str] | None = None
) -> bytes:
    """The ONNX model ``data`` with ``inputs`` and ``outputs`` in place of those with the same names.

    Everything else is unchanged, byte for byte: weights, metadata, functions, names of nodes. Paths of external data
    stay as written, except those in ``locations``. Raises OnnxFileError for a damaged model, ValueError for a name that
    is both input and output.
    """
    names = {edge.name for edge in inputs} | {edge.name for edge in outputs}
    prefix = next(p for p in (f"ort_rknn{n}/" for n in range(len(data) + 1)) if p.encode() not in data)
    try:
        return _model(_Rewriter(data, locations or {}), {n: prefix + n for n in names}, inputs, outputs, prefix)
    except WireError as problem:
        raise OnnxFileError(f"a damaged ONNX model; {problem}") from None


def redeclared(
    data: bytes, inputs: Mapping[str, Edge], outputs: Mapping[str, Edge], locations: Mapping[str, str] | None = None
) -> bytes:
    """The ONNX model ``data`` with other declarations of some inputs and outputs, and no additional nodes. For edges
    without steps; paths of external data as in :func:`surrounded`. Raises OnnxFileError for a damaged model."""
    rewriter = _Rewriter(data, locations or {})
    chunks: list[_Chunk] = []
    try:
        for number, kind, raw, start, end in rewriter.fields(0, len(data)):
            if number == proto.MODEL_GRAPH and kind == BYTES:
                chunks += _message(number, rewriter.graph(start, end, {}, inputs, outputs))
            else:
                chunks.append(raw)
    except WireError as problem:
        raise OnnxFileError(f"a damaged ONNX model; {problem}") from None
    return b"".join(chunks)


def _model(
    rewriter: _Rewriter, renamed: Mapping[str, str], inputs: Sequence[Edge], outputs: Sequence[Edge], prefix: str
) -> bytes:
    kept: list[_Chunk] = []
    graph: list[_Chunk] = [node for edge in inputs for node in _nodes(edge, edge.name, renamed[edge.name], prefix)]
    has_standard_domain = False
    for number, kind, raw, start, end in rewriter.fields(0, len(rewriter.data)):
        if number == proto.MODEL_GRAPH and kind == BYTES:
            # A message that occurs twice is one message: protobuf merges them.
            graph += rewriter.graph(start, end, renamed, {e.name: e for e in inputs}, {e.name: e for e in outputs})
            continue
        if number == proto.MODEL_OPSET_IMPORT and kind == BYTES:
            has_standard_domain |= rewriter.text_of(start, end, proto.OPSET_DOMAIN) in ("", "ai.onnx")
        kept.append(raw)
    graph += [node for edge in outputs for node in _nodes(edge, renamed[edge.name], edge.name, prefix)]
    if not has_standard_domain:
        kept.append(bytes_field(proto.MODEL_OPSET_IMPORT, onnx.opset_import("", _OPSET)))
    return b"".join((*kept, *_message(proto.MODEL_GRAPH, graph)))


def _nodes(edge: Edge, source: str, target: str, prefix: str) -> Iterator[bytes]:
    """The graph's fields for the steps from ``source`` to ``target``, constants first."""
    taken = source
    for place, step in enumerate(edge.steps):
        given = target if place == len(edge.steps) - 1 else f"{prefix}{edge.name}/{place}"
        label = f"{prefix}{edge.name}/{place}_{step.op_type}"
        read = [taken]
        if step.constant is not None:
            constant = f"{label}/constant"
            value = onnx.tensor_attribute("value", onnx.float_tensor(step.constant))
            yield bytes_field(
                proto.GRAPH_NODE, onnx.node("Constant", (), [constant], name=constant, attributes=[value])
            )
            read.append(constant)
        attributes = [
            onnx.int_attribute(key, value) if isinstance(value, int) else onnx.ints_attribute(key, value)
            for key, value in step.attributes.items()
        ]
        yield bytes_field(proto.GRAPH_NODE, onnx.node(step.op_type, read, [given], name=label, attributes=attributes))
        taken = given


def _message(number: int, chunks: Sequence[_Chunk]) -> list[_Chunk]:
    """The field of a nested message."""
    return [varint(number << 3 | BYTES) + varint(sum(map(len, chunks))), *chunks]


class _Rewriter:
    """Copies the messages of one model, with other names for some tensors and other paths for some external data."""

    def __init__(self, data: bytes, locations: Mapping[str, str]) -> None:
        self.data = data
        self._locations = locations
        self._view = memoryview(data)
        self._reader = WireReader(data, proto.FIELD_LIMIT)

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, _Chunk, int, int]]:
        """Number, wire type, the whole field, and the range of its content."""
        for number, kind, begin, first, last in self._reader.whole_fields(start, end):
            yield number, kind, self._view[begin:last], first, last

    def text_of(self, start: int, end: int, wanted: int) -> str:
        """A message's text field; "" if it has none."""
        text = ""
        for number, kind, first, last in self._reader.fields(start, end):
            if number == wanted and kind == BYTES:
                text = self._reader.text(first, last)
        return text

    def graph(
        self,
        start: int,
        end: int,
        renamed: Mapping[str, str],
        inputs: Mapping[str, Edge],
        outputs: Mapping[str, Edge],
    ) -> list[_Chunk]:
        """The fields of the main graph. Raises ValueError for a name in ``renamed`` that is both an input and an
        output."""
        sides: dict[int, set[str]] = {proto.GRAPH_INPUT: set(), proto.GRAPH_OUTPUT: set()}
        chunks: list[_Chunk] = []
        for number, kind, raw, first, last in self.fields(start, end):
            if kind == BYTES and number in sides:
                name = self.text_of(first, last, proto.VALUE_NAME)
                sides[number].add(name)
                edge = (inputs if number == proto.GRAPH_INPUT else outputs).get(name)
                chunks.append(raw if edge is None else bytes_field(number, self._value(first, last, edge)))
            else:
                chunks += self._rest_of_graph(number, kind, raw, first, last, renamed, 0)
        if both := sides[proto.GRAPH_INPUT] & sides[proto.GRAPH_OUTPUT] & renamed.keys():
            raise ValueError(f"{min(both)!r} is an input and an output at once")
        return chunks

    def _rest_of_graph(
        self, number: int, kind: int, raw: _Chunk, first: int, last: int, renamed: Mapping[str, str], depth: int
    ) -> list[_Chunk]:
        """A graph's field other than inputs and outputs, as chunks; [] if it is no longer true."""
        if kind != BYTES:
            return [raw]
        if number == proto.GRAPH_NODE:
            return self._node(raw, first, last, renamed, depth)
        if number == proto.GRAPH_VALUE_INFO:
            return [] if self.text_of(first, last, proto.VALUE_NAME) in renamed else [raw]
        if number in (proto.GRAPH_INITIALIZER, proto.GRAPH_SPARSE_INITIALIZER):
            name = renamed.get(self._initializer(number, first, last))
            is_dense = number == proto.GRAPH_INITIALIZER
            chunks: list[_Chunk] = self._tensor(first, last) if is_dense else [self._view[first:last]]
            if name is not None:
                # The last occurrence of a field counts, and messages are merged.
                other = text_field(proto.TENSOR_NAME, name)
                chunks.append(other if is_dense else bytes_field(proto.SPARSE_VALUES, other))
            return _message(number, chunks)
        return [raw]

    def _tensor(self, start: int, end: int) -> list[_Chunk]:
        """A TensorProto's fields."""
        if not self._locations:
            return [self._view[start:end]]
        chunks: list[_Chunk] = []
        for number, kind, raw, first, last in self.fields(start, end):
            chunks.append(raw)
            if number == proto.TENSOR_EXTERNAL_DATA and kind == BYTES:
                key, value = read_string_pair(self._reader, first, last)
                if key == "location" and value in self._locations:
                    chunks[-1] = bytes_field(number, onnx.pair(key, self._locations[value]))
        return chunks

    def _initializer(self, number: int, start: int, end: int) -> str:
        """The name of a dense or sparse initializer."""
        if number == proto.GRAPH_INITIALIZER:
            return self.text_of(start, end, proto.TENSOR_NAME)
        for part, kind, first, last in self._reader.fields(start, end):
            if part == proto.SPARSE_VALUES and kind == BYTES:
                return self.text_of(first, last, proto.TENSOR_NAME)
        return ""

    def _node(self, raw: _Chunk, start: int, end: int, renamed: Mapping[str, str], depth: int) -> list[_Chunk]:
        # Most nodes contain none of the names, and a search is much faster than parsing them.
        names = (*renamed, *self._locations)
        if not any(self.data.find(name.encode("utf-8", "surrogateescape"), start, end) >= 0 for name in names):
            return [raw]
        chunks: list[_Chunk] = []
        for number, kind, field_, first, last in self.fields(start, end):
            if kind == BYTES and number in (proto.NODE_INPUT, proto.NODE_OUTPUT):
                name = renamed.get(self._reader.text(first, last))
                chunks.append(field_ if name is None else text_field(number, name))
            elif kind == BYTES and number == proto.NODE_ATTRIBUTE:
                chunks += self._attribute(first, last, renamed, depth)
            else:
                chunks.append(field_)
        return _message(proto.GRAPH_NODE, chunks)

    def _attribute(self, start: int, end: int, renamed: Mapping[str, str], depth: int) -> list[_Chunk]:
        chunks: list[_Chunk] = []
        for number, kind, raw, first, last in self.fields(start, end):
            if kind == BYTES and number in (proto.ATTRIBUTE_G, proto.ATTRIBUTE_GRAPHS):
                chunks += _message(number, self._inner_graph(first, last, renamed, depth + 1))
            elif kind == BYTES and number == proto.ATTRIBUTE_T:
                chunks += _message(number, self._tensor(first, last))
            else:
                chunks.append(raw)
        return _message(proto.NODE_ATTRIBUTE, chunks)

    def _inner_graph(self, start: int, end: int, renamed: Mapping[str, str], depth: int) -> list[_Chunk]:
        """A subgraph sees the outer graphs' names, except those that it defines itself."""
        if depth > proto.DEPTH_LIMIT:
            raise WireError(f"offset {start}: graphs inside graphs, {proto.DEPTH_LIMIT} deep")
        own = set()
        for number, kind, _, first, last in self.fields(start, end):
            if kind != BYTES:
                continue
            if number == proto.GRAPH_INPUT:
                own.add(self.text_of(first, last, proto.VALUE_NAME))
            elif number in (proto.GRAPH_INITIALIZER, proto.GRAPH_SPARSE_INITIALIZER):
                own.add(self._initializer(number, first, last))
            elif number == proto.GRAPH_NODE:
                own.update(
                    self._reader.text(begin, stop)
                    for part, part_kind, begin, stop in self._reader.fields(first, last)
                    if part == proto.NODE_OUTPUT and part_kind == BYTES
                )
        visible = {name: other for name, other in renamed.items() if name not in own}
        if not visible and not self._locations:
            return [self._view[start:end]]
        chunks: list[_Chunk] = []
        for number, kind, raw, first, last in self.fields(start, end):
            chunks += self._rest_of_graph(number, kind, raw, first, last, visible, depth)
        return chunks

    def _value(self, start: int, end: int, edge: Edge) -> bytes:
        """A ValueInfoProto with the dtype and axis order of ``edge``."""
        out: list[_Chunk] = []
        for number, kind, raw, first, last in self.fields(start, end):
            if number == proto.VALUE_TYPE and kind == BYTES:
                for part, part_kind, part_raw, begin, stop in self.fields(first, last):
                    is_tensor = part == proto.TYPE_TENSOR and part_kind == BYTES
                    new = bytes_field(part, self._tensor_type(begin, stop, edge)) if is_tensor else bytes(part_raw)
                    out.append(bytes_field(proto.VALUE_TYPE, new))  # merged with the others
            else:
                out.append(raw)
        return b"".join(out)

    def _tensor_type(self, start: int, end: int, edge: Edge) -> bytes:
        dims: list[_Chunk] = []
        has_shape = False
        for number, kind, _, first, last in self.fields(start, end):
            if number == proto.TENSOR_TYPE_SHAPE and kind == BYTES:
                has_shape = True
                dims += [raw for part, _, raw, _, _ in self.fields(first, last) if part == proto.SHAPE_DIM]
        if edge.order is not None and has_shape:
            if len(dims) != len(edge.order):
                raise ValueError(f"{edge.name!r} has {len(dims)} axes, not {len(edge.order)}")
            dims = [dims[axis] for axis in edge.order]
        shape = bytes_field(proto.TENSOR_TYPE_SHAPE, b"".join(dims)) if has_shape else b""
        return int_field(proto.TENSOR_TYPE_ELEMENT, edge.elem_type) + shape
