"""The operators of a compiled model, where each runs, and how much memory it takes, without any runtime.

The node and tensor tables of the graph were determined from files of rknn-toolkit2 2.5.0, and agree with the layer
table that the toolkit logs. What a file does not record is left out, as in :mod:`ort_rknn.files.rknn`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..adapter.contract import AdapterError, ModelSource
from ._flatbuffer import Budget, FlatbufferError, Table
from ._source import Source, describe_head, describe_source, open_source
from .rknn import NotRknnError, RknnFileError, is_rknn, measure

__all__ = ["NO_LOWERING", "Operator", "Operators", "alone", "operators_of", "read_operators", "splits"]

Where = Literal["NPU", "CPU", "nowhere"]

_MODEL_GRAPHS, _GRAPH_TENSORS, _GRAPH_NODES = 2, 0, 1
_NODE_TYPE, _NODE_NAME, _NODE_TARGET = 1, 2, 3
_TENSOR_ROLE, _TENSOR_SIZE, _TENSOR_OFFSET = 2, 12, 13
#: Absent for the CPU.
_TARGET_NPU = 2
_INPUT, _OUTPUT, _INTERNAL = 1, 2, 3
_WEIGHTS = frozenset((4, 5, 8))
_NODE_LIMIT = _TENSOR_LIMIT = 1 << 17
_NAME_LIMIT = 4096
_SETS = 512
_LEAST_BUDGET = 1 << 20

# fmt: off
#: Types that the converter passes on under their ONNX name although no runtime has them: it logs "No lowering found"
#: and exits successfully, but the model fails on the board. Seen with rknn-toolkit2 2.5.0 on single-node models, for
#: every form of the type that was tried.
NO_LOWERING: frozenset[str] = frozenset((
    "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Bernoulli", "BitwiseAnd", "BitwiseNot", "BitwiseOr",
    "BitwiseXor", "CastLike", "Ceil", "Celu", "CenterCropPad", "Col2Im", "Compress", "Cosh", "Det", "EyeLike",
    "IsInf", "IsNaN", "LpPool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "NegativeLogLikelihoodLoss",
    "OptionalGetElement", "Or", "ReduceL1", "ReduceLogSum", "ReduceProd", "ReduceSumSquare", "STFT", "Scatter",
    "ScatterElements", "Selu", "Shrink", "Sign", "Sinh", "Size", "SoftmaxCrossEntropyLoss", "Softsign", "Tan",
    "TfIdfVectorizer", "Trilu", "Xor",
))

#: ONNX operators that became NPU layers, and those that became a layer of the runtime on the CPU, in single-node
#: models. Seen with rknn-toolkit2 2.5.0 for rk3588, on the test models of the package onnx; the form of a node (shapes,
#: attributes, surrounding nodes) may change it.
_ALONE_ON_NPU = frozenset((
    "Abs", "Add", "And", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "ConvTranspose",
    "DepthToSpace", "Div", "Dropout", "Elu", "Expand", "Flatten", "Gather", "GatherElements",
    "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
    "LeakyRelu", "MatMul", "MaxPool", "Mul", "Neg", "PRelu", "Pad", "ReduceL2", "ReduceMean", "ReduceSum",
    "Relu", "Reshape", "ScatterND", "Sigmoid", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze",
    "Sub", "Sum", "Tanh", "ThresholdedRelu", "Transpose", "Unsqueeze", "Upsample", "Where",
))
_ALONE_ON_CPU = frozenset((
    "ArgMax", "ArgMin", "AveragePool", "Cos", "DeformConv", "Equal", "Erf", "Exp", "Floor", "GatherND", "Gemm",
    "Greater", "GreaterOrEqual", "Hardmax", "LRN", "LayerNormalization", "Less", "LessOrEqual", "Log",
    "LogSoftmax", "Max", "MaxUnpool", "Mod", "Not", "OneHot", "Pow", "Reciprocal", "Resize", "ReverseSequence",
    "RoiAlign", "Round", "Scan", "Sin", "SpaceToDepth", "Tile", "TopK",
))
# fmt: on


def alone(op_type: str, domain: str = "") -> Where | None:
    """Where an ONNX operator ran when it was compiled alone; None if unknown."""
    if domain not in ("", "ai.onnx"):
        return None
    if op_type in NO_LOWERING:
        return "nowhere"
    return "NPU" if op_type in _ALONE_ON_NPU else "CPU" if op_type in _ALONE_ON_CPU else None


#: The vendor's list of operators that several cores share under ``tp_mode`` ("RKNN Compiler Support Operator List"
#: 2.3.2), and operators that may be fused to a convolution that is still shared.
_SPLIT = frozenset(("Conv", "Add", "Mul"))
_SPLIT_BEHIND_CONV = ("LeakyRelu", "PRelu", "Relu", "Clip", "Add", "Mul")


def splits(kind: str) -> bool:
    """Whether several cores share such an operator under ``tp_mode``: "Conv", and compiled types such as "ConvRelu"."""
    if kind in _SPLIT:
        return True
    rest = kind.removeprefix("Conv")
    if rest == kind:
        return False
    while rest:
        behind = next((name for name in _SPLIT_BEHIND_CONV if rest.startswith(name)), None)
        if behind is None:
            return False
        rest = rest[len(behind) :]
    return True


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a compiled model."""

    kind: str
    """Its compiled type: "ConvRelu", "Softmax"."""
    name: str
    """"Conv:c1": what it was made from."""
    where: Where
    """"CPU": inside the runtime. "nowhere": on the CPU according to the file, but no runtime has it."""


