"""Reads a GraphProto in place: its values, and those parts of its nodes and tensors that name other things."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeVar

from .._tensors import DTYPE_OF_ELEMENT
from . import _onnx_proto as proto
from ._wire import BYTES, VARINT, WireError, WireReader, signed

#: An integer, a symbol, or None for an unspecified dimension.
Dimension = int | str | None
T = TypeVar("T")
Kind = Literal["tensor", "sequence", "map", "optional", "sparse_tensor", "unknown"]

# Limits on what is kept, far above any real model.
_RANK_LIMIT = 1024
_PATH_LIMIT = 4096
#: Operators whose attributes contain graphs or tensors. Those of other domains may too (com.microsoft:BeamSearch does).
_OPERATORS_WITH_PARTS = frozenset((b"If", b"Loop", b"Scan", b"SequenceMap", b"Constant", b"ConstantOfShape"))
_OPERATOR_LENGTH = 64
_SEARCHED_LENGTH = 1 << 16
_SIGNS = (b":", b'"\x02If', b'"\x04Loop', b'"\x04Scan', b'"\x0bSequenceMap', b"location")

#: Element types by TensorProto.DataType, as onnxruntime writes them in "tensor(...)".
_ELEMENTS = {
    1: "float", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "double", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2",
    27: "float6e2m3", 28: "float6e3m2",
}  # fmt: skip

#: numpy's names by TensorProto.DataType, plus "bfloat16", "int4" and "uint4", which numpy lacks.
DTYPES = {**DTYPE_OF_ELEMENT, 14: "complex64", 15: "complex128", 16: "bfloat16", 21: "uint4", 22: "int4"}


@dataclass(frozen=True, slots=True)
class OnnxValue:
    """An input or output of a graph."""

    name: str
    kind: Kind
    elem_type: int | None
    """TensorProto.DataType of a tensor; None for other kinds."""
    dims: tuple[Dimension, ...] | None
    """Of a tensor; None if the rank is unknown."""
    type_text: str
    """The type as onnxruntime writes it: "tensor(float)", "seq(tensor(int64))"."""
    denotations: tuple[str, ...] = ()
    """For a tensor with a rank: the denotation of each dimension ("DATA_BATCH"), "" if there is none."""

    @property
    def dtype(self) -> str | None:
        """numpy's name of a tensor's type ("float32"; also "bfloat16", "int4", "uint4", which numpy lacks). None for
        strings and for values that are not tensors."""
        return DTYPES.get(self.elem_type) if self.elem_type is not None else None


@dataclass(frozen=True, slots=True)
class EpContextNode:
    """A ``com.microsoft:EPContext`` node: a compiled model inside an ONNX model, or a reference to one."""

    name: str
    source: str
    """By this, an execution provider recognizes its nodes."""
    main_context: bool
    """False: the node shares the context of another one."""
    embed_mode: int
    """1: the compiled model is inside the node; 0: the node has its path."""
    cache_context: bytes | None
    """With embed_mode 0: the path as written, relative to the model's folder and not checked. None if there is none (or
    it is longer than any path)."""
    cache_size: int
    """Size of ``ep_cache_context`` in bytes, whatever the mode."""
    cache_offset: int
    """Its offset in the file, whatever the mode."""
    partition_name: str
    hardware_architecture: str
    ep_sdk_version: str
    onnx_model_filename: str
    notes: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(slots=True)
class OnnxGraph:
    """What is collected from a graph; from subgraphs only EPContext nodes and external data."""

    name: str = ""
    doc_string: str = ""
    inputs: list[OnnxValue] = field(default_factory=list)
    outputs: list[OnnxValue] = field(default_factory=list)
    initializers: list[str] = field(default_factory=list)
    ep_context_nodes: list[EpContextNode] = field(default_factory=list)
    external_data: dict[str, None] = field(default_factory=dict)
    """Names in order of first use."""
    node_count: int = 0


def read_graph(reader: WireReader, start: int, end: int, graph: OnnxGraph, depth: int = 0) -> None:
    """Add the GraphProto from ``start`` to ``end`` to ``graph``. Raises WireError."""
    if depth > proto.DEPTH_LIMIT:
        raise WireError(f"offset {start}: graphs inside graphs, {proto.DEPTH_LIMIT} deep")
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES:
            continue
        if number == proto.GRAPH_NODE:
            graph.node_count += 1
            _read_node(reader, first, last, graph, depth)
        elif number == proto.GRAPH_INITIALIZER:
            _keep(graph.initializers, _read_tensor(reader, first, last, graph), first)
        elif number == proto.GRAPH_SPARSE_INITIALIZER:
            for part, part_kind, part_start, part_end in reader.fields(first, last):
                if part_kind == BYTES and part in (proto.SPARSE_VALUES, proto.SPARSE_INDICES):
                    name = _read_tensor(reader, part_start, part_end, graph)
                    if part == proto.SPARSE_VALUES:
                        _keep(graph.initializers, name, first)
        elif number == proto.GRAPH_NAME:
            graph.name = reader.text(first, last)
        elif number == proto.GRAPH_DOC_STRING:
            graph.doc_string = reader.text(first, last)
        elif depth == 0 and number in (proto.GRAPH_INPUT, proto.GRAPH_OUTPUT):
            values = graph.inputs if number == proto.GRAPH_INPUT else graph.outputs
            _keep(values, read_value(reader, first, last), first)


def _keep(items: list[T], item: T, offset: int) -> None:
    if len(items) >= proto.ITEM_LIMIT:
        raise WireError(f"offset {offset}: more than {proto.ITEM_LIMIT} of one kind")
    items.append(item)


def _read_node(reader: WireReader, start: int, end: int, graph: OnnxGraph, depth: int) -> None:
    """Most nodes contain nothing of interest, and searching for the relevant bytes is ten times as fast as parsing:
    a domain's tag (EPContext nodes have one), the standard operators that contain graphs, and the key of external
    data."""
    if end - start < _SEARCHED_LENGTH:
        node = reader.take(start, end)
        for sign in _SIGNS:
            if sign in node:
                break
        else:
            return
    op_type = domain = b""
    attributes: list[tuple[int, int]] = []
    for number, kind, first, last in reader.fields(start, end):
        if kind == BYTES:
            if number == proto.NODE_ATTRIBUTE:
                attributes.append((first, last))
            elif number == proto.NODE_OP_TYPE:
                op_type = reader.take(first, min(last, first + _OPERATOR_LENGTH))
            elif number == proto.NODE_DOMAIN:
                domain = reader.take(first, min(last, first + _OPERATOR_LENGTH))
    if op_type == b"EPContext" and domain == b"com.microsoft":
        _keep(graph.ep_context_nodes, _read_ep_context(reader, start, end, attributes), start)
    elif op_type in _OPERATORS_WITH_PARTS or domain not in (b"", b"ai.onnx"):
        for first, last in attributes:
            _read_attribute_parts(reader, first, last, graph, depth)


def _read_attribute_parts(reader: WireReader, start: int, end: int, graph: OnnxGraph, depth: int) -> None:
    """Read the tensors and graphs in an attribute."""
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES:
            continue
        if number in (proto.ATTRIBUTE_T, proto.ATTRIBUTE_TENSORS):
            _read_tensor(reader, first, last, graph)
        elif number in (proto.ATTRIBUTE_G, proto.ATTRIBUTE_GRAPHS):
            inner = OnnxGraph(ep_context_nodes=graph.ep_context_nodes, external_data=graph.external_data)
            read_graph(reader, first, last, inner, depth + 1)


def _read_ep_context(reader: WireReader, start: int, end: int, attributes: list[tuple[int, int]]) -> EpContextNode:
    name = ""
    inputs: list[str] = []
    outputs: list[str] = []
    for number, kind, first, last in reader.fields(start, end):
        if kind == BYTES:
            if number == proto.NODE_NAME:
                name = reader.text(first, last)
            elif number == proto.NODE_INPUT:
                _keep(inputs, reader.text(first, last), first)
            elif number == proto.NODE_OUTPUT:
                _keep(outputs, reader.text(first, last), first)

    numbers: dict[str, int] = {}
    spans: dict[str, tuple[int, int]] = {}
    for begin, stop in attributes:
        key = ""
        number_value: int | None = None
        span: tuple[int, int] | None = None
        for number, kind, first, last in reader.fields(begin, stop):
            if number == proto.ATTRIBUTE_NAME and kind == BYTES:
                key = reader.text(first, last)
            elif number == proto.ATTRIBUTE_I and kind == VARINT:
                number_value = signed(first)
            elif number == proto.ATTRIBUTE_S and kind == BYTES:
                span = (first, last)
        if number_value is not None:
            numbers[key] = number_value
        if span is not None:
            spans[key] = span

    def text(key: str) -> str:
        return reader.text(*spans[key]) if key in spans else ""

    # In the operator's schema, the default of both numbers is 1.
    embed_mode = numbers.get("embed_mode", 1)
    first, last = spans.get("ep_cache_context", (0, 0))
    has_path = embed_mode == 0 and "ep_cache_context" in spans and last - first <= _PATH_LIMIT
    return EpContextNode(
        name=name,
        source=text("source"),
        main_context=numbers.get("main_context", 1) != 0,
        embed_mode=embed_mode,
        cache_context=reader.take(first, last) if has_path else None,
        cache_size=last - first,
        cache_offset=first,
        partition_name=text("partition_name"),
        hardware_architecture=text("hardware_architecture"),
        ep_sdk_version=text("ep_sdk_version"),
        onnx_model_filename=text("onnx_model_filename"),
        notes=text("notes"),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )


def _read_tensor(reader: WireReader, start: int, end: int, graph: OnnxGraph) -> str:
    """Return the tensor's name; if a file holds its data, add it to ``graph``."""
    name = ""
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES:
            continue
        if number == proto.TENSOR_NAME:
            name = reader.text(first, last)
        elif number == proto.TENSOR_EXTERNAL_DATA:
            key, value = read_string_pair(reader, first, last)
            if key == "location":
                if len(graph.external_data) >= proto.ITEM_LIMIT:
                    raise WireError(f"offset {first}: more than {proto.ITEM_LIMIT} files of external data")
                graph.external_data[value] = None
    return name


