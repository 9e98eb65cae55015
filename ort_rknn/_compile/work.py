"""How much of a model's work is int8: multiplications of the layers with weights."""

from __future__ import annotations

import re

import numpy as np
import onnx

from .layers import LayerRow
from .observe import Observed
from .parts import InParts


def quantized_share(made: InParts) -> float:
    """Share of the multiplications of Conv, ConvTranspose, MatMul and Gemm that run in int8, according to the layers
    listed by the toolkit; 1 for a model without such work. A node that no layer in the list is named after counts as
    float unless all layers with weights are int8."""
    layers = {index: each.built.log.layers for each in made.built for index in each.part.nodes}
    total = integer = 0
    for index, node in enumerate(made.model.graph.node):
        work = multiplications(made.model.graph, node, made.observed)
        total += work
        if index in layers and _is_int8(node, layers[index]):
            integer += work
    return integer / total if total else 1.0


#: What the toolkit appends to the name of a layer that it derives from another or writes in several pieces: "h#2" and
#: "h_rs_mm_tp_rs#1" compute "h". Seen with rknn-toolkit2 2.5.0, where a MatMul becomes reshapes, transposes and a Conv.
_DERIVED = re.compile(r"(?:_(?:rs|mm|tp))*(?:#\d+)?$")
#: Layers that multiply by weights, by the first letters of their types.
_WITH_WEIGHTS = ("Conv", "MatMul", "exMatMul", "Gemm", "FullyConnected", "BatchMatMul")


def _is_int8(node: onnx.NodeProto, layers: tuple[LayerRow, ...]) -> bool:
    names = {node.name, *node.output} - {""}
    multiply = [layer for layer in layers if layer.name.startswith(_WITH_WEIGHTS)] or list(layers)
    own = [layer for layer in multiply if not names.isdisjoint(_origins(layer))] or multiply
    return bool(own) and all(layer.dtype.startswith("INT8") for layer in own)


def _origins(layer: LayerRow) -> tuple[str, str]:
    """The names that the ONNX may have for a layer."""
    name = layer.name.partition(":")[2]
    return name, _DERIVED.sub("", name)


def multiplications(graph: onnx.GraphProto, node: onnx.NodeProto, observed: Observed) -> int:
    """Multiplications of one node; 0 for operators without weights."""
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        return 0
    shapes: dict[str, tuple[int, ...]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes.update(observed.shapes)
    first, second, out = (shapes.get(name, ()) for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "Conv":
        return int(np.prod(out) * np.prod(second[1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(first) * np.prod(second[1:]))
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return int(np.prod(out) * (first[0] if turned else first[-1])) if first else 0
