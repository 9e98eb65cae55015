"""Which nodes become parts on the NPU: maximal convex groups, cut at floating-point tensors, and worth the
transfers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx

from .extract import reads_of
from .observe import Observed

#: Operators whose work is worth a transfer to the NPU; a part without one stays on the CPU.
HEAVY = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN"))
_FLOATS = frozenset((onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16))
#: The largest value of float16, the type of tensors that leave a part.
_FLOAT16_MAX = 65504.0


@dataclass(slots=True)
class GraphPart:
    """A group of nodes that becomes one compiled model."""

    nodes: list[int]
    """Indices in the main graph, ascending."""
    inputs: list[str] = field(default_factory=list)
    """Incoming tensors, in the order in which they are first read."""
    outputs: list[str] = field(default_factory=list)
    """Tensors that are read outside, or are outputs of the model."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Parts for the NPU; every other node stays on the CPU, for the reason given."""

    parts: tuple[GraphPart, ...]
    on_cpu: Mapping[int, str]
    """By node index. Nodes that do not depend on data, and those that no output needs, are in neither."""


def partition(
    model: onnx.ModelProto, observed: Observed, refused: Mapping[int, str], *, batch: bool = False
) -> Partition:
    """Partition the main graph.

    ``refused``: nodes that cannot run on the NPU, by index, with the reason. ``batch``: the first axis of every input
    is a free batch, of which parts run sample by sample, so tensors without that axis do not cross.
    """
    graph = model.graph
    constant = {
        index
        for index, node in enumerate(graph.node)
        if node.output and all(not name or name in observed.constants for name in node.output)
    } | _needless(graph)
    on_cpu = {index: reason for index, reason in refused.items() if index not in constant}
    while True:
        parts = _groups(graph, on_cpu, constant, observed)
        moved = _not_worth(graph, parts) or _bad_cuts(graph, parts, observed, batch)
        if not moved:
            return Partition(tuple(parts), on_cpu)
        on_cpu.update(moved)


def _needless(graph: onnx.GraphProto) -> set[int]:
    """Nodes that no output needs. Left in, they would make an input of a part that its other nodes do not read."""
    needed = {value.name for value in graph.output}
    found = set()
    for index in range(len(graph.node) - 1, -1, -1):
        node = graph.node[index]
        if needed.isdisjoint(node.output):
            found.add(index)
        else:
            needed |= reads_of(node)
    return found


def _groups(
    graph: onnx.GraphProto, on_cpu: Mapping[int, str], constant: set[int], observed: Observed
) -> list[GraphPart]:
    """Nodes of one level form a group. A level is odd on the NPU and even on the CPU and never decreases along an edge,
    so no path leaves a group and returns to it."""
    producer = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    level: dict[int, int] = {}
    for index, node in enumerate(graph.node):
        if index in constant:
            continue
        behind = [level[producer[name]] for name in reads_of(node) if name in producer and producer[name] in level]
        highest = max(behind, default=0)
        odd = index not in on_cpu
        level[index] = highest if highest % 2 == odd else highest + 1
    by_level: dict[int, list[int]] = {}
    for index, number in level.items():
        if number % 2:
            by_level.setdefault(number, []).append(index)
    return [_with_borders(graph, nodes, constant, observed) for _, nodes in sorted(by_level.items())]


def _with_borders(graph: onnx.GraphProto, nodes: Iterable[int], constant: set[int], observed: Observed) -> GraphPart:
    inside = set(nodes)
    fixed = {tensor.name for tensor in graph.initializer} | set(observed.constants)
    made = {name for index in inside for name in graph.node[index].output if name}
    read_outside = {value.name for value in graph.output}
    for index in range(len(graph.node) - 1, -1, -1):
        node = graph.node[index]
        # A node that depends on shapes alone counts as outside only if something outside needs it.
        if index not in inside and (index not in constant or read_outside.intersection(node.output)):
            read_outside |= reads_of(node)
    part = GraphPart(sorted(inside))
    for index in part.nodes:
        node = graph.node[index]
        for name in node.input:
            if name and name not in made and name not in fixed and name not in part.inputs:
                part.inputs.append(name)
        part.outputs += [name for name in node.output if name in read_outside]
    return part


def _not_worth(graph: onnx.GraphProto, parts: Iterable[GraphPart]) -> dict[int, str]:
    moved = {}
    for part in parts:
        kinds = {graph.node[index].op_type for index in part.nodes}
        if not kinds & HEAVY or not part.inputs or not part.outputs:
            reason = "too little work to be worth two crossings" if part.inputs else "it reads no input"
            moved.update(dict.fromkeys(part.nodes, reason))
    return moved


def _bad_cuts(graph: onnx.GraphProto, parts: Iterable[GraphPart], observed: Observed, batch: bool) -> dict[int, str]:
    """Nodes at a border where the graph must not be cut: they move to the CPU, and the border with them."""
    moved: dict[int, str] = {}
    for part in parts:
        for name in part.inputs:
            reason = _why_no_border(name, observed, batch)
            if reason is not None:
                moved.update({index: reason for index in part.nodes if name in graph.node[index].input})
        for name in part.outputs:
            reason = _why_no_border(name, observed, batch)
            if reason is not None:
                moved.update({index: reason for index in part.nodes if name in graph.node[index].output})
    return moved


def _why_no_border(name: str, observed: Observed, batch: bool) -> str | None:
    kind = observed.elem_types.get(name)
    if kind is None:
        return f"{name!r} is not a tensor that an NPU can hold"
    if 0 in observed.shapes[name]:
        return f"{name!r} is empty, and compiled models leave out such tensors"
    if kind not in _FLOATS:
        return f"{name!r} holds {onnx.TensorProto.DataType.Name(kind).lower()}, which does not cross exactly"
    if batch and isinstance((*observed.declared.get(name, (None,)), 1)[0], int):
        return f"{name!r} has no axis for the batch, which parts run sample by sample"
    return beyond_float16(name, observed.largest.get(name, 0.0))


def beyond_float16(name: str, largest: float) -> str | None:
    """Why float16 cannot hold a tensor, given its largest absolute value; None if it can."""
    if largest <= _FLOAT16_MAX:
        return None
    return f"{name!r} holds values up to {largest:.0f}, more than float16 can"
