"""Arithmetic with indices and the samples' own positions: how exporters write ``x[arange(N), i]``.

The samples' rows are concatenated, and row ``n * length + i[n]`` is selected: it belongs to sample n if i is known to
be less than the length.
"""

from __future__ import annotations

from dataclasses import replace

from ._call import NodeCall
from ._elementwise import broadcast, n_ary
from ._lengths import Length, at_least_zero, over, times
from ._values import Abstract, FlatRows, Positions, Value


def _positions(call: NodeCall) -> tuple[Positions, int] | None:
    """The samples' positions among two inputs, and the index of the other input."""
    found = [call.any(index) for index in range(len(call.inputs))]
    places = [index for index, item in enumerate(found) if isinstance(item, Positions)]
    if len(places) != 1 or len(found) != 2:
        return None
    positions = found[places[0]]
    return (positions, 1 - places[0]) if isinstance(positions, Positions) else None


def add(call: NodeCall) -> list[Abstract]:
    """Add. Positions times a length, plus an index below that length, select from the sample itself."""
    pair = _positions(call)
    if pair is None:
        return list(n_ary(call))
    positions, at = pair
    index = call.value(at)
    below, factor = index.below, positions.factor
    smaller = isinstance(below, int) and isinstance(factor, int) and below < factor
    if index.axis is not None and below is not None and (below == factor or smaller):
        found = broadcast(call, [Value(positions.dims, positions.axis, positions.outer), index])
        if found.axis is not None and found.dims is not None:
            return [FlatRows(found.dims, found.axis, found.outer, factor)]
    raise call.refuse("computes with the samples' positions in a way that is not followed")


def multiply(call: NodeCall) -> list[Abstract]:
    """Mul. The samples' positions times a length are still positions."""
    pair = _positions(call)
    if pair is None:
        return list(n_ary(call))
    positions, at = pair
    factor = _one_length(call, at)
    product = times(positions.factor, factor) if factor is not None else None
    if product is None or len(call.dims(at)) > len(positions.dims):
        raise call.refuse("computes with the samples' positions in a way that is not followed")
    return [replace(positions, factor=product)]


def divide(call: NodeCall) -> list[Abstract]:
    """Div. An index below a * b, divided by a, is an index below b."""
    found = n_ary(call)[0]
    value = call.value(0)
    divisor = _one_length(call, 1) if value.below is not None else None
    if value.below is None or divisor is None or value.axis is None:
        return [found]
    return [replace(found, below=over(value.below, divisor))]


def _one_length(call: NodeCall, index: int) -> Length | None:
    """An input that is a single positive integer, the same for all samples."""
    value = call.value(index)
    if value.entries is None or value.entries.size != 1 or not value.whole:
        return None
    entry: Length = value.entries.reshape(-1).tolist()[0]
    return entry if at_least_zero(entry) and entry != 0 else None