def read_string_pair(reader: WireReader, start: int, end: int) -> tuple[str, str]:
    """A StringStringEntryProto: key and value."""
    key = value = ""
    for number, kind, first, last in reader.fields(start, end):
        if kind == BYTES:
            if number == 1:
                key = reader.text(first, last)
            elif number == 2:
                value = reader.text(first, last)
    return key, value


def read_value(reader: WireReader, start: int, end: int) -> OnnxValue:
    """The ValueInfoProto from ``start`` to ``end``. Raises WireError."""
    name = ""
    kind_of_value: Kind = "unknown"
    elem_type: int | None = None
    dims: tuple[Dimension, ...] | None = None
    type_text = ""
    said: tuple[str, ...] = ()
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES:
            continue
        if number == proto.VALUE_NAME:
            name = reader.text(first, last)
        elif number == proto.VALUE_TYPE:
            kind_of_value, elem_type, dims, type_text, said = _read_type(reader, first, last, 0)
    return OnnxValue(name, kind_of_value, elem_type if kind_of_value == "tensor" else None, dims, type_text, said)


_Type = tuple[Kind, "int | None", "tuple[Dimension, ...] | None", str, tuple[str, ...]]


def _read_type(reader: WireReader, start: int, end: int, depth: int) -> _Type:
    """Kind, element type, dimensions, text and denotations of a TypeProto."""
    if depth > proto.DEPTH_LIMIT:
        raise WireError(f"offset {start}: types inside types, {proto.DEPTH_LIMIT} deep")
    found: _Type = ("unknown", None, None, "", ())
    for number, kind, first, last in reader.fields(start, end):
        if kind != BYTES:
            continue
        if number in (proto.TYPE_TENSOR, proto.TYPE_SPARSE_TENSOR):
            elem_type, dims, said = _read_tensor_type(reader, first, last)
            name: Kind = "tensor" if number == proto.TYPE_TENSOR else "sparse_tensor"
            element = _ELEMENTS.get(elem_type)
            found = (name, elem_type, dims, f"{name}({element})" if element else "", said)
        elif number in (proto.TYPE_SEQUENCE, proto.TYPE_OPTIONAL):
            inner = ""
            for part, part_kind, part_start, part_end in reader.fields(first, last):
                if part == 1 and part_kind == BYTES:
                    inner = _read_type(reader, part_start, part_end, depth + 1)[3]
            word = "seq" if number == proto.TYPE_SEQUENCE else "optional"
            found = ("sequence" if word == "seq" else "optional", None, None, f"{word}({inner})" if inner else "", ())
        elif number == proto.TYPE_MAP:
            key, inner = "", ""
            for part, part_kind, part_start, part_end in reader.fields(first, last):
                if part == 1 and part_kind == VARINT:
                    key = _ELEMENTS.get(part_start, "")
                elif part == 2 and part_kind == BYTES:
                    inner = _read_type(reader, part_start, part_end, depth + 1)[3]
            found = ("map", None, None, f"map({key},{inner})" if key and inner else "", ())
    return found


