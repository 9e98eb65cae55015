"""Writes the smallest ONNX model that carries a compiled one: a single ``com.microsoft:EPContext`` node."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from . import _onnx_proto as proto
from . import _onnx_write as onnx
from . import feedable as placeholders
from ._onnx_write import ValueFields
from ._wire import int_field
from .onnx_model import OnnxValue

__all__ = ["ModelFields", "ValueFields", "ep_context_model", "identity_model", "side_by_side"]

_OPSETS = {"": 17, "com.microsoft": 1}
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
    feedable: Sequence[OnnxValue] = (),
    unread: Collection[str] = (),
) -> bytes:
    """An ONNX model with one EPContext node from ``inputs`` to ``outputs``, serialized.

    ``cache_context`` is the payload with ``embed_mode`` 1, a path relative to the model with 0. ``source`` names the
    provider that takes the node (onnxruntime prints it if none does). ``attributes`` are further attributes of the
    node: partition_name, hardware_architecture, ep_sdk_version, onnx_model_filename, notes ...

    ``feedable``: initializers of the ONNX that may be fed. They are the node's last inputs; one that is not fed has its
    placeholder there (:mod:`ort_rknn.files.feedable`). ``unread``: names of inputs that the node does not read, so that
    onnxruntime treats them as in the ONNX: they may be missing from an IOBinding.

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
        [v.name for v in (*inputs, *feedable) if v.name not in unread],
        [v.name for v in outputs],
        node_name,
        source,
        cache_context,
        embed_mode,
        attributes,
    )
    return _model(model, [node], inputs, outputs, feedable)


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
    own = (
        onnx.int_attribute("main_context", 1),
        onnx.int_attribute("embed_mode", embed_mode),
        onnx.string_attribute("ep_cache_context", cache_context),
        onnx.string_attribute("source", _encoded(source)),
    )
    further = (
        onnx.int_attribute(key, value) if isinstance(value, int) else onnx.string_attribute(key, _encoded(value))
        for key, value in attributes.items()
    )
    return onnx.node("EPContext", inputs, outputs, name=name, domain="com.microsoft", attributes=(*own, *further))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _model(
    model: ModelFields,
    nodes: Iterable[bytes],
    inputs: Sequence[ValueFields],
    outputs: Sequence[ValueFields],
    feedable: Sequence[OnnxValue] = (),
) -> bytes:
    graph = onnx.graph(
        nodes,
        inputs=[*map(onnx.value_info, inputs), *map(placeholders.value_info, feedable)],
        outputs=[onnx.value_info(value) for value in outputs],
        initializers=[*map(placeholders.initializer, feedable)],
        name=model.graph_name,
        doc_string=model.graph_doc_string,
    )
    version = model.model_version
    fields = (
        onnx.text(proto.MODEL_PRODUCER_NAME, model.producer_name),
        onnx.text(proto.MODEL_PRODUCER_VERSION, model.producer_version),
        onnx.text(proto.MODEL_DOMAIN, model.domain),
        b"" if version is None else int_field(proto.MODEL_VERSION, version),
        onnx.text(proto.MODEL_DOC_STRING, model.doc_string),
    )
    return onnx.model(graph, _OPSETS, fields=b"".join(fields), metadata=model.metadata)


def identity_model(inputs: Sequence[OnnxValue]) -> bytes:
    """An ONNX model with these inputs, as float32, with their dimensions' symbols and denotations, which only copies
    the first. Raises IndexError if there are no inputs."""
    output = "copy of the first"
    graph = onnx.graph(
        [onnx.node("Identity", [inputs[0].name], [output])],
        inputs=[onnx.named_tensor(value.name, proto.FLOAT, value.dims, value.denotations) for value in inputs],
        outputs=[onnx.named_tensor(output, proto.FLOAT, None)],
        name="g",
    )
    return onnx.model(graph, {"": 17})
