"""Which free axes of a graph's inputs a compiled part has built in although it does not read the input.

A part that multiplies by a length of the model's input has the length of the compiled shape as a constant. If only
nodes on the CPU read the input, nothing else keeps calls with other lengths from the part.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from .extract import reads_of
from .observe import Observed
from .partition import GraphPart

#: All axes of a tensor.
_ALL: frozenset[int] | None = None
_FIRST: frozenset[int] | None = frozenset((0,))


def fix_built_in_axes(
    context: onnx.ModelProto, graph: onnx.GraphProto, parts: Iterable[GraphPart], observed: Observed, batch: bool
) -> None:
    """Declare the compiled lengths of those axes of the inputs of ``context``, the model in parts made from ``graph``,
    that a part has built in: onnxruntime refuses others. ``batch``: the first axis is a batch, of which parts run
    sample by sample."""
    for part in parts:
        built_in = built_in_axes(graph, part)
        for value in context.graph.input:
            if value.name not in built_in or value.name not in observed.shapes:
                continue
            axes = built_in[value.name]
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                if (axes is None or axis in axes) and not (batch and axis == 0):
                    dim.dim_value = observed.shapes[value.name][axis]


def built_in_axes(graph: onnx.GraphProto, part: GraphPart) -> dict[str, frozenset[int] | None]:
    """The axes of the graph's inputs whose lengths ``part`` has as constants, by name; None stands for all axes."""
    maker = {name: node for node in graph.node for name in node.output if name}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    inputs = {value.name for value in graph.input} - constants.keys()
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in reads_of(node):
            readers.setdefault(name, []).append(node)
    found: dict[str, frozenset[int] | None] = {}
    seen: set[tuple[str, frozenset[int] | None]] = set()
    left = [(name, _ALL) for name in part.outputs]
    while left:
        name, axes = left.pop()
        if name in part.inputs or name in constants or (name, axes) in seen:
            continue
        seen.add((name, axes))
        if name in inputs:
            before = found.get(name, frozenset())
            found[name] = None if axes is None or before is None else before | axes
        elif name in maker:
            node = maker[name]
            if node.op_type in ("Shape", "Size") and not node.domain:
                left.append((node.input[0], _axes_of(node, readers.get(name, []), constants, maker)))
            else:  # the first axis of what is made is taken to be the first of what it is made from
                left += [(read, axes if axes == _FIRST else _ALL) for read in reads_of(node)]
    return found


def _axes_of(
    shape: onnx.NodeProto,
    readers: list[onnx.NodeProto],
    constants: dict[str, onnx.TensorProto],
    maker: dict[str, onnx.NodeProto],
) -> frozenset[int] | None:
    """The axes that the readers of a node Shape take from it."""
    attributes = {attribute.name: attribute.i for attribute in shape.attribute}
    if shape.op_type == "Size":
        return _ALL
    start, end = attributes.get("start", 0), attributes.get("end", -1)
    if start >= 0 and end > start:
        return frozenset(range(start, end))
    axes: set[int] = set()
    for node in readers:
        tensor = constants.get(node.input[1]) if node.op_type == "Gather" else None
        if node.op_type == "Gather" and tensor is None and (made := maker.get(node.input[1])) is not None:
            tensor = next((attribute.t for attribute in made.attribute if attribute.name == "value"), None)
        if start or tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return _ALL
        axes |= {int(index) for index in onnx.numpy_helper.to_array(tensor).reshape(-1)}
    return frozenset(axes) if axes and min(axes) >= 0 else _ALL
