"""int8 that keeps a model's outputs: the whole first, then cuts behind the last layers with weights, until the bound
on the accuracy holds.

One int8 scale serves a whole tensor. Where an output holds boxes up to 640 and scores up to 1, the scores vanish. What
follows the last convolutions is little work, so it can stay on the CPU, in float, with the ONNX's own nodes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx

from .accuracy import OutputAccuracy
from .calibration import Samples
from .converter import BuildSpec, ConversionError, Converter
from .extract import reads_of
from .layers import Layer
from .measure import Reference, calibration_list, compare, simulate_parts, spread
from .observe import Array, Observed, observe
from .partition import HEAVY, GraphPart, Partition
from .parts import BuiltPart, InParts, build_in_parts

#: Samples that the outputs are judged on; each takes a run of the simulator, on one thread.
_JUDGED = 16
#: Elements that a tail on the CPU may compute and still cost next to nothing: a million of float32 is about a
#: millisecond of one core. Then nothing of it is put into int8.
_SMALL_TAIL = 1 << 20
#: Why a node stays on the CPU that the NPU could run.
KEPT = "int8 would cost its outputs their accuracy"


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to compile to int8."""

    name: str
    on_cpu: Mapping[int, str] = field(default_factory=dict)
    """Nodes that stay on the CPU, with the reason."""
    hybrid: bool = False
    """Layers that the toolkit finds inaccurate are float16."""
    whole: bool = False
    """One compiled model of everything."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a plan came to."""

    plan: Plan
    outputs: tuple[OutputAccuracy, ...]
    quantized: float
    """Share of the multiplications of Conv, MatMul and Gemm that are int8."""
    made: InParts
    seconds: float
    accuracy: float
    """The bound that was asked for."""

    @property
    def problems(self) -> list[str]:
        """What breaks the bound, per output."""
        found = ((one.name, one.problem(self.accuracy)) for one in self.outputs)
        return [f"{name}: {problem}" for name, problem in found if problem is not None]

    @property
    def whole(self) -> bool:
        """Whether it is one compiled model without anything beside it."""
        return self.plan.whole

    def line(self) -> str:
        """As text."""
        verdict = "; ".join(self.problems) or "within the bound"
        return f"{self.plan.name}: {self.quantized:.0%} of the work in int8, {verdict}"


def search(
    converter: Converter,
    path: str,
    shapes: Mapping[str, tuple[int, ...]],
    target: str,
    samples: Samples,
    *,
    spec: Callable[[str, GraphPart, Observed], BuildSpec],
    refusal: ConversionError | None,
    accuracy: float,
    budget: float,
    progress: Callable[[str], None],
) -> list[Attempt]:
    """Try plans, cheapest first, until one holds ``accuracy`` on the simulator or ``budget`` minutes are over.

    Returns the attempts; the best is :func:`best_of`. Ctrl-C ends the search and keeps what there is. Raises
    ConversionError where no plan could be built.
    """
    deadline = time.monotonic() + budget * 60
    attempts: list[Attempt] = []
    error: ConversionError | None = None
    model = onnx.load(path, load_external_data=False)
    try:
        observed = observe(model, os.path.dirname(path), [samples.feed(0)])
        waiting = plans(model, observed, whole=refusal is None)
        while waiting:
            plan = waiting.pop(0)
            if attempts and time.monotonic() > deadline:
                progress(f"{budget:g} minutes are over")
                break
            progress(f"int8, {plan.name}")
            try:
                one = _attempt(converter, path, shapes, target, samples, spec, refusal, accuracy, plan, progress)
            except ConversionError as refused:
                progress(f"  {refused}")
                error = refused
                if plan.whole and not plan.hybrid:
                    refusal = refused
                    waiting = [Plan("in parts"), *(each for each in waiting if not each.whole)]
                continue
            attempts.append(one)
            progress(f"  {one.line()}")
            if not one.problems:
                break
    except KeyboardInterrupt:
        if not attempts:
            raise
        progress("interrupted: the best so far is kept")
    if not attempts:
        raise error or ConversionError(f"{os.path.basename(path)}: nothing of it could be compiled to int8")
    return attempts


def best_of(attempts: list[Attempt]) -> Attempt:
    """The one within the bound, else the one whose worst output is the least bad."""
    return min(attempts, key=lambda one: (len(one.problems), -min((o.cosine for o in one.outputs), default=0.0)))


def plans(model: onnx.ModelProto, observed: Observed, *, whole: bool) -> list[Plan]:
    """Plans for a model, the cheapest first. ``whole``: the toolkit may take it as it is."""
    joins, tail = tails(model.graph)
    made = [name for index in tail for name in model.graph.node[index].output]
    if sum(int(np.prod(observed.shapes.get(name, ()))) for name in made) <= _SMALL_TAIL:
        joins = set()
    found = [Plan("as a whole", whole=True) if whole else Plan("in parts")]
    for name, nodes in (("the last joins on the CPU", joins), ("what follows the last weights on the CPU", tail)):
        if nodes and not any(set(plan.on_cpu) == nodes for plan in found):
            found.append(Plan(name, {index: f"{model.graph.node[index].op_type}: {KEPT}" for index in sorted(nodes)}))
    return found + [replace(plan, name=f"{plan.name}, weak layers in float16", hybrid=True) for plan in found[::-1]]