def _read_tensor_type(
    reader: WireReader, start: int, end: int
) -> tuple[int, tuple[Dimension, ...] | None, tuple[str, ...]]:
    """Element type, dimensions and their denotations."""
    elem_type = 0
    dims: list[tuple[Dimension, str]] | None = None
    for number, kind, first, last in reader.fields(start, end):
        if number == 1 and kind == VARINT:
            elem_type = first
        elif number == 2 and kind == BYTES:
            dims = dims if dims is not None else []
            for part, part_kind, part_start, part_end in reader.fields(first, last):
                if part == proto.SHAPE_DIM and part_kind == BYTES:
                    if len(dims) >= _RANK_LIMIT:
                        raise WireError(f"offset {part_start}: a shape of more than {_RANK_LIMIT} dimensions")
                    dims.append(_read_dimension(reader, part_start, part_end))
    if dims is None:
        return elem_type, None, ()
    return elem_type, tuple(dim for dim, _ in dims), tuple(said for _, said in dims)


def _read_dimension(reader: WireReader, start: int, end: int) -> tuple[Dimension, str]:
    """A dimension as onnxruntime interprets it (a negative number or an empty symbol counts as unspecified), and its
    denotation."""
    dimension: Dimension = None
    denotation = ""
    for number, kind, first, last in reader.fields(start, end):
        if number == proto.DIM_VALUE and kind == VARINT:
            value = signed(first)
            dimension = value if value >= 0 else None
        elif number == proto.DIM_PARAM and kind == BYTES:
            dimension = reader.text(first, last) or None
        elif number == proto.DIM_DENOTATION and kind == BYTES:
            denotation = reader.text(first, last)
    return dimension, denotation
