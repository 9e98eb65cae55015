"""Operators that change a tensor's shape or move its elements without changing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ._call import NodeCall
from ._elementwise import broadcast_length
from ._lengths import Length, N, at_least_zero, has_samples, over, product, times
from ._numbers import number_value
from ._values import ENTRY_LIMIT, Abstract, Counted, Dims, Positions, Value, as_entries


def movable(call: NodeCall, index: int = 0) -> Value | Positions:
    """An input whose elements may be moved."""
    found = call.any(index)
    return found if isinstance(found, Positions) else call.value(index)


def _moved(found: Value | Positions, dims: Sequence[Length], axis: int | None, outer: Length) -> Value | Positions:
    """``found`` with another shape."""
    if isinstance(found, Positions) and axis is not None:
        return replace(found, dims=tuple(dims), axis=axis, outer=outer)
    return Value(tuple(dims), axis, outer, below=found.below if isinstance(found, Value) else None)


def _axis_dims(call: NodeCall, found: Value | Positions) -> Dims:
    return found.dims if isinstance(found, Positions) else call.shape_of(found)


def identity(call: NodeCall) -> list[Abstract]:
    """Identity."""
    return [call.any(0)]


def cast(call: NodeCall) -> list[Abstract]:
    """Cast: numbers that depend on the number of samples must remain integers (see ``fold``)."""
    found = movable(call)
    if isinstance(found, Positions):
        if call.number("to", 0) not in (6, 7):
            raise call.refuse("converts the samples' positions to another type")
        return [found]
    below = found.below if call.number("to", 0) in (6, 7) else None
    return [Value(found.dims, found.axis, found.outer, below=below)]


def transpose(call: NodeCall) -> list[Abstract]:
    """Transpose."""
    found = movable(call)
    if found.dims is None:
        return [Value(None)]
    perm = call.numbers("perm") or list(reversed(range(len(found.dims))))
    if sorted(perm) != list(range(len(found.dims))):
        raise call.refuse("has an attribute 'perm' that does not fit its input")
    axis = None if found.axis is None else perm.index(found.axis)
    return [_moved(found, [found.dims[at] for at in perm], axis, found.outer)]


def _axes(call: NodeCall, rank: int) -> list[int] | None:
    axes = call.integers(1) if call.has(1) else call.numbers("axes")
    return None if axes is None else sorted(call.axis(axis, rank) for axis in axes)


def squeeze(call: NodeCall) -> list[Abstract]:
    """Squeeze. Without axes it would remove the samples' own axis if there is one sample."""
    found = movable(call)
    dims = _axis_dims(call, found)
    axes = _axes(call, len(dims))
    if axes is None:
        raise call.refuse("removes every axis of length 1, which may be the samples' axis")
    if found.axis in axes:
        raise call.refuse("removes the samples' axis")
    axis = None if found.axis is None else found.axis - sum(at < found.axis for at in axes)
    return [_moved(found, [dim for at, dim in enumerate(dims) if at not in axes], axis, found.outer)]


def unsqueeze(call: NodeCall) -> list[Abstract]:
    """Unsqueeze."""
    found = movable(call)
    old = list(_axis_dims(call, found))
    count = len(call.integers(1) if call.has(1) else call.numbers("axes") or [])
    axes = _axes(call, len(old) + count) or []
    if len(set(axes)) < len(axes):
        raise call.refuse("has an axis twice")
    left = iter(range(len(old)))
    order = [None if at in axes else next(left) for at in range(len(old) + len(axes))]
    dims = [1 if at is None else old[at] for at in order]
    axis = None if found.axis is None else order.index(found.axis)
    return [_moved(found, dims, axis, found.outer)]


def as_length(call: NodeCall, entry: Length) -> Length:
    """A number used as a length: it cannot be negative."""
    if at_least_zero(entry):
        return entry
    if isinstance(entry, int):
        raise call.refuse("has a negative length")
    if has_samples(entry):
        raise call.refuse("computes a length from the number of samples in a way that is not followed")
    return call.length()


