"""Turns inputs into constants and folds what follows: an ``If`` whose condition is known disappears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

#: A folded tensor larger than this is not stored: it would grow the file.
_LARGEST = 1 << 20
#: Their output differs from run to run, so they are never folded.
_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
}


def freeze_inputs(model: onnx.ModelProto, values: Mapping[str, Any]) -> None:
    """Replace inputs of ``model`` by constants, in place, and fold.

    ``values``: a number or nested lists per input, which must fit its dtype and shape. Raises ValueError if one does
    not.
    """
    graph = model.graph
    for name, value in values.items():
        given = next(item for item in graph.input if item.name == name)
        graph.initializer.append(numpy_helper.from_array(_array(given, value), name))
        graph.input.remove(given)
    fold(model)


def _array(given: onnx.ValueInfoProto, value: Any) -> np.ndarray[Any, Any]:
    tensor = given.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"input {given.name!r} cannot be {value!r}: expected numbers")
    exact = array.astype(dtype)
    if not np.array_equal(exact.astype(array.dtype), array) and dtype.kind != "f":
        raise ValueError(f"input {given.name!r} is {dtype}, which cannot hold {value!r}")
    if exact.ndim == 0 and None not in dims:
        exact = np.full([d for d in dims if d is not None], exact)
    if exact.ndim != len(dims) or any(d is not None and d != n for d, n in zip(dims, exact.shape)):
        raise ValueError(f"input {given.name!r} has shape {dims}, the value given {list(exact.shape)}")
    return exact


def fold(model: onnx.ModelProto) -> None:
    """Compute nodes whose inputs are all constant, and replace an ``If`` on a constant by the branch it takes.

    Repeated until nothing changes. onnxruntime computes the nodes, so the numbers are those of a session on the CPU.
    """
    while _fold_nodes(model) or inline_branches(model):
        pass
    drop_unused(model.graph)


def _constants(graph: onnx.GraphProto) -> set[str]:
    return {tensor.name for tensor in graph.initializer}


def _fold_nodes(model: onnx.ModelProto) -> bool:
    """Compute all nodes that depend on constants alone and have small results, in one session."""
    graph = model.graph
    known = _constants(graph)
    foldable: list[onnx.NodeProto] = []
    for node in graph.node:
        plain = node.op_type not in _RANDOM and not any(a.g.node or a.graphs for a in node.attribute)
        if plain and node.domain in ("", "ai.onnx") and all(not i or i in known for i in node.input) and node.output:
            # Without inputs: Constant, which is the value itself.
            foldable.append(node)
            known.update(node.output)
    if not foldable:
        return False
    values = _compute(model, foldable)
    if all(node.op_type == "Constant" for node in foldable) and not values:
        return False
    folded = {id(node) for node in foldable if all(not o or o in values for o in node.output)}
    if not folded:
        return False
    kept = [node for node in graph.node if id(node) not in folded]
    made = [numpy_helper.from_array(values[o], o) for n in foldable if id(n) in folded for o in n.output if o]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)
    graph.initializer.extend(made)
    return True


def _compute(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> dict[str, np.ndarray[Any, Any]]:
    """The values of the nodes' outputs, except large ones and those that are not plain tensors."""
    import onnxruntime

    wanted = [o for node in nodes for o in node.output if o]
    read = {i for node in nodes for i in node.input}
    small = onnx.ModelProto()
    small.CopyFrom(_without_graph(model))
    small.graph.name = "constants"
    small.graph.node.extend(nodes)
    small.graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    small.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(wanted, {})
    except Exception:  # a node that this onnxruntime cannot run stays in the graph
        return {}
    return {
        name: value
        for name, value in zip(wanted, results)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.nbytes <= _LARGEST
    }


def _without_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    head = onnx.ModelProto(ir_version=min(model.ir_version, 10))
    head.opset_import.extend(model.opset_import)
    head.functions.extend(model.functions)
    return head


def inline_branches(model: onnx.ModelProto) -> bool:
    """Replace each ``If`` on a constant by the nodes of the branch it takes. Returns whether there was one."""
    graph = model.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    changed = False
    for node in graph.node:
        condition = known.get(node.input[0]) if node.op_type == "If" and node.domain in ("", "ai.onnx") else None
        if condition is None:
            nodes.append(node)
            continue
        changed = True
        taken = "then_branch" if bool(numpy_helper.to_array(condition).reshape(-1)[0]) else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == taken)
        nodes += _branch_nodes(branch, node, graph, nodes)
    if changed:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    return changed


def _branch_nodes(
    branch: onnx.GraphProto, node: onnx.NodeProto, graph: onnx.GraphProto, made: Sequence[onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """The branch's nodes with unique names, producing the ``If``'s outputs. Its constants are added to ``graph``.
    ``made``: nodes that will be in the graph too."""
    prefix = _unused_prefix(f"{node.name or node.output[0]}/", graph, made)
    own = {t.name for t in branch.initializer} | {o for inner in branch.node for o in inner.output if o}
    names = {name: prefix + name for name in own}
    for inner, outer in zip(branch.output, node.output):
        if inner.name in own:
            names[inner.name] = outer
    for tensor in branch.initializer:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
        graph.initializer.append(copy)
    nodes = []
    for inner in branch.node:
        copy_node = onnx.NodeProto()
        copy_node.CopyFrom(inner)
        _rename(copy_node, names)
        if copy_node.name:
            copy_node.name = prefix + copy_node.name
        nodes.append(copy_node)
    twice = [(i.name, o) for i, o in zip(branch.output, node.output) if names.get(i.name, i.name) != o]
    nodes += [helper.make_node("Identity", [names.get(i, i)], [o], name=f"{prefix}{o}") for i, o in twice]
    return nodes


def _unused_prefix(prefix: str, graph: onnx.GraphProto, made: Sequence[onnx.NodeProto]) -> str:
    """``prefix``, made longer until no tensor's name begins with it: several nodes may have the same name."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    names |= {name for nodes in (graph.node, made) for node in nodes for name in node.output}
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    return prefix


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Rename tensors, in subgraphs too unless those define the name themselves."""
    node.input[:] = [names.get(i, i) for i in node.input]
    node.output[:] = [names.get(o, o) for o in node.output]
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            own = {t.name for t in inner.initializer} | {i.name for i in inner.input}
            own |= {o for n in inner.node for o in n.output}
            outer = {a: b for a, b in names.items() if a not in own}
            for n in inner.node:
                _rename(n, outer)
            for output in inner.output:
                output.name = outer.get(output.name, output.name)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that no output needs."""
    needed = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if any(o in needed for o in node.output):
            kept.append(node)
            needed |= _reads(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
    constants = [t for t in graph.initializer if t.name in needed]
    copied = [onnx.TensorProto.FromString(t.SerializeToString()) for t in constants]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(copies)
    graph.initializer.extend(copied)
    infos = [v for v in graph.value_info if v.name in needed]
    kept_infos = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in infos]
    del graph.value_info[:]
    graph.value_info.extend(kept_infos)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, including those that its subgraphs read from outside."""
    read = set(node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for n in inner.node:
                read |= _reads(n)
            read |= {o.name for o in inner.output}
    return read
