"""Follows a graph from its inputs to its outputs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..files._wire import WireError
from ._call import NodeCall
from ._graph import Node, NodeGraph
from ._lengths import N, Symbols
from ._numbers import constant_value, fold
from ._rules import FIXED_ONLY, NEVER, RULES
from ._values import Abstract, Refused, Undetermined, Unproved, Value

#: Versions of the standard domain that the rules support.
_OPSETS = range(7, 27)


def prove(graph: NodeGraph, without: Collection[str] = ()) -> None:
    """Prove that the samples are independent; ``without``: inputs and outputs to ignore.

    Raises Unproved with the reason, WireError if a node is damaged.
    """
    known = follow(graph, without)
    outputs = [name for name in graph.outputs if name not in without]
    if not outputs:
        raise Unproved("the model has no outputs")
    for name in outputs:
        _check_output(name, known.get(name))


def follow(graph: NodeGraph, without: Collection[str] = ()) -> dict[str, Abstract]:
    """What is known about each tensor, by name. Raises as :func:`prove`, if nothing can be known."""
    if graph.opset not in _OPSETS:
        raise Unproved(
            f"the model uses version {graph.opset} of the standard operators; "
            f"{_OPSETS[0]} to {_OPSETS[-1]} are followed"
        )
    if graph.replaces_operators:
        raise Unproved("the model replaces standard operators by functions of its own")
    known: dict[str, Abstract] = {name: constant_value(constant) for name, constant in graph.constants().items()}
    symbols = Symbols()
    _add_inputs(graph, known, symbols, without)
    for node in graph.nodes:
        for name, found in zip(node.outputs, _outputs(node, known, graph.opset, symbols)):
            if name:
                known[name] = found
    return known


def _add_inputs(graph: NodeGraph, known: dict[str, Abstract], symbols: Symbols, without: Collection[str]) -> None:
    if not graph.inputs:
        raise Unproved("the model has no inputs")
    for value, _ in graph.inputs.values():
        if value.name in without:
            known[value.name] = Refused(f"input {value.name!r} does not count")
            continue
        if value.kind != "tensor" or not value.dims:
            raise Unproved(f"input {value.name!r} has no axes that are known")
        if isinstance(value.dims[0], int):
            raise Unproved(f"input {value.name!r} has a first axis of fixed length {value.dims[0]}")
        # Named or not: a call is split only if all other axes have the compiled lengths, so they do not grow with N.
        rest = [dim if isinstance(dim, int) else symbols.length() for dim in value.dims[1:]]
        known[value.name] = Value((N, *rest), axis=0)


def _check_output(name: str, found: Abstract | None) -> None:
    if found is None:
        raise Unproved(f"output {name!r} is produced by no node")
    if isinstance(found, Refused):
        raise Unproved(found.reason)
    if not isinstance(found, Value):
        raise Unproved(f"output {name!r} is computed from the number of samples")
    if found.axis is None or found.dims is None:
        raise Unproved(f"output {name!r} is the same for all samples: it has no axis for them")
    if found.axis != 0:
        raise Unproved(f"output {name!r} has the samples along axis {found.axis}, not along the first one")
    if found.dims[0] != N:
        raise Unproved(f"output {name!r} has a first axis whose length is not the number of samples")


def _outputs(node: Node, known: dict[str, Abstract], opset: int, symbols: Symbols) -> Sequence[Abstract]:
    """What is known about the node's outputs, one entry per output."""
    count = len(node.outputs)
    try:
        inputs = [_input(node, name, known) if name else None for name in node.inputs]
        found = list(_follow(NodeCall(node, inputs, opset, symbols)))
    except Unproved as problem:
        return [Refused(problem.reason)] * count
    except (ArithmeticError, LookupError, TypeError, ValueError) as problem:
        if isinstance(problem, WireError):
            raise
        return [Refused(f"{node} has inputs and attributes that do not match")] * count
    if len(found) < count:
        found += [Refused(f"{node} has an output that is not supported")] * (count - len(found))
    return found[:count]


def _input(node: Node, name: str, known: dict[str, Abstract]) -> Abstract:
    if name not in known:
        raise Unproved(f"{node} reads {name!r}, which no node before it produces")
    return known[name]


def _follow(call: NodeCall) -> Sequence[Abstract]:
    node = call.node
    for found in call.inputs:
        if isinstance(found, Refused):
            raise Unproved(found.reason)
    if node.domain:
        raise call.refuse(f"is an operator of the domain {node.domain!r}, which is not supported")
    if node.op_type in NEVER:
        raise call.refuse(NEVER[node.op_type])
    folded = fold(call)
    if folded is not None:
        return folded
    rule = RULES.get(node.op_type)
    fixed = all(found is None or (isinstance(found, Value) and found.axis is None) for found in call.inputs)
    if rule is None:
        if fixed and node.op_type in FIXED_ONLY:
            return [Value(None)] * len(node.outputs)
        raise call.refuse("is not a supported operator")
    if not fixed:
        return rule(call)
    try:
        return rule(call)
    except Undetermined:
        raise
    except Unproved:
        # The same for all samples, whatever it is.
        return [Value(None)] * len(node.outputs)
