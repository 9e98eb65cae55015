"""Writes the smallest ONNX model that carries a compiled one: a single ``com.microsoft:EPContext`` node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ._wire import bytes_field, int_field, text_field
from .onnx_model import Dimension, OnnxValue

__all__ = ["ModelFields", "ValueFields", "ep_context_model", "identity_model", "side_by_side", "value_info"]

_IR_VERSION = 8
_OPSETS = (("", 17), ("com.microsoft", 1))
_TYPE_INT, _TYPE_STRING = 2, 3
_OWN_ATTRIBUTES = frozenset(("main_context", "embed_mode", "ep_cache_context", "source"))


class ModelFields(Protocol):
    """What a wrapper takes from its ONNX; an :class:`OnnxModel` provides all of it."""

    @property
    def producer_name(self) -> str: ...
    @property
    def producer_version(self) -> str: ...
    @property
    def domain(self) -> str: ...
    @property
    def model_version(self) -> int | None: ...
    @property
    def doc_string(self) -> str: ...
    @property
    def graph_name(self) -> str: ...
    @property
    def graph_doc_string(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...


class ValueFields(Protocol):
    """A tensor among the graph's inputs or outputs; an :class:`OnnxValue` provides all of it."""

    @property
    def name(self) -> str: ...
    @property
    def elem_type(self) -> int | None: ...
    @property
    def dims(self) -> Sequence[Dimension] | None: ...


def ep_context_model(
    *,
    model: ModelFields,
    inputs: Sequence[ValueFields],
    outputs: Sequence[ValueFields],
    source: str,
    cache_context: bytes,
    node_name: str,
    embed_mode: int = 1,
    attributes: Mapping[str, str | int] | None = None,
) -> bytes:
    """An ONNX model with one EPContext node from ``inputs`` to ``outputs``, serialized.

    ``cache_context`` is the payload with ``embed_mode`` 1, a path relative to the model with 0. ``source`` names the
    provider that takes the node (onnxruntime prints it if none does). ``attributes`` are further attributes of the
    node: partition_name, hardware_architecture, ep_sdk_version, onnx_model_filename, notes ...

    Names and metadata are copied from ``model``, so a session reports the same for the wrapper as for the ONNX. This
    includes an empty graph name, which onnxruntime accepts but onnx.checker does not.

    Raises ValueError for a value that is not a tensor, or that is both input and output (no node may write its own
    input), and for an attribute that has a parameter of its own.
    """
    fed = {value.name for value in inputs}
    for value in outputs:
        if value.name in fed:
            raise ValueError(f"{value.name!r} is an input and an output: no single node can stand for such a graph")
    node = _node(
        [v.name for v in inputs], [v.name for v in outputs], node_name, source, cache_context, embed_mode, attributes
    )
    return _model(model, [node], inputs, outputs)


def side_by_side(
    *, model: ModelFields, fed: ValueFields, outputs: Sequence[ValueFields], source: str, cache_context: bytes
) -> bytes:
    """An ONNX model with an EPContext node for each of ``outputs``: all have the same payload and are fed ``fed``.

    The difference between two of these models is what a part costs. The compiled model has one input and one output.
    """
    nodes = [_node([fed.name], [v.name], v.name, source, cache_context, 1, {"partition_name": v.name}) for v in outputs]
    return _model(model, nodes, [fed], outputs)


def _node(
    inputs: Iterable[str],
    outputs: Iterable[str],
    name: str,
    source: str,
    cache_context: bytes,
    embed_mode: int,
    attributes: Mapping[str, str | int] | None,
) -> bytes:
    attributes = attributes or {}
    if clash := _OWN_ATTRIBUTES & attributes.keys():
        raise ValueError(f"attribute {min(clash)!r} has a parameter of its own")
    return b"".join(
        (
            *(text_field(1, value) for value in inputs),
            *(text_field(2, value) for value in outputs),
            text_field(3, name),
            text_field(4, "EPContext"),
            _int_attribute("main_context", 1),
            _int_attribute("embed_mode", embed_mode),
            _string_attribute("ep_cache_context", cache_context),
            _string_attribute("source", source.encode("utf-8", "surrogateescape")),
            *(
                _int_attribute(key, value)
                if isinstance(value, int)
                else _string_attribute(key, value.encode("utf-8", "surrogateescape"))
                for key, value in attributes.items()
            ),
            text_field(7, "com.microsoft"),
        )
    )


def _model(
    model: ModelFields, nodes: Iterable[bytes], inputs: Sequence[ValueFields], outputs: Sequence[ValueFields]
) -> bytes:
    graph = b"".join(
        (
            *(bytes_field(1, node) for node in nodes),
            _text(2, model.graph_name),
            _text(10, model.graph_doc_string),
            *(bytes_field(11, value_info(value)) for value in inputs),
            *(bytes_field(12, value_info(value)) for value in outputs),
        )
    )
    return b"".join(
        (
            int_field(1, _IR_VERSION),
            _text(2, model.producer_name),
            _text(3, model.producer_version),
            _text(4, model.domain),
            b"" if model.model_version is None else int_field(5, model.model_version),
            _text(6, model.doc_string),
            bytes_field(7, graph),
            *(bytes_field(8, text_field(1, domain) + int_field(2, version)) for domain, version in _OPSETS),
            *(bytes_field(14, text_field(1, key) + text_field(2, text)) for key, text in model.metadata.items()),
        )
    )


def identity_model(inputs: Sequence[OnnxValue]) -> bytes:
    """An ONNX model with these inputs, as float32, with their dimensions' symbols and denotations, which only copies
    the first. Raises IndexError if there are no inputs."""
    output = "copy of the first"
    node = text_field(1, inputs[0].name) + text_field(2, output) + text_field(4, "Identity")
    float32 = int_field(1, 1)
    graph = bytes_field(1, node) + text_field(2, "g")
    for value in inputs:
        tensor = float32
        if value.dims is not None:
            said = value.denotations or ("",) * len(value.dims)
            dims = (_dimension(size) + _text(3, denotation) for size, denotation in zip(value.dims, said))
            tensor += bytes_field(2, b"".join(bytes_field(1, dim) for dim in dims))
        graph += bytes_field(11, text_field(1, value.name) + bytes_field(2, bytes_field(1, tensor)))
    graph += bytes_field(12, text_field(1, output) + bytes_field(2, bytes_field(1, float32)))
    return int_field(1, _IR_VERSION) + bytes_field(7, graph) + bytes_field(8, text_field(1, "") + int_field(2, 17))


def _text(number: int, value: str) -> bytes:
    return text_field(number, value) if value else b""


def _int_attribute(name: str, value: int) -> bytes:
    return bytes_field(5, text_field(1, name) + int_field(3, value) + int_field(20, _TYPE_INT))


def _string_attribute(name: str, value: bytes) -> bytes:
    return bytes_field(5, text_field(1, name) + bytes_field(4, value) + int_field(20, _TYPE_STRING))


def value_info(value: ValueFields) -> bytes:
    """A ValueInfoProto: its name, and a tensor type with a shape unless the rank is unknown."""
    if not value.elem_type:
        raise ValueError(f"{value.name!r} is not a tensor: an EPContext node takes and gives tensors only")
    tensor = int_field(1, value.elem_type)
    if value.dims is not None:
        tensor += bytes_field(2, b"".join(bytes_field(1, _dimension(size)) for size in value.dims))
    return text_field(1, value.name) + bytes_field(2, bytes_field(1, tensor))


def _dimension(size: Dimension) -> bytes:
    if size is None:
        return b""
    return int_field(1, size) if isinstance(size, int) else text_field(2, size)
