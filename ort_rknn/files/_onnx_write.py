"""Writes ONNX messages, without the package ``onnx``. Each function returns a message's bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from . import _onnx_proto as proto
from ._onnx_graph import Dimension
from ._wire import bytes_field, int_field, text_field

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_IR_VERSION = 8


class ValueFields(Protocol):
    """A tensor among the graph's inputs or outputs; an :class:`OnnxValue` provides all of it."""

    @property
    def name(self) -> str: ...
    @property
    def elem_type(self) -> int | None: ...
    @property
    def dims(self) -> Sequence[Dimension] | None: ...


def node(
    op_type: str,
    inputs: Iterable[str],
    outputs: Iterable[str],
    *,
    name: str = "",
    domain: str = "",
    attributes: Sequence[bytes] = (),
) -> bytes:
    """A NodeProto; ``attributes`` are returned by the functions below."""
    return b"".join(
        (
            *(text_field(proto.NODE_INPUT, each) for each in inputs),
            *(text_field(proto.NODE_OUTPUT, each) for each in outputs),
            text(proto.NODE_NAME, name),
            text_field(proto.NODE_OP_TYPE, op_type),
            *(bytes_field(proto.NODE_ATTRIBUTE, each) for each in attributes),
            text(proto.NODE_DOMAIN, domain),
        )
    )


def _attribute(name: str, kind: int, value: bytes) -> bytes:
    return text_field(proto.ATTRIBUTE_NAME, name) + value + int_field(proto.ATTRIBUTE_TYPE, kind)


def int_attribute(name: str, value: int) -> bytes:
    """An AttributeProto with an integer."""
    return _attribute(name, proto.INT_ATTRIBUTE, int_field(proto.ATTRIBUTE_I, value))


def ints_attribute(name: str, values: Sequence[int]) -> bytes:
    """An AttributeProto with a list of integers."""
    written = b"".join(int_field(proto.ATTRIBUTE_INTS, value) for value in values)
    return _attribute(name, proto.INTS_ATTRIBUTE, written)


def string_attribute(name: str, value: bytes) -> bytes:
    """An AttributeProto with a string, which ONNX holds as bytes."""
    return _attribute(name, proto.STRING_ATTRIBUTE, bytes_field(proto.ATTRIBUTE_S, value))


def tensor_attribute(name: str, value: bytes) -> bytes:
    """An AttributeProto with a tensor, as returned by :func:`tensor` or :func:`float_tensor`."""
    return _attribute(name, proto.TENSOR_ATTRIBUTE, bytes_field(proto.ATTRIBUTE_T, value))


def tensor(elem_type: int, dims: Sequence[int], raw: bytes, name: str = "") -> bytes:
    """A TensorProto of little-endian elements."""
    return b"".join(
        (
            *(int_field(proto.TENSOR_DIMS, size) for size in dims),
            int_field(proto.TENSOR_DATA_TYPE, elem_type),
            text(proto.TENSOR_NAME, name),
            bytes_field(proto.TENSOR_RAW, raw),
        )
    )


def float_tensor(values: NDArray[np.float32], name: str = "") -> bytes:
    """A TensorProto of float32."""
    return tensor(proto.FLOAT, values.shape, values.astype("<f4").tobytes(), name)


def value_info(value: ValueFields, denotations: Sequence[str] = ()) -> bytes:
    """A ValueInfoProto: its name, and a tensor type with a shape unless the rank is unknown. Raises ValueError for a
    value that is not a tensor."""
    if not value.elem_type:
        raise ValueError(f"{value.name!r} is not a tensor: an EPContext node takes and gives tensors only")
    return named_tensor(value.name, value.elem_type, value.dims, denotations)


def named_tensor(name: str, elem_type: int, dims: Sequence[Dimension] | None, denotations: Sequence[str] = ()) -> bytes:
    """A ValueInfoProto. ``denotations``: the meaning of each dimension, "" for none."""
    written = int_field(proto.TENSOR_TYPE_ELEMENT, elem_type)
    if dims is not None:
        said = denotations or ("",) * len(dims)
        shape = (_dimension(size) + text(proto.DIM_DENOTATION, word) for size, word in zip(dims, said))
        each = b"".join(bytes_field(proto.SHAPE_DIM, dim) for dim in shape)
        written += bytes_field(proto.TENSOR_TYPE_SHAPE, each)
    return text_field(proto.VALUE_NAME, name) + bytes_field(proto.VALUE_TYPE, bytes_field(proto.TYPE_TENSOR, written))


def _dimension(size: Dimension) -> bytes:
    if size is None:
        return b""
    return int_field(proto.DIM_VALUE, size) if isinstance(size, int) else text_field(proto.DIM_PARAM, size)


def graph(
    nodes: Iterable[bytes],
    *,
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    name: str,
    doc_string: str = "",
    initializers: Sequence[bytes] = (),
) -> bytes:
    """A GraphProto."""
    return b"".join(
        (
            *(bytes_field(proto.GRAPH_NODE, each) for each in nodes),
            text(proto.GRAPH_NAME, name),
            *(bytes_field(proto.GRAPH_INITIALIZER, each) for each in initializers),
            text(proto.GRAPH_DOC_STRING, doc_string),
            *(bytes_field(proto.GRAPH_INPUT, each) for each in inputs),
            *(bytes_field(proto.GRAPH_OUTPUT, each) for each in outputs),
        )
    )


def opset_import(domain: str, version: int) -> bytes:
    """An OperatorSetIdProto."""
    return text_field(proto.OPSET_DOMAIN, domain) + int_field(proto.OPSET_VERSION, version)


def pair(key: str, value: str) -> bytes:
    """A StringStringEntryProto."""
    return text_field(proto.PAIR_KEY, key) + text_field(proto.PAIR_VALUE, value)


def model(
    graph: bytes, opsets: Mapping[str, int], *, fields: bytes = b"", metadata: Mapping[str, str] | None = None
) -> bytes:
    """A ModelProto. ``opsets``: version by domain. ``fields``: the model's own fields between its version and its
    graph."""
    return b"".join(
        (
            int_field(proto.MODEL_IR_VERSION, _IR_VERSION),
            fields,
            bytes_field(proto.MODEL_GRAPH, graph),
            *(bytes_field(proto.MODEL_OPSET_IMPORT, opset_import(*each)) for each in opsets.items()),
            *(bytes_field(proto.MODEL_METADATA, pair(*each)) for each in (metadata or {}).items()),
        )
    )


def text(number: int, value: str) -> bytes:
    """A string field; empty if the value is empty."""
    return text_field(number, value) if value else b""
