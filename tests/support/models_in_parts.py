"""Models in parts, cut by hand from small ONNX models: like a converter's result, with stand-ins as parts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ort_rknn._ep.support import by_name
from ort_rknn.files import Origin
from ort_rknn_virtual._standin import stand_in

OURS = "RKNNExecutionProvider"


def weights(name: str, shape: Sequence[int], seed: int) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 0.1
    return numpy_helper.from_array(values, name)


def value(name: str, dims: Sequence[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def three_steps(batch: int | str = 1) -> onnx.ModelProto:
    """Conv for the NPU, a Det-like detour on the CPU, Conv for the NPU: x -> c1 -> q -> y, and the CPU's sum s."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Neg", ["c1"], ["q"], name="neg"),
        helper.make_node("ReduceSum", ["c1"], ["s"], name="sum", keepdims=0),
        helper.make_node("Conv", ["q", "w2"], ["y"], name="second", pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "three steps",
        [value("x", [batch, 3, 8, 8])],
        [value("y", [batch, 2, 8, 8]), value("s", [])],
        [weights("w1", (4, 3, 3, 3), 1), weights("w2", (2, 4, 3, 3), 2)],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)], producer_name="by hand")
    model.doc_string = "about it"
    model.model_version = 7
    helper.set_model_props(model, {"names": "a,b"})
    return model


#: Per part: its name, inputs, outputs, and the nodes that it replaces; with the shapes of all tensors.
Parts = Sequence[tuple[str, Sequence[str], Sequence[str], Sequence[str]]]
TWO_PARTS: Parts = (("part0", ["x"], ["c1"], ["first"]), ("part1", ["q"], ["y"], ["second"]))
SHAPES = {"x": (1, 3, 8, 8), "c1": (1, 4, 8, 8), "q": (1, 4, 8, 8), "y": (1, 2, 8, 8)}


def write_in_parts(
    folder: Path,
    model: onnx.ModelProto,
    parts: Parts = TWO_PARTS,
    shapes: Mapping[str, Sequence[int]] = SHAPES,
    *,
    stem: str = "m",
    soc: str = "rk3588",
    name: str | None = None,
    embed: bool = False,
    free: bool = False,
) -> Path:
    """Writes ``<stem>.onnx`` and ``<stem>.<soc>_ctx.onnx`` with its parts; returns the ONNX's path."""
    original = folder / f"{stem}.onnx"
    onnx.save(model, original)
    record = Origin.of(original).to_custom_string()
    place = folder / f"{stem}.{soc}_parts"
    place.mkdir(exist_ok=True)
    gone = {node for part in parts for node in part[3]}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes = [node for node in model.graph.node if node.name not in gone]
    for part, inputs, outputs, _ in parts:
        sides = [[(n, "float32", shapes[n]) for n in side] for side in (inputs, outputs)]
        content = stand_in(*sides, soc, custom_string=record)
        (place / f"{part}.rknn").write_bytes(content)
        nodes.append(
            helper.make_node(
                "EPContext",
                inputs,
                outputs,
                name=part,
                domain="com.microsoft",
                main_context=1,
                embed_mode=int(embed),
                ep_cache_context=content if embed else f"{place.name}/{part}.rknn",
                source=OURS,
                partition_name=part,
                hardware_architecture=soc,
                ep_sdk_version="2.5.0",
                onnx_model_filename=original.name,
            )
        )
    del made.graph.node[:]
    made.graph.node.extend(
        _sorted(nodes, {v.name for v in model.graph.input} | {t.name for t in model.graph.initializer})
    )
    read = {n for node in made.graph.node for n in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    outer = {v.name for v in (*model.graph.input, *model.graph.output)}
    for _, inputs, outputs, _ in parts:
        for tensor in (*inputs, *outputs):
            if tensor not in outer and all(v.name != tensor for v in made.graph.value_info):
                dims = [f"{tensor}_{axis}" for axis in range(len(shapes[tensor]))] if free else shapes[tensor]
                made.graph.value_info.append(value(tensor, dims))
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(made, folder / (name or f"{stem}.{soc}_ctx.onnx"))
    return original


def _sorted(nodes: Sequence[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    left, done = list(nodes), []
    while left:
        ready = next(node for node in left if all(n in known or not n for n in node.input))
        left.remove(ready)
        done.append(ready)
        known = known | set(ready.output)
    return done


def their_session(
    model: str | os.PathLike[str] | bytes,
    so: onnxruntime.SessionOptions | None = None,
    options: Mapping[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """A session of the unmodified onnxruntime with our provider, by name or (before 1.25.1) by device."""
    so = so or onnxruntime.SessionOptions()
    if by_name():
        return onnxruntime.InferenceSession(model, so, [(OURS, dict(options or {})), "CPUExecutionProvider"])
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == OURS]
    so.add_provider_for_devices(devices[:1], dict(options or {}))
    return onnxruntime.InferenceSession(model, so)