def tails(graph: onnx.GraphProto) -> tuple[set[int], set[int]]:
    """Nodes behind the last layers with weights: from the first Concat on, and all of them."""
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in reads_of(node):
            readers.setdefault(name, []).append(index)
    leads: dict[int, bool] = {}
    for index in range(len(graph.node) - 1, -1, -1):
        after = [reader for name in graph.node[index].output for reader in readers.get(name, ())]
        leads[index] = any(graph.node[r].op_type in HEAVY or leads[r] for r in after)
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    behind: dict[int, bool] = {}
    joined: dict[int, bool] = {}
    tail: set[int] = set()
    for index, node in enumerate(graph.node):
        before = [producer[name] for name in reads_of(node) if name in producer]
        behind[index] = any(graph.node[b].op_type in HEAVY or behind[b] for b in before)
        if behind[index] and not leads[index] and node.op_type not in HEAVY:
            tail.add(index)
            joined[index] = node.op_type == "Concat" or any(joined.get(b, False) for b in before)
    return {index for index in tail if joined[index]}, tail


def _attempt(
    converter: Converter,
    path: str,
    shapes: Mapping[str, tuple[int, ...]],
    target: str,
    samples: Samples,
    spec: Callable[[str, GraphPart, Observed], BuildSpec],
    refusal: ConversionError | None,
    accuracy: float,
    plan: Plan,
    progress: Callable[[str], None],
) -> Attempt:
    started = time.monotonic()
    feeds = [samples.feed(index) for index in spread(samples.count, 2)]
    made, reference = build_plan(
        converter, path, shapes, target, plan, feeds, samples, spec=spec, refusal=refusal, progress=progress
    )
    indices = spread(samples.count, _JUDGED)
    parts = [(each.part, each.spec) for each in made.built]
    outputs = simulate_parts(converter, parts, reference, samples, indices)
    found = compare(reference, samples, indices, outputs)
    return Attempt(plan, tuple(found), quantized_share(made), made, time.monotonic() - started, accuracy)


def build_plan(
    converter: Converter,
    path: str,
    shapes: Mapping[str, tuple[int, ...]],
    target: str,
    plan: Plan,
    feeds: list[dict[str, Array]],
    samples: Samples | None,
    *,
    spec: Callable[[str, GraphPart, Observed], BuildSpec],
    refusal: ConversionError | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[InParts, Reference]:
    """Build what ``plan`` says, in int8 with ``samples``, else in float16. ``feeds``: what shapes are learned from."""
    model = onnx.load(path, load_external_data=False)
    references: list[Reference] = []

    def complete(place: str, part: GraphPart, observed: Observed) -> BuildSpec:
        if not references:
            references.append(Reference(model, os.path.dirname(path), observed))
        plain = spec(place, part, observed)
        if samples is None:
            return plain
        listed = calibration_list(references[0], samples, part.inputs, os.path.dirname(place))
        build: dict[str, Any] = {**plain.build, "auto_hybrid": True} if plan.hybrid else dict(plain.build)
        return replace(plain, dataset=listed, build=build)

    if plan.whole:
        made = _build_whole(converter, model, path, feeds, complete)
    else:
        made = build_in_parts(
            converter,
            path,
            shapes,
            target,
            first=refusal,
            spec=complete,
            progress=progress,
            keep=plan.on_cpu,
            feeds=feeds,
        )
    return made, references[0]


def _build_whole(
    converter: Converter,
    model: onnx.ModelProto,
    path: str,
    feeds: list[dict[str, Array]],
    spec: Callable[[str, GraphPart, Observed], BuildSpec],
) -> InParts:
    observed = observe(model, os.path.dirname(path), feeds)
    part = GraphPart(list(range(len(model.graph.node))), list(feeds[0]), [v.name for v in model.graph.output])
    how = replace(spec(os.path.join(converter.folder, "whole.onnx"), part, observed), model=path)
    return InParts(model, observed, Partition((part,), {}), (BuiltPart(part, converter.build(how), how),))


def quantized_share(made: InParts) -> float:
    """Share of the multiplications of Conv, ConvTranspose, MatMul and Gemm that run in int8, by the layers that the
    toolkit listed. A layer that cannot be found in the list counts as float unless the whole list is int8."""
    layers = {index: each.built.log.layers for each in made.built for index in each.part.nodes}
    total = integer = 0
    for index, node in enumerate(made.model.graph.node):
        work = multiplications(made.model.graph, node, made.observed)
        total += work
        if index in layers and _is_int8(node, layers[index]):
            integer += work
    return integer / total if total else 0.0


def _is_int8(node: onnx.NodeProto, layers: tuple[Layer, ...]) -> bool:
    names = {node.name, *node.output} - {""}
    own = [layer for layer in layers if layer.name.partition(":")[2] in names]
    return bool(own or layers) and all(layer.dtype.startswith("INT8") for layer in own or layers)


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
