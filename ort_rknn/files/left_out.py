"""What a converter left out of a compiled model, found by analyzing the ONNX's graph.

rknn-toolkit2 2.5.0 drops inputs that nothing reads, outputs that do not depend on any input's values, and all but one
of several names of an output. None of this is lost: the ONNX still has it. This module proves that nothing else is
missing, without running anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ._onnx_graph import OnnxValue
from ._onnx_part import Nodes, PartNode, read_nodes
from ._source import Source, describe_source, open_source
from ._wire import WireError
from .onnx_model import OnnxFileError

__all__ = ["Disagreement", "LeftOut", "left_out"]


class Disagreement(ValueError):
    """A compiled model lacks something that its ONNX computes, or has something that the ONNX lacks. The message says
    what, and what would help."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What the ONNX has and the compiled model lacks, without any effect on the rest."""

    unread: frozenset[str] = frozenset()
    """Inputs that no output depends on."""
    constants: tuple[str, ...] = ()
    """Outputs that are the same for all input values."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Outputs that are second names of a tensor: their name -> the compiled model's name for it."""
    part: bytes = b""
    """The ONNX model that computes the constants; b"" if there are none."""
    part_inputs: tuple[OnnxValue, ...] = ()
    """Its inputs, all with fixed shapes. Only their shapes matter, not their values."""


def left_out(source: Source, inputs: Sequence[str], outputs: Sequence[str]) -> LeftOut:
    """What a compiled model with these inputs and outputs lacks compared to the ONNX at ``source`` (a path, or its
    bytes).

    Raises Disagreement if something is missing that cannot be provided otherwise, OnnxFileError if the ONNX is damaged,
    OSError if it cannot be opened.
    """
    with open_source(source, OnnxFileError) as data:
        try:
            return _compare(read_nodes(data), inputs, outputs)
        except WireError as problem:
            raise OnnxFileError(f"{describe_source(source)}: a damaged ONNX model; {problem}") from None


def _compare(graph: Nodes, inputs: Sequence[str], outputs: Sequence[str]) -> LeftOut:
    for what, have, declared in (("input", inputs, graph.inputs), ("output", outputs, graph.outputs)):
        foreign = [name for name in have if name not in declared]
        if foreign:
            raise Disagreement(
                f"the compiled model has the {what}s {list(have)}, the ONNX has {list(declared)}; "
                "it was compiled from another model: convert it again"
            )
    if graph.replaces_operators:
        raise Disagreement(
            f"the compiled model has the inputs {list(inputs)} and outputs {list(outputs)}, the ONNX has more, and it "
            "replaces standard operators by functions of its own, so what depends on what is not known"
        )
    flow = _Flow(graph)
    fixed = all(value.dims is not None and all(isinstance(d, int) for d in value.dims) for value, _ in _values(graph))
    constants, copies = [], {}
    kept = {flow.root(name): name for name in outputs}
    for name in graph.outputs:
        if name in outputs:
            continue
        if flow.root(name) in kept:
            copies[name] = kept[flow.root(name)]
        elif flow.value(name) == _CONSTANT or (flow.value(name) == _BY_SHAPE and fixed):
            constants.append(name)
        else:
            raise Disagreement(
                f"the compiled model lacks the output {name!r}, which depends on the inputs; it was converted with "
                f"fewer outputs, or from another ONNX: convert it again with all of {list(graph.outputs)}, or give an "
                f"ONNX that has {list(outputs)} only"
            )
    missing = [name for name in graph.inputs if name not in inputs]
    reached = flow.reached(outputs, across_shapes=not fixed)
    for name in missing:
        if name in reached:
            raise Disagreement(
                f"the compiled model lacks the input {name!r}, which the ONNX's outputs depend on; it was compiled "
                "from another ONNX, or for one value of this input: convert it again with it, or give an ONNX that "
                "does not have it"
            )
    part = b""
    fed: tuple[OnnxValue, ...] = ()
    if constants:
        needed = flow.makers(constants)
        part = graph.cut(needed, constants)
        names = dict.fromkeys(name for node in needed for name in node.reads)
        fed = tuple(value for value, _ in _values(graph) if value.name in names)
    return LeftOut(frozenset(missing), tuple(constants), copies, part, fed)


