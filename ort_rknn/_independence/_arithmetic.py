"""Arithmetic with tracked elements.

A result of None is unknown; the caller replaces it by a symbol if no input depends on N.
"""

from __future__ import annotations

from collections.abc import Callable

from ._lengths import Length, Term, at_least_zero, over, times

Element = Length | None


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


COMPUTES: dict[str, Callable[..., Element]] = {
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
