"""Operators that rearrange tracked elements and compute nothing.

Each function returns the outputs' arrays, or None if an index is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ._call import NodeCall
from ._values import ENTRY_LIMIT, Entries, as_entries


def _known(array: Entries) -> list[int] | None:
    flat = array.reshape(-1).tolist()
    return flat if all(isinstance(entry, int) for entry in flat) else None


def _axes(call: NodeCall, arrays: Sequence[Entries], default: list[int] | None = None) -> list[int] | None:
    if len(arrays) > 1:
        return _known(arrays[1])
    return call.numbers("axes") or default


def _identity(_call: NodeCall, arrays: Sequence[Entries]) -> list[Entries] | None:
    return [arrays[0]]


def _reshape(call: NodeCall, arrays: Sequence[Entries]) -> list[Entries] | None:
    shape = _known(arrays[1])
    if shape is None or call.number("allowzero", 0):
        return None
    source = arrays[0].shape
    shape = [source[at] if size == 0 and at < len(source) else size for at, size in enumerate(shape)]
    return [arrays[0].reshape(shape)]


def _squeeze(call: NodeCall, arrays: Sequence[Entries]) -> list[Entries] | None:
    axes = _axes(call, arrays)
    return [np.squeeze(arrays[0], None if axes is None else tuple(axes))]


def _unsqueeze(call: NodeCall, arrays: Sequence[Entries]) -> list[Entries] | None:
    axes = _axes(call, arrays)
    return None if axes is None else [np.expand_dims(arrays[0], tuple(axes))]


def _transpose(call: NodeCall, arrays: Sequence[Entries]) -> list[Entries] | None:
    return [np.transpose(arrays[0], call.numbers("perm"))]


def _concat(call: NodeCall, arrays: Sequence[Entries]) -> list[Entries] | None:
    return [np.concatenate(arrays, call.number("axis", 0))]


def _gather(call: NodeCall, arrays: Sequence[Entries]) -> list[Entries] | None:
    indices = _known(arrays[1])
    if indices is None:
        return None
    found = np.take(arrays[0], np.array(indices, np.int64).reshape(arrays[1].shape), call.number("axis", 0))
    if isinstance(found, np.ndarray):
        return [found]
    return [as_entries([found], ())]


def _slice(call: NodeCall, arrays: Sequence[Entries]) -> list[Entries] | None:
    data = arrays[0]
    if call.opset < 10:
        starts, ends, steps = call.numbers("starts"), call.numbers("ends"), None
        axes = call.numbers("axes")
    else:
        starts, ends = _known(arrays[1]), _known(arrays[2])
        axes = _known(arrays[3]) if len(arrays) > 3 else None
        steps = _known(arrays[4]) if len(arrays) > 4 else None
        if (len(arrays) > 3 and axes is None) or (len(arrays) > 4 and steps is None):
            return None
    if starts is None or ends is None:
        return None
    cuts = [slice(None)] * data.ndim
    for at, axis in enumerate(axes if axes is not None else range(len(starts))):
        cuts[axis] = slice(starts[at], ends[at], steps[at] if steps else 1)
    # A slice's end of -1 with a negative step counts from the end, in numpy as in ONNX.
    return [data[tuple(cuts)]]


def _split(call: NodeCall, arrays: Sequence[Entries]) -> list[Entries] | None:
    data, axis = arrays[0], call.number("axis", 0)
    sizes = _known(arrays[1]) if len(arrays) > 1 else call.numbers("split")
    count = len(call.node.outputs)
    if sizes is None and data.shape[axis] % count:
        return None
    sizes = sizes or [data.shape[axis] // count] * count
    return list(np.split(data, np.cumsum(sizes)[:-1], axis))


def _expand(call: NodeCall, arrays: Sequence[Entries]) -> list[Entries] | None:
    shape = _known(arrays[1])
    if shape is None or min(shape, default=1) < 1 or np.prod(shape, dtype=float) > ENTRY_LIMIT:
        return None
    shape = list(np.broadcast_shapes(arrays[0].shape, tuple(shape)))
    return [np.broadcast_to(arrays[0], shape).copy()]


def _tile(call: NodeCall, arrays: Sequence[Entries]) -> list[Entries] | None:
    repeats = _known(arrays[1])
    if repeats is None or min(repeats, default=1) < 0 or np.prod(repeats, dtype=float) > ENTRY_LIMIT:
        return None
    return [np.tile(arrays[0], repeats)]


MOVES: dict[str, Callable[[NodeCall, Sequence[Entries]], list[Entries] | None]] = {
    "Identity": _identity,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Expand": _expand,
    "Tile": _tile,
}
