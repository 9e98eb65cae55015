"""Operators that work along some axes: sums, softmax, normalization, sorting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ._call import NodeCall
from ._lengths import Length
from ._values import Abstract, Dims, Undetermined, Value


def _apart(call: NodeCall, value: Value, axes: Iterable[int], does: str) -> None:
    if value.axis is not None and value.axis in set(axes):
        raise call.refuse(f"{does} along the samples' axis")


def reduce(call: NodeCall) -> list[Abstract]:
    """ReduceSum and similar. Without axes they reduce all."""
    value = call.value(0)
    dims = call.shape_of(value)
    axes = call.integers(1) if call.has(1) else call.numbers("axes") or []
    if not axes and call.number("noop_with_empty_axes", 0):
        return [Value(dims, value.axis, value.outer)]
    places = {call.axis(axis, len(dims)) for axis in axes} if axes else set(range(len(dims)))
    _apart(call, value, places, "reduces")
    return [_without(value, dims, places, keep=call.number("keepdims", 1) != 0)]


def _without(value: Value, dims: Dims, places: set[int], *, keep: bool) -> Value:
    """``value`` with these axes set to 1, or removed."""
    result: list[Length] = [1 if at in places else dim for at, dim in enumerate(dims) if keep or at not in places]
    axis = value.axis
    if axis is not None and not keep:
        axis -= sum(at < axis for at in places)
    return Value(tuple(result), axis, value.outer)


def arg(call: NodeCall) -> list[Abstract]:
    """ArgMax, ArgMin."""
    value = call.value(0)
    dims = call.shape_of(value)
    axis = call.axis(call.number("axis", 0), len(dims))
    _apart(call, value, [axis], "looks for the largest element")
    found = _without(value, dims, {axis}, keep=call.number("keepdims", 1) != 0)
    return [replace(found, below=dims[axis])]


def top_k(call: NodeCall) -> list[Abstract]:
    """TopK: values and indices."""
    value = call.value(0)
    dims = call.shape_of(value)
    axis = call.axis(call.number("axis", -1), len(dims))
    _apart(call, value, [axis], "sorts")
    call.fixed_from(1)
    count: Length = call.number("k", 0) if call.opset < 10 else call.entries(1)[0]
    if not isinstance(count, int) or count < 0:
        count = call.length()
    found = Value((*dims[:axis], count, *dims[axis + 1 :]), value.axis, value.outer)
    return [found, replace(found, below=dims[axis])]


def softmax(call: NodeCall) -> list[Abstract]:
    """Softmax, LogSoftmax, Hardmax. Before version 13 they treat all axes from ``axis`` as one."""
    value = call.value(0)
    dims = call.shape_of(value)
    if call.opset >= 13:
        places: Iterable[int] = [call.axis(call.number("axis", -1), len(dims))]
    else:
        places = range(call.axis(call.number("axis", 1), len(dims)), len(dims))
    _apart(call, value, places, "normalizes")
    return [Value(dims, value.axis, value.outer)]


def along_axis(call: NodeCall) -> list[Abstract]:
    """LpNormalization, CumSum: along one axis; the shape stays the same."""
    value = call.value(0)
    dims = call.shape_of(value)
    call.fixed_from(1)
    axis = call.integers(1)[0] if call.node.op_type == "CumSum" else call.number("axis", -1)
    _apart(call, value, [call.axis(axis, len(dims))], "sums")
    return [Value(dims, value.axis, value.outer)]


def layer_normalization(call: NodeCall) -> list[Abstract]:
    """LayerNormalization, RMSNormalization: over all axes from ``axis``, with scale and bias of these axes."""
    value = call.value(0)
    dims = call.shape_of(value)
    axis = call.axis(call.number("axis", -1), len(dims))
    _apart(call, value, range(axis, len(dims)), "normalizes")
    call.fixed_from(1)
    for index in range(1, len(call.inputs)):
        if call.has(index) and value.axis is not None and len(call.dims(index)) > len(dims) - value.axis - 1:
            raise call.refuse("has a scale or bias along the samples' axis")
    reduced = _without(value, dims, set(range(axis, len(dims))), keep=True)
    return [Value(dims, value.axis, value.outer), reduced, reduced]


def mean_variance(call: NodeCall) -> list[Abstract]:
    """MeanVarianceNormalization: includes the first axis by default."""
    value = call.value(0)
    dims = call.shape_of(value)
    axes = call.numbers("axes") or [0, 2, 3]
    _apart(call, value, [call.axis(axis, len(dims)) for axis in axes], "normalizes")
    return [Value(dims, value.axis, value.outer)]


def quantize(call: NodeCall) -> list[Abstract]:
    """QuantizeLinear, DequantizeLinear: one scale, or one per element of an axis other than the samples'."""
    value = call.value(0)
    dims = value.dims
    call.fixed_from(1)
    if value.axis is not None and dims is not None:
        for index in range(1, len(call.inputs)):
            if not call.has(index):
                continue
            scale = call.dims(index)
            if len(scale) > 1:
                raise call.refuse("has a scale for each block")
            axis = call.axis(call.number("axis", 1), max(len(dims), 2))
            if len(scale) == 1 and scale[0] != 1 and axis == value.axis:
                raise call.refuse("has a scale for each sample")
    return [Value(dims, value.axis, value.outer)]


def dropout(call: NodeCall) -> list[Abstract]:
    """Dropout outside training."""
    value = call.value(0)
    if call.has(2):
        mode = call.value(2).entries
        if mode is None or mode.reshape(-1).tolist() != [0]:
            raise Undetermined(call.refuse("draws random numbers (training mode)").reason)
    found = Value(value.dims, value.axis, value.outer)
    return [found, found]
