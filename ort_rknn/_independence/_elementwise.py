"""Elementwise operators, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

from ._call import NodeCall
from ._lengths import Length
from ._values import Value

#: One input, an output of the same shape.
UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "LeakyRelu",
    "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
#: Several inputs, broadcast.
BROADCAST = (
    "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Clip", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Or", "Pow", "Sub", "Sum",
    "Where", "Xor",
)  # fmt: skip


def broadcast_length(call: NodeCall, a: Length, b: Length) -> Length:
    """The broadcast of two lengths that do not grow with N."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    # A symbol is either 1 or the other length.
    if type(a) is int:
        return a
    return b if type(b) is int else call.length()


def broadcast(call: NodeCall, values: Sequence[Value]) -> Value:
    """The common shape, and the axis that holds the samples: the same for all, counted from the end."""
    samples = [value for value in values if value.axis is not None]
    if not samples and any(value.dims is None for value in values):
        return Value(None)
    shapes = [call.shape_of(value) for value in values]
    rank = max(map(len, shapes))
    place: int | None = None
    first = samples[0] if samples else None
    if first is not None and first.axis is not None:
        shape = call.shape_of(first)
        place = first.axis - len(shape) + rank
        for other in samples[1:]:
            dims = call.shape_of(other)
            axis = -1 if other.axis is None else other.axis
            if axis - len(dims) + rank != place:
                raise call.refuse("combines samples with each other: they lie along different axes of its inputs")
            if dims[axis] != shape[first.axis] or other.outer != first.outer:
                raise call.refuse("combines samples with each other: its inputs hold them in different orders")
    result: list[Length] = []
    for position in range(rank):
        if position == place and first is not None and first.axis is not None:
            for value, dims in zip(values, shapes):
                at = position - rank + len(dims)
                if value.axis is None and at >= 0 and dims[at] != 1:
                    raise call.refuse(
                        f"combines the samples with a tensor that has {_say(dims[at])} along their axis, not 1"
                    )
            result.append(call.shape_of(first)[first.axis])
            continue
        length: Length = 1
        for dims in shapes:
            at = position - rank + len(dims)
            if at >= 0:
                length = broadcast_length(call, length, dims[at])
        result.append(length)
    if first is None:
        return Value(tuple(result))
    return Value(tuple(result), place, first.outer)


def _say(length: Length) -> str:
    return str(length) if type(length) is int else "an unknown length"


def unary(call: NodeCall) -> list[Value]:
    """The same shape."""
    value = call.value(0)
    call.fixed_from(1)
    return [Value(value.dims, value.axis, value.outer)]


def n_ary(call: NodeCall) -> list[Value]:
    """All inputs, broadcast."""
    return [broadcast(call, call.values())]


def prelu(call: NodeCall) -> list[Value]:
    """PRelu: the slope is broadcast to the input, not the other way around."""
    values = call.values()
    if len(values) != 2 or len(call.shape_of(values[1])) > len(call.shape_of(values[0])):
        raise call.refuse("has a slope of more axes than its input")
    return [broadcast(call, values)]


def cast_like(call: NodeCall) -> list[Value]:
    """The second input only determines the type."""
    value = call.value(0)
    return [Value(value.dims, value.axis, value.outer)]
