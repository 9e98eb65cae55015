"""Operators that pick elements by index."""

from __future__ import annotations

from ._call import NodeCall
from ._lengths import Length, N, over
from ._values import Abstract, FlatRows, IndexRows, Value


def gather(call: NodeCall) -> list[Abstract]:
    """Gather: from a table with indices that belong to the samples, or from the samples with indices that are the same
    for all."""
    data, rows = call.value(0), call.any(1)
    dims = call.shape_of(data)
    axis = call.axis(call.number("axis", 0), len(dims))
    if isinstance(rows, FlatRows):
        if not data.axis == axis == 0 or data.outer != 1 or over(dims[0], N) != rows.factor:
            raise call.refuse("uses the samples' positions as indices into another tensor than the samples")
        return [Value((*rows.dims, *dims[1:]), rows.axis, rows.outer)]
    indices = call.value(1)
    picked = call.shape_of(indices)
    result = (*dims[:axis], *picked, *dims[axis + 1 :])
    if data.axis is not None and indices.axis is not None:
        raise call.refuse("selects from all samples by indices that each sample computes")
    if indices.axis is not None:
        return [Value(result, axis + indices.axis, indices.outer)]
    if data.axis == axis:
        raise call.refuse("selects some of the samples")
    if data.axis is None:
        return [Value(result)]
    return [Value(result, data.axis if data.axis < axis else data.axis + len(picked) - 1, data.outer)]


def gather_elements(call: NodeCall) -> list[Abstract]:
    """GatherElements: elementwise along all axes except one."""
    data, indices = call.value(0), call.value(1)
    dims, picked = call.shape_of(data), call.shape_of(indices)
    axis = call.axis(call.number("axis", 0), len(dims))
    if data.axis is None and indices.axis is None:
        return [Value(picked)]
    if data.axis != indices.axis or data.axis is None or data.outer != indices.outer:
        raise call.refuse("selects across samples: its inputs do not hold them along the same axis")
    if data.axis == axis:
        raise call.refuse("selects elements along the samples' axis")
    if len(dims) != len(picked) or dims[data.axis] != picked[data.axis]:
        raise call.refuse("selects across samples: its inputs hold them in different orders")
    return [Value(picked, indices.axis, indices.outer)]


def gather_nd(call: NodeCall) -> list[Abstract]:
    """GatherND. Rows of indices that begin with the sample's own position select from that sample: ``x[arange(N),
    i]``."""
    data, found = call.value(0), call.any(1)
    dims = call.shape_of(data)
    batch = call.number("batch_dims", 0)
    if isinstance(found, IndexRows):
        # Data whose first axis is exactly N: position n selects sample n.
        if batch or data.axis != 0 or dims[0] != N or data.outer != 1:
            raise call.refuse("uses the samples' positions as indices into another tensor than the samples")
        width = found.dims[-1]
        if not isinstance(width, int) or not 1 <= width <= len(dims):
            raise call.refuse("has indices longer than the rank of its input")
        return [Value((*found.dims[:-1], *dims[width:]), found.axis, found.outer)]
    indices = call.value(1)
    picked = call.shape_of(indices)
    columns: Length | None = picked[-1] if picked else None
    width = columns if isinstance(columns, int) else -1
    if not isinstance(width, int) or batch + width > len(dims) or batch >= len(picked):
        raise call.refuse("has indices of a length that is not known")
    result = (*picked[:-1], *dims[batch + width :])
    if data.axis is None and indices.axis is None:
        return [Value(result)]
    if indices.axis == len(picked) - 1:
        raise call.refuse("takes a row of indices from several samples")
    if data.axis is None:
        if indices.axis is not None and indices.axis < batch:
            raise call.refuse("uses the samples' positions as indices into another tensor than the samples")
        return [Value(result, indices.axis, indices.outer)]
    if indices.axis is None:
        if data.axis < batch + width:
            raise call.refuse("selects some of the samples")
        return [Value(result, data.axis - batch - width + len(picked) - 1, data.outer)]
    if not data.axis == indices.axis < batch or data.outer != indices.outer or dims[data.axis] != picked[data.axis]:
        raise call.refuse("selects from all samples by indices that each sample computes")
    return [Value(result, indices.axis, indices.outer)]


def one_hot(call: NodeCall) -> list[Abstract]:
    """OneHot: a new axis."""
    indices = call.value(0)
    call.fixed_from(1)
    dims = call.shape_of(indices)
    axis = call.axis(call.number("axis", -1), len(dims) + 1)
    depth: Length = call.length()
    if call.inputs[1] is not None:
        found = call.entries(1)
        depth = found[0] if len(found) == 1 and isinstance(found[0], int) and found[0] >= 0 else depth
    at = None if indices.axis is None else indices.axis + (axis <= indices.axis)
    return [Value((*dims[:axis], depth, *dims[axis:]), at, indices.outer)]


def trilu(call: NodeCall) -> list[Abstract]:
    """Trilu: acts on the last two axes."""
    value = call.value(0)
    call.fixed_from(1)
    dims = call.shape_of(value)
    if value.axis is not None and value.axis >= len(dims) - 2:
        raise call.refuse("selects a triangle across the samples' axis")
    return [Value(dims, value.axis, value.outer)]


def reverse_sequence(call: NodeCall) -> list[Abstract]:
    """ReverseSequence: acts on each sample separately, if the samples are its batch."""
    value, lengths = call.value(0), call.value(1)
    dims = call.shape_of(value)
    batch = call.number("batch_axis", 1)
    if value.axis is None and lengths.axis is None:
        return [Value(dims)]
    if value.axis != batch or lengths.axis != 0 or value.outer != lengths.outer:
        raise call.refuse("reverses along the samples' axis")
    if call.shape_of(lengths)[0] != dims[batch]:
        raise call.refuse("takes its lengths from other samples")
    return [Value(dims, value.axis, value.outer)]
