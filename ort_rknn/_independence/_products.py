"""Matrix products."""

from __future__ import annotations

from ._call import NodeCall
from ._elementwise import broadcast, broadcast_length
from ._lengths import Length
from ._values import Abstract, Value


def _product(call: NodeCall, a: Value, b: Value) -> Value:
    """[..., M, K] by [..., K, L], with the leading axes broadcast. One axis holds the samples: a leading one, M or
    L."""
    left, right = call.shape_of(a), call.shape_of(b)
    if len(left) < 2 or len(right) < 2:
        return _with_vector(call, a, b)
    if a.axis == len(left) - 1 or b.axis == len(right) - 2:
        raise call.refuse("sums over the samples")
    rows, columns = a.axis == len(left) - 2, b.axis == len(right) - 1
    if (rows and b.axis is not None) or (columns and a.axis is not None):
        raise call.refuse("compares the samples with each other")
    before = [_leading(a, rows), _leading(b, columns)]
    found = broadcast(call, before)
    dims = call.shape_of(found)
    result = (*dims, left[-2], right[-1])
    if rows:
        return Value(result, len(dims), a.outer)
    if columns:
        return Value(result, len(dims) + 1, b.outer)
    return Value(result, found.axis, found.outer)


def _leading(value: Value, last: bool) -> Value:
    """All axes of ``value`` except the last two."""
    dims = value.dims
    return Value(None if dims is None else dims[:-2], None if last else value.axis, value.outer)


def _with_vector(call: NodeCall, a: Value, b: Value) -> Value:
    """A product in which one side has a single axis, over which it sums."""
    left, right = call.shape_of(a), call.shape_of(b)
    if a.axis is not None and b.axis is not None:
        raise call.refuse("sums over the samples")
    if len(right) == 1 and len(left) >= 1:
        if b.axis is not None or a.axis == len(left) - 1:
            raise call.refuse("sums over the samples")
        return Value(left[:-1], a.axis, a.outer)
    if len(left) == 1:
        if a.axis is not None or b.axis == len(right) - 2:
            raise call.refuse("sums over the samples")
        axis = None if b.axis is None else b.axis - (b.axis > len(right) - 2)
        return Value((*right[:-2], right[-1]), axis, b.outer)
    raise call.refuse("has an input without axes")


def matmul(call: NodeCall) -> list[Abstract]:
    """MatMul."""
    return [_product(call, call.value(0), call.value(1))]


def _one_number(call: NodeCall, *indices: int) -> None:
    for index in indices:
        if call.has(index) and any(dim != 1 for dim in call.dims(index)):
            raise call.refuse("has a scale or zero point for each row or column")


def matmul_integer(call: NodeCall) -> list[Abstract]:
    """MatMulInteger: two matrices and their zero points."""
    call.fixed(2, 3)
    _one_number(call, 2)
    if call.value(1).axis is not None:
        _one_number(call, 3)
    return [_product(call, call.value(0), call.value(1))]


def quantized_matmul(call: NodeCall) -> list[Abstract]:
    """QLinearMatMul: a, scale, zero point, b, scale, zero point, scale, zero point."""
    call.fixed(1, 2, 4, 5, 6, 7)
    _one_number(call, 1, 2, 6, 7)
    if call.value(3).axis is not None:
        _one_number(call, 4, 5)
    return [_product(call, call.value(0), call.value(3))]


def gemm(call: NodeCall) -> list[Abstract]:
    """Gemm: A by B, either one transposed, plus C."""
    a, b = _turned(call, 0, "transA"), _turned(call, 1, "transB")
    found = _product(call, a, b)
    return [broadcast(call, [found, call.value(2)]) if call.has(2) else found]


def _turned(call: NodeCall, index: int, name: str) -> Value:
    value = call.value(index)
    dims = call.shape_of(value)
    if len(dims) != 2:
        raise call.refuse(f"has an input of {len(dims)} axes, expected 2")
    if not call.number(name, 0):
        return value
    return Value((dims[1], dims[0]), None if value.axis is None else 1 - value.axis, value.outer)


def einsum(call: NodeCall) -> list[Abstract]:
    """Einsum, without an ellipsis: one letter represents the samples, in each input that has them and in the output."""
    equation = call.text("equation", "").replace(" ", "")
    sides = equation.split("->")
    terms = sides[0].split(",")
    if len(sides) != 2 or "." in equation or len(terms) != len(call.inputs):
        raise call.refuse(f"has the equation {equation[:60]!r}, which is not followed")
    lengths: dict[str, Length] = {}
    letter = ""
    outer: Length = 1
    for index, term in enumerate(terms):
        value = call.value(index)
        dims = call.shape_of(value)
        if len(term) != len(dims) or len(set(term)) < len(term):
            raise call.refuse(f"has the equation {equation[:60]!r}, which is not followed")
        for at, (name, dim) in enumerate(zip(term, dims)):
            if at == value.axis:
                if letter and (letter, lengths[letter], outer) != (name, dim, value.outer):
                    raise call.refuse("combines samples with each other")
                letter, outer = name, value.outer
                lengths[name] = dim
            elif name != letter:
                lengths[name] = broadcast_length(call, lengths[name], dim) if name in lengths else dim
    for index, term in enumerate(terms):
        if letter and letter in term and call.value(index).axis != term.index(letter):
            raise call.refuse("combines the samples with something that does not hold them")
    output = sides[1]
    if len(set(output)) < len(output) or not set(output) <= set(lengths):
        raise call.refuse(f"has the equation {equation[:60]!r}, which is not followed")
    if letter and letter not in output:
        raise call.refuse("sums over the samples")
    axis = output.index(letter) if letter else None
    return [Value(tuple(lengths[name] for name in output), axis, outer)]
