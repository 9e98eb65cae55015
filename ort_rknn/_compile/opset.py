"""Lowers a graph to an opset that the toolkit reads, if that does not change what it computes.

Most newer versions of an operator only accept more types: such a node means the same in the older opset, and only the
graph's version number changes. Nodes with a different meaning are rewritten if we know how, and otherwise reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

#: Operators whose meaning changed although an older schema would accept the node: (operator, since version).
_CHANGED = {("GroupNormalization", 21)}
#: New names for old modes of GridSample, since opset 20.
_GRID_MODES = {b"linear": b"bilinear", b"cubic": b"bicubic"}


class OpsetError(Exception):
    """A node cannot be expressed in the older opset. ``node``, ``operator`` and ``opset`` say which."""

    def __init__(self, node: str, operator: str, opset: int, newest: int) -> None:
        self.node, self.operator, self.opset = node, operator, opset
        super().__init__(
            f"node {node!r} is a {operator} of opset {opset}, which opset {newest} does not have. Export it with "
            f"opset_version={newest} (torch.onnx.export(..., opset_version={newest}, dynamo=False))"
        )


def lower_opset(model: onnx.ModelProto, newest: int) -> bool:
    """Change ``model`` in place so that its standard opset is at most ``newest``. Returns whether anything was changed.

    Raises OpsetError, with ``model`` partly changed, for a node that cannot be expressed.
    """
    entries = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    version = max((entry.version for entry in entries), default=0)
    if version <= newest:
        return False
    types = _element_types(model)
    for graph in _graphs(model.graph):
        _lower_nodes(graph, version, newest, types)
    for function in model.functions:
        _lower_nodes(function, version, newest, types)
        for entry in function.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = min(entry.version, newest)
    for entry in entries:
        entry.version = newest
    return True


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _element_types(model: onnx.ModelProto) -> Mapping[str, int]:
    """Element types by tensor name, if a Gelu needs them; as far as inference finds them."""
    if not any(node.op_type == "Gelu" for graph in _graphs(model.graph) for node in graph.node):
        return {}
    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        value.name: value.type.tensor_type.elem_type
        for graph in _graphs(inferred.graph)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _lower_nodes(holder: Any, version: int, newest: int, types: Mapping[str, int]) -> None:
    """Lower the nodes of ``holder``: a graph or a function."""
    lowered: list[onnx.NodeProto] = []
    for node in holder.node:
        if node.domain in ("", "ai.onnx"):
            lowered += _lower_node(node, version, newest, types)
        else:
            lowered.append(node)
    if len(lowered) != len(holder.node) or any(a is not b for a, b in zip(lowered, holder.node)):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in lowered]
        del holder.node[:]
        holder.node.extend(copies)


def _lower_node(node: onnx.NodeProto, version: int, newest: int, types: Mapping[str, int]) -> list[onnx.NodeProto]:
    name = node.name or (node.output[0] if node.output else "")
    try:
        new = defs.get_schema(node.op_type, version)
    except defs.SchemaError:
        raise OpsetError(name, node.op_type, version, newest) from None
    if new.since_version <= newest:
        return [node]
    if node.op_type == "Gelu":
        return _gelu(node, types.get(node.output[0]) or types.get(node.input[0]) or onnx.TensorProto.FLOAT)
    if node.op_type == "GridSample":
        _old_grid_modes(node)
    try:
        old = defs.get_schema(node.op_type, newest)
    except defs.SchemaError:
        raise OpsetError(name, node.op_type, version, newest) from None
    if any(op == node.op_type and newest < since <= version for op, since in _CHANGED):
        raise OpsetError(name, node.op_type, version, newest)
    for attribute in list(node.attribute):
        if attribute.name not in old.attributes:
            if attribute != new.attributes[attribute.name].default_value:
                raise OpsetError(name, node.op_type, version, newest)
            node.attribute.remove(attribute)
    same_defaults = all(
        key not in new.attributes or old.attributes[key].default_value == new.attributes[key].default_value
        for key in old.attributes
        if not any(a.name == key for a in node.attribute)
    )
    if not same_defaults or not old.min_input <= len(node.input) <= old.max_input:
        raise OpsetError(name, node.op_type, version, newest)
    return [node]


def _old_grid_modes(node: onnx.NodeProto) -> None:
    """Rename the mode: its values and default changed in opset 20."""
    mode = next((a for a in node.attribute if a.name == "mode"), None)
    if mode is None:
        node.attribute.append(helper.make_attribute("mode", "bilinear"))
    else:
        mode.s = _GRID_MODES.get(mode.s, mode.s)


def _gelu(node: onnx.NodeProto, element: int) -> list[onnx.NodeProto]:
    """Gelu in operators of opset 19, following its definition in opset 20. The toolkit fuses the Erf form."""
    x, y = node.input[0], node.output[0]
    prefix = f"{y}/gelu"
    tanh = any(a.name == "approximate" and a.s == b"tanh" for a in node.attribute)

    # In the input's own type, without a cast: the toolkit fuses the Erf form only with plain constants.
    dtype = helper.tensor_dtype_to_np_dtype(element)

    def constant(name: str, value: float) -> onnx.NodeProto:
        tensor = numpy_helper.from_array(np.array(value, dtype))
        return helper.make_node("Constant", [], [f"{prefix}/{name}"], value=tensor, name=f"{prefix}/{name}")

    def op(kind: str, inputs: list[str], output: str) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], name=f"{output}/{kind}" if output == y else output)

    values = {"half": 0.5, "one": 1.0}
    values |= {"k": math.sqrt(2 / math.pi), "c": 0.044715} if tanh else {"root": math.sqrt(2)}
    nodes = [constant(name, value) for name, value in values.items()]
    p = prefix
    if tanh:
        nodes += [
            op("Mul", [x, x], f"{p}/x2"),
            op("Mul", [f"{p}/x2", x], f"{p}/x3"),
            op("Mul", [f"{p}/x3", f"{p}/c"], f"{p}/cx3"),
            op("Add", [x, f"{p}/cx3"], f"{p}/sum"),
            op("Mul", [f"{p}/sum", f"{p}/k"], f"{p}/inner"),
            op("Tanh", [f"{p}/inner"], f"{p}/bent"),
        ]
    else:
        nodes += [op("Div", [x, f"{p}/root"], f"{p}/inner"), op("Erf", [f"{p}/inner"], f"{p}/bent")]
    return [
        *nodes,
        op("Add", [f"{p}/bent", f"{p}/one"], f"{p}/plus"),
        op("Mul", [x, f"{p}/plus"], f"{p}/product"),
        op("Mul", [f"{p}/product", f"{p}/half"], y),
    ]