def reshape(call: NodeCall) -> list[Abstract]:
    """Reshape."""
    found = movable(call)
    target = call.entries(1)
    if call.number("allowzero", 0) and 0 in target:
        raise call.refuse("has a length of zero")
    return [reshaped(call, found, target)]


def flatten(call: NodeCall) -> list[Abstract]:
    """Flatten: all axes before ``axis`` become one, and all others."""
    found = movable(call)
    dims = _axis_dims(call, found)
    axis = call.number("axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    halves = [product(dims[:axis]), product(dims[axis:])]
    if not 0 <= axis <= len(dims) or None in halves or 0 in halves:
        raise call.refuse("has an axis or a shape that is not followed")
    return [reshaped(call, found, [half for half in halves if half is not None])]


def reshaped(call: NodeCall, found: Value | Positions, target: Sequence[Length]) -> Value | Positions:
    """``found`` in the shape ``target``, where 0 copies a length and -1 means the rest.

    The elements keep their order: with P elements before the samples' axis and Q after it, element (p * N + n) * Q + q
    belongs to sample n. In the new shape one axis must hold N in the same order.
    """
    if found.axis is None:
        return Value(tuple(_fixed_lengths(call, found.dims, target)))
    dims = found.dims
    assert dims is not None
    wanted: list[Length | None] = []
    for at, entry in enumerate(target):
        if entry == 0:
            if at >= len(dims):
                raise call.refuse("copies the length of an axis that its input lacks")
            wanted.append(dims[at])
        elif entry == -1:
            wanted.append(None)
        elif at_least_zero(entry):
            wanted.append(entry)
        elif isinstance(entry, int) or at == found.axis or has_samples(entry):
            # An unknown number may be 0, which copies N; or -1, times N.
            raise call.refuse("computes a shape that is not followed")
        else:
            wanted.append(call.length())
    inside = over(dims[found.axis], times(found.outer, N) or 0)
    before = product([*dims[: found.axis], found.outer])
    whole = product(dims)
    places = [at for at, entry in enumerate(wanted) if entry is not None and has_samples(entry)]
    if inside is None or before is None or whole is None or len(places) > 1 or wanted.count(None) > 1:
        raise call.refuse("computes a shape that is not followed")
    known = product([entry for entry in wanted if entry is not None])
    if None in wanted:
        left = over(whole, known) if known is not None else None
        if left is None:
            if not places:
                raise call.refuse("splits the samples in a way that is not followed")
            left = call.length()
        wanted[wanted.index(None)] = left
        if not places:
            # A number that may be negative makes a length unknown: it must not be part of a proof.
            if any(not at_least_zero(entry) for entry in target if entry != -1):
                raise call.refuse("computes a shape that is not followed")
            places = [target.index(-1)]
    if not places:
        raise call.refuse("gives a shape without the samples' axis")
    lengths = [entry for entry in wanted if entry is not None]
    place = places[0]
    outer = over(before, product(lengths[:place]) or 0)
    if outer is None or over(lengths[place], times(outer, N) or 0) is None:
        raise call.refuse("mixes the samples' axis with others")
    return _moved(found, lengths, place, outer)


def _fixed_lengths(call: NodeCall, dims: Dims | None, target: Sequence[Length]) -> list[Length]:
    """The shape of a tensor that is the same for all samples."""
    lengths: list[Length] = []
    for at, entry in enumerate(target):
        if has_samples(entry):
            raise call.refuse("gives the number of samples to a tensor that does not hold them")
        if entry == 0:
            lengths.append(dims[at] if dims is not None and at < len(dims) else call.length())
        elif entry == -1:
            rest = [other for other in target if other != -1]
            whole, known = product(dims) if dims is not None else None, product(rest)
            simple = whole is not None and known is not None and all(map(at_least_zero, rest)) and 0 not in rest
            left = over(whole, known) if simple and whole is not None and known is not None else None
            lengths.append(left if left is not None else call.length())
        else:
            lengths.append(as_length(call, entry))
    return lengths


def expand(call: NodeCall) -> list[Abstract]:
    """Expand: broadcast to a shape. An axis of length 1 that becomes N is the same for each sample."""
    found = movable(call)
    dims = _axis_dims(call, found)
    target = call.entries(1)
    rank = max(len(dims), len(target))
    axis = None if found.axis is None else found.axis - len(dims) + rank
    outer = found.outer
    result: list[Length] = []
    for at in range(rank):
        old = dims[at - rank + len(dims)] if at - rank + len(dims) >= 0 else 1
        new = target[at - rank + len(target)] if at - rank + len(target) >= 0 else 1
        if found.axis is not None and at == axis:
            if new not in (1, old):
                raise call.refuse("broadcasts the samples to another length")
            result.append(old)
        elif has_samples(new):
            if old != 1 or axis is not None:
                raise call.refuse("broadcasts to the number of samples along another axis than theirs")
            axis, outer = at, 1
            result.append(as_length(call, new))
        else:
            result.append(broadcast_length(call, old, as_length(call, new)))
    return [_moved(found, result, axis, outer)]


def tile(call: NodeCall) -> list[Abstract]:
    """Tile: repeats the whole axis, so the number of repetitions goes before N."""
    found = movable(call)
    dims = _axis_dims(call, found)
    repeats = call.entries(1)
    if len(repeats) != len(dims):
        raise call.refuse("has a different number of repeats than axes")
    axis, outer = found.axis, found.outer
    result: list[Length] = []
    for at, (dim, entry) in enumerate(zip(dims, repeats)):
        repeat = as_length(call, entry)
        if has_samples(repeat):
            if axis is not None:
                raise call.refuse("repeats the samples as often as there are samples")
            axis, outer = at, 1
        elif at == found.axis:
            outer = times(outer, repeat) or 0
        length = times(dim, repeat)
        if length is None:
            raise call.refuse("computes a shape that is not followed")
        result.append(length)
    return [_moved(found, result, axis, outer)]


def constant_of_shape(call: NodeCall) -> list[Abstract]:
    """ConstantOfShape."""
    lengths = tuple(as_length(call, entry) for entry in call.entries(0))
    places = [at for at, length in enumerate(lengths) if has_samples(length)]
    if len(places) > 1:
        raise call.refuse("has the number of samples along two axes")
    if places:
        return [Value(lengths, places[0])]
    tensor = call.tensor("value")
    fill = 0 if tensor is None else None
    if tensor is not None and tensor.numbers is not None and tensor.numbers.size == 1 and tensor.elem_type in (6, 7, 9):
        fill = int(tensor.numbers.reshape(-1)[0])
    sizes = [length for length in lengths if isinstance(length, int)]
    count = product(sizes)
    if tensor is None or fill is None or len(sizes) < len(lengths) or not isinstance(count, int) or count > ENTRY_LIMIT:
        return [Value(lengths)]
    return [number_value(as_entries([fill] * count, sizes))]


def ranged(call: NodeCall) -> list[Abstract]:
    """Range. From 0 to N it yields each sample's own position."""
    start, limit, delta = (call.entries(at)[0] for at in range(3))
    whole = all(isinstance(found, Value | Counted) and found.whole for found in call.inputs)
    if (start, limit, delta) == (0, N, 1) and whole:
        return [Positions((N,), 0)]
    if any(map(has_samples, (start, limit, delta))):
        raise call.refuse("counts to a number that depends on how many samples there are")
    if isinstance(start, int) and isinstance(limit, int) and isinstance(delta, int) and delta:
        numbers = range(start, limit, delta)
        if whole and len(numbers) <= ENTRY_LIMIT:
            return [number_value(as_entries(list(numbers), (len(numbers),)))]
        return [Value((len(numbers),))]
    return [Value((call.length(),))]
