"""Ways to compile a model to int8: as a whole, or with the nodes that int8 would spoil on the CPU, in float."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from .extract import reads_of
from .observe import Observed
from .partition import HEAVY
from .record import Algorithm
from .work import multiplications

#: Elements that a tail on the CPU may compute at almost no cost: a million of float32 take about a millisecond on one
#: core. In that case nothing of the tail is int8.
_SMALL_TAIL = 1 << 20
#: The last layers with weights may run on the CPU up to this many multiplications, and up to this share of all.
_SMALL_HEADS, _HEADS_SHARE = 4 << 20, 0.05
#: Why a node stays on the CPU although the NPU could run it.
KEPT = "int8 would cost its outputs their accuracy"


@dataclass(frozen=True, slots=True)
class CutPlan:
    """One way to compile to int8."""

    name: str
    on_cpu: Mapping[int, str] = field(default_factory=dict)
    """Nodes that stay on the CPU, with the reason."""
    hybrid: bool = False
    """Layers that the toolkit finds inaccurate are float16."""
    whole: bool = False
    """One compiled model of everything."""
    algorithm: Algorithm = "normal"
    """How the toolkit determines the scales: from the minimum and maximum ("normal"), or by least squared error
    ("mmse"), which takes longer; "rounded": from the minimum and maximum, with weights rounded by :mod:`.rounding`."""

    def refined(self) -> Iterator[CutPlan]:
        """The same cut, more accurately."""
        yield replace(self, name=f"{self.name}, weights rounded for the least error", algorithm="rounded")
        yield replace(self, name=f"{self.name}, scales of the least error", algorithm="mmse")


def candidate_plans(model: onnx.ModelProto, observed: Observed, *, whole: bool) -> list[CutPlan]:
    """Plans for a model, the cheapest first. ``whole``: the toolkit accepts it unchanged."""
    graph = model.graph
    joins, tail = tails(graph)
    made = [name for index in tail for name in graph.node[index].output]
    if sum(int(np.prod(observed.shapes.get(name, ()))) for name in made) <= _SMALL_TAIL:
        joins = set()
    found = [CutPlan("as a whole", whole=True) if whole else CutPlan("in parts")]
    for name, nodes in (("the last joins on the CPU", joins), ("what follows the last weights on the CPU", tail)):
        if nodes and not any(set(plan.on_cpu) == nodes for plan in found):
            found.append(_kept(name, graph, nodes))
    hybrid = [replace(plan, name=f"{plan.name}, weak layers in float16", hybrid=True) for plan in found[::-1]]
    return [*found, *with_refined(model, observed, found[-1]), *hybrid]


def with_refined(model: onnx.ModelProto, observed: Observed, plan: CutPlan) -> list[CutPlan]:
    """More accurate plans that cost a call about as much as ``plan``: each way to refine it, and each with the last
    layers with weights on the CPU too, where they are little work."""
    heads = with_heads(model, observed, plan)
    if heads is None:
        return list(plan.refined())
    return [one for pair in zip(plan.refined(), heads.refined()) for one in pair]


def with_heads(model: onnx.ModelProto, observed: Observed, plan: CutPlan) -> CutPlan | None:
    """``plan`` with the last layers with weights on the CPU too; None if that is too much work for it, or if the plan's
    cut does not follow them."""
    graph = model.graph
    _, tail = tails(graph)
    heads = {index for index in _heads(graph) if index not in plan.on_cpu}
    work = [multiplications(graph, node, observed) for node in graph.node]
    mine = sum(work[index] for index in heads)
    if not heads or set(plan.on_cpu) != tail or mine > min(_SMALL_HEADS, sum(work) * _HEADS_SHARE):
        return None
    return replace(_kept("the last layers with weights on the CPU", graph, tail | heads), hybrid=plan.hybrid)


def tails(graph: onnx.GraphProto) -> tuple[set[int], set[int]]:
    """Nodes behind the last layers with weights: those from the first Concat, and all of them."""
    leads = _leads_to_weights(graph)
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


def _heads(graph: onnx.GraphProto) -> set[int]:
    """The layers with weights that no others follow."""
    leads = _leads_to_weights(graph)
    return {index for index, node in enumerate(graph.node) if node.op_type in HEAVY and not leads[index]}


def _leads_to_weights(graph: onnx.GraphProto) -> dict[int, bool]:
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node):
        for name in reads_of(node):
            readers.setdefault(name, []).append(index)
    leads: dict[int, bool] = {}
    for index in range(len(graph.node) - 1, -1, -1):
        after = [reader for name in graph.node[index].output for reader in readers.get(name, ())]
        leads[index] = any(graph.node[r].op_type in HEAVY or leads[r] for r in after)
    return leads


def _kept(name: str, graph: onnx.GraphProto, nodes: set[int]) -> CutPlan:
    return CutPlan(name, {index: f"{graph.node[index].op_type}: {KEPT}" for index in sorted(nodes)})