def _values(graph: Nodes) -> list[tuple[OnnxValue, tuple[int, int]]]:
    return list(graph.inputs.values())


#: What a tensor's values, or its shape, depend on.
_CONSTANT, _BY_SHAPE, _BY_VALUE = 0, 1, 2

_SHAPES_OF = frozenset(("Shape", "Size"))
_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout")
)
#: The shapes of their outputs depend on the first input's values.
SHAPED_BY_VALUES = frozenset(("NonZero", "Unique", "Compress", "NonMaxSuppression", "ConstantOfShape", "Range"))
#: The shapes of their outputs depend on no input's values, even if several inputs are not constant.
SHAPED_BY_SHAPES = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Min", "Max", "Sum", "Mean", "PRelu", "Where", "And", "Or", "Xor"),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "MatMul", "Gemm", "Conv", "ConvTranspose"),
        *("Concat", "Gather", "GatherND", "GatherElements", "ScatterND", "ScatterElements", "LSTM", "GRU", "RNN"),
        *("Einsum", "GridSample", "Clip", "MatMulInteger", "ConvInteger", "QuantizeLinear", "DequantizeLinear"),
        *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"),
    )
)


class _Flow:
    """The dependencies between tensors. Nodes are in topological order, as ONNX requires."""

    def __init__(self, graph: Nodes) -> None:
        self._graph = graph
        self._maker = {name: node for node in graph.nodes for name in node.outputs if name}
        self._values: dict[str, int] = dict.fromkeys(graph.inputs, _BY_VALUE)
        self._shapes: dict[str, int] = {}
        for node in graph.nodes:
            value, shape = self._of(node)
            for name in node.outputs:
                self._values[name], self._shapes[name] = value, shape

    def value(self, name: str) -> int:
        """What the values of a tensor depend on; nothing for an initializer."""
        return self._values.get(name, _CONSTANT)

    def _shape(self, name: str) -> int:
        if name in self._graph.inputs:
            return _BY_SHAPE
        return self._shapes.get(name, _CONSTANT)

    def _of(self, node: PartNode) -> tuple[int, int]:
        reads = node.reads
        value = max(map(self.value, reads), default=_CONSTANT)
        shape = max(map(self._shape, reads), default=_CONSTANT)
        if node.domain or node.has_graph or node.op_type in _RANDOM:
            return _BY_VALUE, _BY_VALUE
        if node.op_type in _SHAPES_OF:
            return self._shape(node.inputs[0]) if node.inputs else _BY_VALUE, _CONSTANT
        if node.op_type in SHAPED_BY_VALUES:
            return max(value, shape), max(value, shape)
        if node.op_type not in SHAPED_BY_SHAPES:
            shape = max((shape, *(self.value(name) for name in node.inputs[1:] if name)))
        # Constant elements spread over a shape that is not constant.
        return max(value, shape) if node.op_type not in SHAPED_BY_SHAPES else value, shape

    def root(self, name: str) -> str:
        """The tensor for which a name is a second name; the name itself if it is the first."""
        seen: set[str] = set()  # the file may contain a cycle of names
        while (maker := self._maker.get(name)) is not None and maker.op_type == "Identity" and not maker.domain:
            if name in seen or not maker.inputs:
                break
            seen.add(name)
            name = maker.inputs[0]
        return name

    def reached(self, outputs: Sequence[str], *, across_shapes: bool) -> set[str]:
        """All names whose values (or, ``across_shapes``, whose shape) the outputs depend on."""
        left, reached = list(outputs), set(outputs)
        while left:
            maker = self._maker.get(left.pop())
            if maker is None:
                continue
            of_shape = not maker.domain and maker.op_type in _SHAPES_OF and maker.inputs
            by_shape = of_shape and self._shape(maker.inputs[0]) < _BY_VALUE
            if by_shape and not across_shapes:
                continue
            for name in maker.reads:
                if name not in reached:
                    reached.add(name)
                    left.append(name)
        return reached

    def makers(self, outputs: Sequence[str]) -> list[PartNode]:
        """The nodes that the outputs need, in the file's order."""
        names = self.reached(outputs, across_shapes=True)
        return [node for node in self._graph.nodes if names.intersection(node.outputs)]
