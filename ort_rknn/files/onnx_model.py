"""The metadata of an ONNX model: signature, properties, EPContext nodes, the files that hold its weights.

The weights themselves are not read. Field numbers are those of onnx.proto (ONNX 1.23). The file is parsed field by
field and large fields are skipped, so a model of any size takes little memory and a few microseconds per node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from . import _onnx_graph
from . import _onnx_proto as proto
from ._onnx_graph import DTYPES, Dimension, EpContextNode, OnnxValue
from ._onnx_scan import read_opset
from ._source import Data, Source, describe_head, describe_source, open_source
from ._wire import BYTES, WireError, WireReader, signed

__all__ = ["DTYPES", "Dimension", "EpContextNode", "OnnxFileError", "OnnxModel", "OnnxValue", "is_onnx", "read_onnx"]


_TEXTS = (proto.MODEL_PRODUCER_NAME, proto.MODEL_PRODUCER_VERSION, proto.MODEL_DOMAIN, proto.MODEL_DOC_STRING)


class OnnxFileError(ValueError):
    """The file is not an ONNX model, or is damaged. The message says where, and what was expected there."""


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """The metadata of an ONNX model. Text that is not set is ""."""

    size: int
    """Size of the file in bytes, without external data."""
    ir_version: int
    producer_name: str
    producer_version: str
    domain: str
    model_version: int | None
    """None if the model has none (onnxruntime then reports 2**63 - 1)."""
    doc_string: str
    opsets: Mapping[str, int]
    """Version by domain; the standard domain is ""."""
    metadata: Mapping[str, str]
    graph_name: str
    graph_doc_string: str
    inputs: tuple[OnnxValue, ...]
    """The graph's inputs in order, without those that are initializers."""
    outputs: tuple[OnnxValue, ...]
    overridable: tuple[OnnxValue, ...]
    """Initializers that a caller may feed: those that are also graph inputs, since IR version 4."""
    initializers: tuple[str, ...]
    """Names of the main graph's initializers, sparse ones included."""
    ep_context_nodes: tuple[EpContextNode, ...]
    """In the main graph and in its nodes' subgraphs."""
    node_count: int
    """The number of nodes in the main graph."""
    external_data: tuple[str, ...]
    """Names of the files that hold weights, as written: relative to the model's folder, and not checked."""


def is_onnx(head: bytes) -> bool:
    """Whether ``head``, the first 64 bytes of a file, looks like the start of an ONNX model."""
    return describe_head(head) == "an ONNX model"


def read_onnx(source: Source) -> OnnxModel:
    """Read the metadata of an ONNX model (a path, or its bytes).

    Raises OnnxFileError if it is not an ONNX model or is damaged, OSError if the file cannot be opened.
    """
    name = describe_source(source)
    with open_source(source, OnnxFileError) as data:
        try:
            model = _read_model(data)
        except WireError as problem:
            kind = describe_head(data[:64])
            if kind == "an ONNX model":
                raise OnnxFileError(f"{name}: a damaged ONNX model; {problem}") from None
            raise OnnxFileError(f"{name}: not an ONNX model; it looks like {kind} ({problem})") from None
    return model


def _read_model(data: Data) -> OnnxModel:
    reader = WireReader(data, proto.FIELD_LIMIT)
    numbers: dict[int, int] = {}
    texts: dict[int, str] = {}
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    graph: _onnx_graph.OnnxGraph | None = None
    for number, kind, start, end in reader.fields(0, len(data)):
        if number in (proto.MODEL_IR_VERSION, proto.MODEL_VERSION):
            if kind == BYTES:
                raise WireError(f"offset {start}: expected a number for field {number}")
            numbers[number] = signed(start)
        elif kind != BYTES:
            continue
        elif number == proto.MODEL_GRAPH:
            # protobuf merges a message field that occurs twice into one message.
            graph = graph or _onnx_graph.OnnxGraph()
            _onnx_graph.read_graph(reader, start, end, graph)
        elif number in _TEXTS:
            texts[number] = reader.text(start, end)
        elif number == proto.MODEL_OPSET_IMPORT:
            domain, version = read_opset(reader, start, end)
            opsets[domain] = version
        elif number == proto.MODEL_METADATA:
            key, value = _onnx_graph.read_string_pair(reader, start, end)
            metadata[key] = value
    if graph is None:
        raise WireError(f"offset {len(data)}: the end, where a graph was expected")

    ir_version = numbers.get(proto.MODEL_IR_VERSION, 0)
    initialized = set(graph.initializers)
    return OnnxModel(
        size=len(data),
        ir_version=ir_version,
        producer_name=texts.get(proto.MODEL_PRODUCER_NAME, ""),
        producer_version=texts.get(proto.MODEL_PRODUCER_VERSION, ""),
        domain=texts.get(proto.MODEL_DOMAIN, ""),
        model_version=numbers.get(proto.MODEL_VERSION),
        doc_string=texts.get(proto.MODEL_DOC_STRING, ""),
        opsets=MappingProxyType(opsets),
        metadata=MappingProxyType(metadata),
        graph_name=graph.name,
        graph_doc_string=graph.doc_string,
        inputs=tuple(value for value in graph.inputs if value.name not in initialized),
        outputs=tuple(graph.outputs),
        overridable=tuple(value for value in graph.inputs if value.name in initialized) if ir_version >= 4 else (),
        initializers=tuple(graph.initializers),
        ep_context_nodes=tuple(graph.ep_context_nodes),
        node_count=graph.node_count,
        external_data=tuple(graph.external_data),
    )
