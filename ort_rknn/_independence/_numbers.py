"""Small integer tensors whose elements are followed: what exporters compute from Shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ._call import NodeCall
from ._graph import Constant
from ._lengths import Length, Symbols, Term, at_least_zero, has_samples, over, product, times
from ._values import ENTRY_LIMIT, Abstract, Counted, Entries, Refused, Value, as_entries

#: Larger numbers may be truncated to 32 bits.
_LARGEST = (1 << 31) - 1
_FLOAT, _INT32, _INT64, _BOOL, _DOUBLE = 1, 6, 7, 9, 11

Element = Length | None


def number_value(entries: Entries, whole: bool = True) -> Value | Counted:
    """What is known about a tensor with these elements."""
    for entry in entries.reshape(-1).tolist():
        if entry is None or has_samples(entry):
            return Counted(entries, whole)
    return Value(entries.shape, entries=entries, whole=whole)


def fold(call: NodeCall) -> Sequence[Abstract] | None:
    """The outputs, if the elements of all inputs are known; None if the node must be followed in another way."""
    moves, computes = _MOVES.get(call.node.op_type), _COMPUTES.get(call.node.op_type)
    if moves is None and computes is None and call.node.op_type not in ("Cast", "ReduceProd"):
        return None
    arrays: list[Entries] = []
    whole = True
    for found in call.inputs:
        if found is None or not isinstance(found, Value | Counted) or found.entries is None:
            return None
        arrays.append(found.entries)
        whole = whole and found.whole
    call.symbols.elements_left -= sum(array.size for array in arrays)
    if not arrays or call.symbols.elements_left < 0:
        return None
    if moves is not None:
        first = call.inputs[0]
        keeps = whole if call.node.op_type == "Concat" else isinstance(first, Value | Counted) and first.whole
        try:
            results = moves(call, arrays)
        except (ValueError, IndexError, TypeError, OverflowError):
            return None  # incompatible numbers; onnxruntime will report it
        if results is None or any(result.size > ENTRY_LIMIT for result in results):
            return None
        return [number_value(result, keeps) for result in results]
    if call.node.op_type == "Cast":
        return _cast(call, arrays[0], whole)
    if not whole:
        return None
    if call.node.op_type == "ReduceProd":
        return _product(call, arrays)
    if computes is None:
        return None
    try:
        spread = np.broadcast_arrays(*arrays)
        if spread[0].size > ENTRY_LIMIT:
            return None
        columns = [array.reshape(-1).tolist() for array in spread]
        elements = [_bounded(computes(*row), row, call.symbols) for row in zip(*columns)]
    except (ValueError, TypeError):
        return None
    return [number_value(as_entries(elements, spread[0].shape))]


def _bounded(result: Element, inputs: Sequence[Element], symbols: Symbols) -> Element:
    """Replaces a result that is unknown or too large, according to its inputs."""
    if result is None or (isinstance(result, int) and abs(result) > _LARGEST):
        grows = any(entry is None or has_samples(entry) for entry in inputs)
        return None if grows else symbols.number()
    return result


def _cast(call: NodeCall, array: Entries, whole: bool) -> Sequence[Abstract] | None:
    to = call.number("to", 0)
    flat: list[Element] = array.reshape(-1).tolist()
    if to == _BOOL:
        found = [int(entry != 0) if isinstance(entry, int) else _bounded(None, [entry], call.symbols) for entry in flat]
        return [number_value(as_entries(found, array.shape))]
    largest = _LARGEST if to in (_INT32, _FLOAT, _DOUBLE) else 1 << 63
    if to not in (_INT32, _INT64, _FLOAT, _DOUBLE):
        return None
    # 32-bit floats represent integers up to 2 ** 24: sufficient for a length, but not for every product of lengths.
    largest = 1 << 24 if to == _FLOAT else largest
    found = [None if entry is None or not _fits(entry, largest, to == _FLOAT) else entry for entry in flat]
    found = [_bounded(entry, [known], call.symbols) for entry, known in zip(found, flat)] if None in found else found
    return [number_value(as_entries(found, array.shape), to in (_INT32, _INT64))]


def _fits(entry: Length, largest: int, alone: bool) -> bool:
    if isinstance(entry, int):
        return abs(entry) <= largest
    return not alone or (entry.factor == 1 and len(entry.symbols) + entry.samples == 1)


def _product(call: NodeCall, arrays: Sequence[Entries]) -> Sequence[Abstract] | None:
    """ReduceProd over the only axis."""
    array = arrays[0]
    axes = arrays[1].reshape(-1).tolist() if len(arrays) > 1 else call.numbers("axes") or [0]
    flat: list[Element] = array.reshape(-1).tolist()
    if array.ndim != 1 or axes not in ([0], [-1]):
        return None
    known = [entry for entry in flat if entry is not None]
    result = product(known) if len(known) == len(flat) else None
    result = _bounded(result, flat, call.symbols)
    return [number_value(as_entries([result], (1,) if call.number("keepdims", 1) else ()))]


# Arithmetic. None in a result: not known; the caller makes a symbol of it where no input depends on N.


def _sum(a: Element, b: Element, sign: int = 1) -> Element:
    if a is None or b is None:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a + sign * b
    if b == 0:
        return a
    if a == 0 and sign == 1:
        return b
    if isinstance(a, Term) and isinstance(b, Term) and a[1:] == b[1:]:
        factor = a.factor + sign * b.factor
        return Term(factor, a.symbols, a.samples) if factor else 0
    return None


def _difference(a: Element, b: Element) -> Element:
    return _sum(a, b, -1)


def _times(a: Element, b: Element) -> Element:
    return None if a is None or b is None else times(a, b)


def _quotient(a: Element, b: Element) -> Element:
    if a is None or b is None:
        return None
    exact = over(a, b)
    if exact is not None:
        return exact
    return a // b if isinstance(a, int) and isinstance(b, int) and a >= 0 and b > 0 else None


def _rest(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int) and a >= 0 and b > 0:
        return a % b
    return 0 if a is not None and b is not None and at_least_zero(a) and over(a, b) is not None else None


def _negative(a: Element) -> Element:
    return None if a is None else times(a, -1)


def _absolute(a: Element) -> Element:
    if isinstance(a, int):
        return abs(a)
    return a if a is not None and at_least_zero(a) else None


def _equal(a: Element, b: Element) -> Element:
    if a is None or b is None:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    if a == b:
        return 1
    # A length is never negative, and there is at least one sample.
    for one, other in ((a, b), (b, a)):
        if isinstance(one, int) and isinstance(other, Term) and at_least_zero(other):
            positive = not other.symbols and other.factor > 0
            return 0 if one < 0 or (one == 0 and positive) else None
    return None


def _compares(compare: Callable[[int, int], bool]) -> Callable[[Element, Element], Element]:
    def result(a: Element, b: Element) -> Element:
        return int(compare(a, b)) if isinstance(a, int) and isinstance(b, int) else None

    return result


def _chooses(choose: Callable[[int, int], int]) -> Callable[..., Element]:
    def result(*values: Element) -> Element:
        found = values[0]
        for value in values[1:]:
            if isinstance(found, int) and isinstance(value, int):
                found = choose(found, value)
            elif found != value:
                return None
        return found

    return result


def _where(condition: Element, a: Element, b: Element) -> Element:
    if isinstance(condition, int):
        return a if condition else b
    return a if a == b else None


def _not(a: Element) -> Element:
    return 1 - a if a in (0, 1) and isinstance(a, int) else None


_COMPUTES: dict[str, Callable[..., Element]] = {
    "Add": _sum,
    "Sub": _difference,
    "Mul": _times,
    "Div": _quotient,
    "Mod": _rest,
    "Neg": _negative,
    "Abs": _absolute,
    "Equal": _equal,
    "Less": _compares(lambda a, b: a < b),
    "LessOrEqual": _compares(lambda a, b: a <= b),
    "Greater": _compares(lambda a, b: a > b),
    "GreaterOrEqual": _compares(lambda a, b: a >= b),
    "Min": _chooses(min),
    "Max": _chooses(max),
    "And": _compares(lambda a, b: bool(a and b)),
    "Or": _compares(lambda a, b: bool(a or b)),
    "Not": _not,
    "Where": _where,
}

# Moving elements about. Each gives the outputs' arrays, or None if the indices are not all known.


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


_MOVES: dict[str, Callable[[NodeCall, Sequence[Entries]], list[Entries] | None]] = {
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


def constant_value(constant: Constant) -> Value:
    """What is known about a tensor in the file."""
    entries = None
    if constant.numbers is not None and constant.numbers.size <= ENTRY_LIMIT:
        numbers = constant.numbers.reshape(-1).tolist()
        if all(math.isfinite(number) and number == int(number) for number in numbers):
            entries = as_entries([int(number) for number in numbers], constant.numbers.shape)
    # Shorter integers wrap around, unlike the arithmetic below.
    return Value(constant.dims, entries=entries, whole=constant.elem_type in (_INT32, _INT64, _BOOL))


def shape(call: NodeCall) -> Sequence[Abstract]:
    """Shape: the axes from ``start`` to ``end``."""
    dims = shape_of_any(call)
    if dims is None:
        return [Value((call.length(),))]
    start, end = call.number("start", 0), call.number("end", len(dims))
    dims = dims[start:end]
    return [number_value(as_entries(dims, (len(dims),)))]


def size(call: NodeCall) -> Sequence[Abstract]:
    """Size: the number of elements."""
    dims = shape_of_any(call)
    found = None if dims is None else product(dims)
    return [number_value(as_entries([_bounded(found, dims or (), call.symbols)], ()))]


def shape_of_any(call: NodeCall) -> tuple[Length, ...] | None:
    """The shape of the first input, whatever it is."""
    found = call.any(0)
    if isinstance(found, Refused):
        return None
    return found.entries.shape if isinstance(found, Counted) else found.dims


def constant(call: NodeCall) -> Sequence[Abstract]:
    """Constant: a tensor, or numbers."""
    attributes = call.node.attributes
    tensor = call.tensor("value")
    if tensor is not None:
        return [constant_value(tensor)]
    for name in ("value_int", "value_ints"):
        if name in attributes:
            found = attributes[name]
            if name == "value_int":
                return [number_value(as_entries([found.number], ()))]
            return [number_value(as_entries(found.numbers, (len(found.numbers),)))]
    if "value_float" in attributes:
        return [Value(())]
    if "value_floats" in attributes:
        return [Value((len(attributes["value_floats"].reals),))]
    return [Value(None)]