@dataclass(frozen=True, slots=True)
class Operators:
    """The operators of a compiled model; for a dynamic model, those of its largest shape set."""

    operators: tuple[Operator, ...]
    """In execution order, without the inputs and outputs."""
    weights: int
    """Bytes of weights and constants, shared by all shape sets."""
    internal: int
    """Bytes of a context for tensors between operators."""

    @property
    def without_lowering(self) -> tuple[Operator, ...]:
        """Operators that no runtime can run."""
        return tuple(each for each in self.operators if each.where == "nowhere")


def read_operators(source: Source) -> Operators:
    """Read the operators of an .rknn file (a path, or its bytes). Takes some microseconds per operator.

    Raises RknnFileError if it is not an .rknn model, is truncated, or its tables cannot be read (encrypted models);
    OSError if it cannot be opened.
    """
    name = describe_source(source)
    with open_source(source, RknnFileError) as data:
        head = data[:64]
        if not is_rknn(head):
            raise NotRknnError(f"{name}: not an .rknn model; it looks like {describe_head(head)}")
        if not head.startswith(b"RKNN") or len(data) < 24:
            raise RknnFileError(f"{name}: its operators cannot be read: it is encrypted or cut short")
        try:
            model, _ = measure(data, int.from_bytes(head[8:16], "little"))
            root = Table.root(data, *model, Budget(max(len(data), _LEAST_BUDGET)))
            graph = root.table(_MODEL_GRAPHS, 0, _SETS)
            return _read(graph)
        except (FlatbufferError, ValueError) as problem:
            raise RknnFileError(f"{name}: its operators cannot be read: {problem}") from None


def operators_of(model: ModelSource) -> Operators | None:
    """The operators of a compiled model that an adapter is given, which stays open; None where they cannot be read: it
    is encrypted, say, or a stand-in."""
    try:
        return read_operators(model.data if model.data is not None else model.open_path())
    except (RknnFileError, AdapterError, OSError):
        return None


def _read(graph: Table) -> Operators:
    operators = []
    for index in range(graph.count(_GRAPH_NODES, _NODE_LIMIT)):
        node = graph.table(_GRAPH_NODES, index, _NODE_LIMIT)
        kind, name = (
            (node.string(slot, _NAME_LIMIT) or b"").decode("utf-8", "replace") for slot in (_NODE_TYPE, _NODE_NAME)
        )
        if kind in ("InputOperator", "OutputOperator"):
            continue
        where: Where = "NPU" if node.byte(_NODE_TARGET) == _TARGET_NPU else "CPU"
        operators.append(Operator(kind, name, "nowhere" if where == "CPU" and kind in NO_LOWERING else where))
    weights = internal = 0
    for index in range(graph.count(_GRAPH_TENSORS, _TENSOR_LIMIT)):
        tensor = graph.table(_GRAPH_TENSORS, index, _TENSOR_LIMIT)
        role, size = tensor.byte(_TENSOR_ROLE), tensor.number(_TENSOR_SIZE) or 0
        if role in _WEIGHTS:
            weights += size
        elif role in (_INPUT, _OUTPUT, _INTERNAL):
            internal = max(internal, (tensor.number(_TENSOR_OFFSET) or 0) + size)
    return Operators(tuple(operators), weights, internal)
