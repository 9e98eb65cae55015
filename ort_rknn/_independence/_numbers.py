"""Small integer tensors whose elements are followed: what exporters compute from Shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ._arithmetic import COMPUTES, Element
from ._call import NodeCall
from ._graph import Constant
from ._lengths import Length, Symbols, has_samples, product
from ._moves import MOVES
from ._values import ENTRY_LIMIT, Abstract, Counted, Entries, Refused, Value, as_entries

#: Larger numbers may be truncated to 32 bits.
_LARGEST = (1 << 31) - 1
_FLOAT, _INT32, _INT64, _BOOL, _DOUBLE = 1, 6, 7, 9, 11


def number_value(entries: Entries, whole: bool = True) -> Value | Counted:
    """What is known about a tensor with these elements."""
    for entry in entries.reshape(-1).tolist():
        if entry is None or has_samples(entry):
            return Counted(entries, whole)
    return Value(entries.shape, entries=entries, whole=whole)


def fold(call: NodeCall) -> Sequence[Abstract] | None:
    """The outputs, if the elements of all inputs are known; None if the node must be followed in another way."""
    moves, computes = MOVES.get(call.node.op_type), COMPUTES.get(call.node.op_type)
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
