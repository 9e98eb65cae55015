"""Operators that concatenate tensors along an axis, or take parts of them."""

from __future__ import annotations

import numpy as np

from ._call import NodeCall
from ._lengths import Length, Term, has_samples, over
from ._numbers import number_value
from ._shapes import as_length
from ._values import Abstract, Counted, IndexRows, Positions, Value

#: Larger ends of slices mean "to the end": TensorFlow's exporter writes 1e9, others the largest integers.
_END = 10**9


def _plus(call: NodeCall, a: Length, b: Length) -> Length:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if isinstance(a, Term) and isinstance(b, Term) and a[1:] == b[1:]:
        return Term(a.factor + b.factor, a.symbols, a.samples)
    return call.length()


def concat(call: NodeCall) -> list[Abstract]:
    """Concat along an axis other than the samples'."""
    first = call.any(0)
    if isinstance(first, Positions):
        return [_index_rows(call, first)]
    if any(isinstance(found, Counted) for found in call.inputs):
        arrays = [call.entries_of(call.any(index)) for index in range(len(call.inputs))]
        return [number_value(np.concatenate(arrays, call.number("axis", 0)))]
    values = call.values()
    shapes = [call.shape_of(value) for value in values]
    rank = len(shapes[0])
    axis = call.axis(call.number("axis", 0), rank)
    if any(len(dims) != rank for dims in shapes):
        raise call.refuse("has inputs of different ranks")
    samples = [value for value in values if value.axis is not None]
    found = samples[0] if samples else values[0]
    dims = call.shape_of(found)
    if samples:
        alike = all(
            value.axis == found.axis and value.outer == found.outer and shape[found.axis or 0] == dims[found.axis or 0]
            for value, shape in zip(values, shapes)
        )
        if not alike:
            raise call.refuse("concatenates the samples with a tensor that does not hold them along the same axis")
        if found.axis == axis:
            raise call.refuse("concatenates along the samples' axis")
    result = list(dims)
    for at in range(rank):
        if at != axis:
            known = [shape[at] for shape in shapes if isinstance(shape[at], int)]
            result[at] = known[0] if known and at != found.axis else dims[at]
    total: Length = shapes[0][axis]
    for shape in shapes[1:]:
        total = _plus(call, total, shape[axis])
    result[axis] = total
    return [Value(tuple(result), found.axis, found.outer)]


def _index_rows(call: NodeCall, first: Positions) -> IndexRows:
    """Positions next to numbers of the samples, along the last axis: rows of indices."""
    rank = len(first.dims)
    last = rank - 1
    if (
        first.factor != 1
        or call.axis(call.number("axis", 0), rank) != last
        or first.dims[last] != 1
        or first.axis == last
    ):
        raise call.refuse("computes with the samples' positions in a way that is not followed")
    total = first.dims[last]
    for index in range(1, len(call.inputs)):
        value = call.value(index)
        dims = call.shape_of(value)
        fits = len(dims) == rank and value.axis in (None, first.axis)
        if not fits or dims[first.axis] != first.dims[first.axis] or value.outer != first.outer:
            raise call.refuse("computes with the samples' positions in a way that is not followed")
        total = _plus(call, total, dims[last])
    return IndexRows((*first.dims[:last], total), first.axis, first.outer)


def split(call: NodeCall) -> list[Abstract]:
    """Split along an axis other than the samples'."""
    value = call.value(0)
    dims = call.shape_of(value)
    axis = call.axis(call.number("axis", 0), len(dims))
    if axis == value.axis:
        raise call.refuse("splits along the samples' axis")
    call.fixed_from(1)
    count = len(call.node.outputs)
    whole = dims[axis]
    sizes: list[Length] = list(call.numbers("split") or [])
    if call.has(1):
        sizes = [as_length(call, entry) for entry in call.entries(1)]
    if not sizes:
        part = over(whole, count)
        sizes = [part if part is not None else call.length() for _ in range(count)]
    if len(sizes) != count:
        raise call.refuse("has a different number of lengths than outputs")
    if any(map(has_samples, sizes)):
        raise call.refuse("has a length that depends on how many samples there are")
    return [Value((*dims[:axis], size, *dims[axis + 1 :]), value.axis, value.outer) for size in sizes]


def slices(call: NodeCall) -> list[Abstract]:
    """Slice along axes other than the samples', or all of the samples' axis."""
    value = call.value(0)
    dims = call.shape_of(value)
    if call.opset < 10:
        starts: list[Length] = list(call.numbers("starts") or [])
        ends: list[Length] = list(call.numbers("ends") or [])
        axes, steps = call.numbers("axes"), None
    else:
        starts, ends = call.entries(1), call.entries(2)
        axes = call.integers(3) if call.has(3) else None
        steps = call.entries(4) if call.has(4) else None
    axes = [call.axis(axis, len(dims)) for axis in (axes if axes is not None else range(len(starts)))]
    steps = steps or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or len(set(axes)) < len(axes):
        raise call.refuse("has starts, ends, axes and steps of different lengths")
    result = list(dims)
    for start, end, axis, step in zip(starts, ends, axes, steps):
        to_the_end = end == dims[axis] or (isinstance(end, int) and end >= _END)
        if start == 0 and step == 1 and to_the_end:
            continue
        if axis == value.axis:
            raise call.refuse("takes some of the samples")
        if any(map(has_samples, (start, end, step))):
            raise call.refuse("takes a part that depends on how many samples there are")
        result[axis] = _cut(call, dims[axis], start, end, step)
    return [Value(tuple(result), value.axis, value.outer)]


def _cut(call: NodeCall, length: Length, start: Length, end: Length, step: Length) -> Length:
    if isinstance(start, int) and isinstance(end, int) and isinstance(step, int) and step and isinstance(length, int):
        return len(range(*slice(start, end, step).indices(length)))
    return call.length()
