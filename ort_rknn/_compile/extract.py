"""Extracts the part of a graph between given tensors as a separate model with the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import helper, numpy_helper

from .observe import Observed


def reads_of(node: onnx.NodeProto) -> set[str]:
    """Names of the tensors that a node reads, including those that its subgraphs read from outside."""
    read = {name for name in node.input if name}
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            own = {tensor.name for tensor in inner.initializer} | {value.name for value in inner.input}
            for each in inner.node:
                read |= reads_of(each) - own
                own.update(each.output)
            read |= {value.name for value in inner.output} - own
    return read


def extract(
    model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str], observed: Observed
) -> onnx.ModelProto:
    """The nodes of ``model``'s main graph between ``inputs`` and ``outputs``, with fixed types and shapes.

    Tensors that depend on shapes alone become initializers. External data stay external. Raises ValueError if an output
    needs a tensor that does not come from the inputs.
    """
    graph = model.graph
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    given = set(inputs)
    wanted, needed, constants = list(outputs), set[int](), set[str]()
    visited: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in given or name in visited:
            continue
        visited.add(name)
        if name in initializers or name in observed.constants:
            constants.add(name)
        elif name in producer:
            needed.add(producer[name])
            wanted += reads_of(graph.node[producer[name]])
        else:
            raise ValueError(f"{name!r} is read between the cuts and is not behind the inputs {sorted(given)}")
    part = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = graph.name
    part.graph.node.extend(graph.node[index] for index in sorted(needed))
    for name in sorted(constants):
        if name in initializers:
            part.graph.initializer.append(initializers[name])
        else:
            part.graph.initializer.append(numpy_helper.from_array(observed.constants[name], name))
    part.graph.input.extend(value_of(name, observed) for name in inputs)
    part.graph.output.extend(value_of(name, observed) for name in outputs)
    return part


def value_of(
    name: str, observed: Observed, dims: Mapping[str, Sequence[int | str]] | None = None
) -> onnx.ValueInfoProto:
    """A tensor's declaration with the observed type, and the observed shape unless ``dims`` has another. An unobserved
    value, such as a sequence, has only its name: onnxruntime infers an output's type."""
    if name not in observed.shapes:
        return onnx.ValueInfoProto(name=name)
    shape = (dims or {}).get(name, observed.shapes[name])
    return helper.make_tensor_value_info(name, observed.elem_types[name], shape)
