"""Writes a model in parts: the ONNX with each part replaced by an EPContext node, in onnxruntime's own form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper

from .._options import PROVIDER
from .extract import reads_of, value_of
from .freeze import drop_unused
from .observe import Observed
from .partition import GraphPart

_DOMAIN = "com.microsoft"
#: Loads in every onnxruntime that ort_rknn supports.
_IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class CompiledPart:
    """A part and the path of its compiled model."""

    part: GraphPart
    name: str
    """"part0" ...: the name of the node and of the partition."""
    path: str
    """Of the compiled model, relative to the folder of the model in parts, with "/"."""


def context_model(
    model: onnx.ModelProto,
    parts: Sequence[CompiledPart],
    observed: Observed,
    *,
    onnx_name: str,
    soc: str,
    toolkit: str,
    free: bool,
) -> onnx.ModelProto:
    """``model`` with its parts compiled. ``free``: its inputs have free axes, so inner shapes are only examples.

    Initializers that only parts read are removed. External data of the others are left as they are.
    """
    graph = model.graph
    inside = {index for part in parts for index in part.part.nodes}
    nodes = [node for index, node in enumerate(graph.node) if index not in inside]
    nodes += [_node(part, onnx_name, soc, toolkit) for part in parts]
    out = onnx.ModelProto()
    out.CopyFrom(_head(model))
    out.graph.name = graph.name
    out.graph.doc_string = graph.doc_string
    # An initializer that could be fed as well: parts have it built in, so it can no longer be fed.
    constants = {tensor.name for tensor in graph.initializer}
    out.graph.input.extend(value for value in graph.input if value.name not in constants)
    out.graph.output.extend(_output(value, observed) for value in graph.output)
    out.graph.node.extend(_sorted(nodes, graph))
    out.graph.initializer.extend(graph.initializer)
    # Including inputs of parts: after a Loop, for example, inference does not even know the rank.
    borders = dict.fromkeys(name for part in parts for name in (*part.part.outputs, *part.part.inputs))
    declared = {value.name for value in (*graph.input, *graph.output)}
    dims = {name: _free(name, observed) for name in borders} if free else {}
    out.graph.value_info.extend(value_of(name, observed, dims) for name in borders if name not in declared)
    drop_unused(out.graph)
    return out


def _output(value: onnx.ValueInfoProto, observed: Observed) -> onnx.ValueInfoProto:
    """An output with the shape that a session of the ONNX gives it, which may come from inference: no inference goes
    through EPContext nodes."""
    if value.name not in observed.declared:
        return value
    dims = observed.declared[value.name]
    return helper.make_tensor_value_info(value.name, observed.elem_types[value.name], dims, value.doc_string)


def _free(name: str, observed: Observed) -> list[int | str]:
    """A border's shape in a model with free axes."""
    dims = observed.declared.get(name) or (None,) * len(observed.shapes[name])
    return [f"{name}_{axis}" if dim is None else dim for axis, dim in enumerate(dims)]


def _head(model: onnx.ModelProto) -> onnx.ModelProto:
    """Everything in a model except its graph."""
    head = onnx.ModelProto(
        ir_version=_IR_VERSION,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        doc_string=model.doc_string,
    )
    if model.HasField("model_version"):
        head.model_version = model.model_version
    head.opset_import.extend(model.opset_import)
    if not any(entry.domain == _DOMAIN for entry in model.opset_import):
        head.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    head.metadata_props.extend(model.metadata_props)
    head.functions.extend(model.functions)
    return head


def _node(part: CompiledPart, onnx_name: str, soc: str, toolkit: str) -> onnx.NodeProto:
    attributes: dict[str, Any] = {
        "main_context": 1,
        "embed_mode": 0,
        "ep_cache_context": part.path,
        "source": PROVIDER,
        "partition_name": part.name,
        "ep_sdk_version": toolkit,
        "hardware_architecture": soc,
        "onnx_model_filename": onnx_name,
    }
    return helper.make_node(
        "EPContext", part.part.inputs, part.part.outputs, name=part.name, domain=_DOMAIN, **attributes
    )


def _sorted(nodes: Sequence[onnx.NodeProto], graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes in topological order, which the parts' nodes may violate."""
    producer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    done: list[onnx.NodeProto] = []
    state: dict[int, bool] = {}
    for first in range(len(nodes)):
        stack = [(first, False)]
        while stack:
            index, behind_done = stack.pop()
            if behind_done:
                done.append(nodes[index])
                state[index] = True
            elif index not in state:
                state[index] = False
                stack.append((index, True))
                stack += [(producer[n], False) for n in sorted(reads_of(nodes[index])) if n in producer]
    return done
