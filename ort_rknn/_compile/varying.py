"""Which nodes read or make a tensor whose shape depends on data: a compiled model has fixed shapes, so they stay on the
CPU.

Not every such tensor is recognized by running the ONNX: on random values, NonZero may find the same number each time.
"""

from __future__ import annotations

import onnx
from onnx import helper

from ..files.left_out import SHAPED_BY_VALUES
from .extract import reads_of
from .observe import Observed, dependence

#: Their second and further inputs decide the shape of their output.
_BY_PARAMETERS = frozenset(
    (
        *("Reshape", "Expand", "Tile", "Slice", "Pad", "Resize", "Upsample", "TopK", "OneHot", "Split"),
        *("CenterCropPad", "Col2Im", "AffineGrid", "MaxUnpool"),
    )
)

#: They find the length of their output in the data, whatever their parameters are.
_FINDS = SHAPED_BY_VALUES - {"ConstantOfShape", "Range"}


def refused_by_shape(model: onnx.ModelProto, observed: Observed) -> dict[int, str]:
    """Nodes of the main graph that read or make a tensor whose shape depends on data, by index, with the reason."""
    varying = shaped_by_data(model, observed)
    refused = {}
    for index, node in enumerate(model.graph.node):
        names = [name for name in (*node.input, *node.output) if name in varying]
        if names:
            refused[index] = f"the length of {names[0]!r} depends on the data"
    return refused


def shaped_by_data(model: onnx.ModelProto, observed: Observed) -> set[str]:
    """Tensors of the main graph that may have another shape for other data, with inputs of the observed shapes."""
    known, shaped = dependence(model.graph)
    safe = shaped | _inferred(model, observed)
    varying: set[str] = set()
    for node in model.graph.node:
        outputs = [name for name in node.output if name]
        if not varying.isdisjoint(reads_of(node)):
            pass
        elif node.op_type == "Loop":
            outputs = _loop_varies(model, node, known, observed)
        elif node.domain not in ("", "ai.onnx") or not _reads_its_shape(node, known):
            outputs = []
        varying.update(name for name in outputs if name not in safe)
    return varying


def _reads_its_shape(node: onnx.NodeProto, known: set[str]) -> bool:
    """Whether the shape of a node's output depends on values that are not known."""
    if _finds_inside(node):
        return True
    if node.op_type in _BY_PARAMETERS:
        reads = node.input[1:]
    elif node.op_type in SHAPED_BY_VALUES:
        reads = node.input[:]
    else:
        reads = node.input[:1] if node.op_type == "If" else []
    return not known.issuperset(name for name in reads if name)


def _finds_inside(node: onnx.NodeProto) -> bool:
    """Whether a branch or body of the node has an operator that finds a length in the data."""
    bodies = [body for attribute in node.attribute for body in (attribute.g, *attribute.graphs)]
    return any(inner.op_type in _FINDS or _finds_inside(inner) for body in bodies for inner in body.node)


def _loop_varies(model: onnx.ModelProto, loop: onnx.NodeProto, known: set[str], observed: Observed) -> list[str]:
    """Outputs of a Loop whose shape depends on data: on the number of its iterations, or on what an iteration finds."""
    if _has_known_length(loop, known) and not _finds_inside(loop):
        return []
    carried = len(loop.input) - 2
    return [name for name in loop.output[carried if _keeps_shapes(model, loop, observed) else 0 :] if name]


def _keeps_shapes(model: onnx.ModelProto, loop: onnx.NodeProto, observed: Observed) -> bool:
    """Whether an iteration of a Loop leaves the shapes of what it carries, according to onnx's shape inference."""
    body = onnx.GraphProto()
    body.CopyFrom(_body(loop))
    before = [observed.shapes.get(name) for name in loop.input[2:]]
    for value, shape in zip(body.input[2:], before):
        if shape is None:
            return False
        _fix(value, shape)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in sorted(reads_of(loop) - {*loop.input}):
        if name in constants:
            kind, dims = constants[name].data_type, tuple(constants[name].dims)
        elif name in observed.shapes:
            kind, dims = observed.elem_types[name], observed.shapes[name]
        else:
            continue
        body.input.append(helper.make_tensor_value_info(name, kind, dims))
    for value in body.output[1 : 1 + len(before)]:
        value.type.tensor_type.ClearField("shape")
    alone = onnx.ModelProto(ir_version=model.ir_version, graph=body, opset_import=model.opset_import)
    fixed = _infer(alone)
    return [fixed.get(value.name) for value in body.output[1 : 1 + len(before)]] == before


def _has_known_length(loop: onnx.NodeProto, known: set[str]) -> bool:
    """Whether the number of a Loop's iterations does not depend on data."""
    times, go = (*loop.input, "", "")[:2]
    body = _body(loop)
    maker = {name: node for node in body.node for name in node.output}
    name = body.output[0].name
    while name in maker and maker[name].op_type == "Identity":
        name = maker[name].input[0]
    constant = name in {tensor.name for tensor in body.initializer} or (
        name in maker and maker[name].op_type == "Constant"
    )
    return times in known and (not go or go in known) and (constant or name in known or name == body.input[1].name)


def _body(loop: onnx.NodeProto) -> onnx.GraphProto:
    body: onnx.GraphProto = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    return body


def _inferred(model: onnx.ModelProto, observed: Observed) -> set[str]:
    """Tensors whose shape follows from the shapes of the inputs, according to onnx's shape inference."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # an exporter's, perhaps of one example
    for value in bare.graph.input:
        if value.name in observed.shapes:
            _fix(value, observed.shapes[value.name])
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    return set(_infer(bare))


def _infer(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes without free axes that onnx's inference finds; nothing if it fails, as it may where onnxruntime does
    not."""
    try:
        found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:
        return {}
    shapes = {}
    for value in (*found.value_info, *found.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return shapes


def _fix(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> None:
    dims = value.type.tensor_type.shape
    dims.ClearField("dim")
    dims.SetInParent()
    for length in shape:
        dims.dim.add(dim_value=length)
