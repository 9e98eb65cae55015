"""Lengths of axes: integers, or products of an integer, symbols and the number of samples N.

A symbol represents an unknown number that is the same for every N: the free second axis of an input, or a number whose
computation is not tracked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple


class Term(NamedTuple):
    """``factor`` * the symbols * N ** ``samples``."""

    factor: int
    symbols: tuple[int, ...] = ()
    """Sorted; a symbol may occur several times. One with a negative id may represent a negative number."""
    samples: int = 0
    """1 if N is a factor, else 0."""


Length = int | Term

#: The number of samples.
N = Term(1, (), 1)


#: A product with more symbols, or a larger factor, is discarded: no model has one, and it would grow without limit.
_MOST_SYMBOLS = 32
_LARGEST_FACTOR = 1 << 62


class Symbols:
    """Creates new symbols, and limits the cost of one graph."""

    __slots__ = ("_numbers", "elements_left")

    def __init__(self) -> None:
        self._numbers = count(1)
        #: Elements of small tensors that may still be followed individually. Large models have some thousands.
        self.elements_left = 1 << 19

    def length(self) -> Term:
        """A symbol for a length: 0 or more."""
        return Term(1, (next(self._numbers),))

    def number(self) -> Term:
        """A symbol for any integer."""
        return Term(1, (-next(self._numbers),))


def has_samples(length: Length) -> bool:
    """Whether it grows with N."""
    return isinstance(length, Term) and length.samples > 0


def at_least_zero(length: Length) -> bool:
    """Whether it cannot be negative."""
    if isinstance(length, Term):
        return length.factor >= 0 and (not length.symbols or length.symbols[0] > 0)
    return length >= 0


def _term(length: Length) -> Term:
    return length if isinstance(length, Term) else Term(length)


def _plain(factor: int, symbols: tuple[int, ...], samples: int) -> Length:
    return Term(factor, symbols, samples) if factor and (symbols or samples) else factor


def times(a: Length, b: Length) -> Length | None:
    """The product; None if it has N squared, or is too long."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    a, b = _term(a), _term(b)
    too_long = len(a.symbols) + len(b.symbols) > _MOST_SYMBOLS or abs(a.factor * b.factor) > _LARGEST_FACTOR
    if a.samples + b.samples > 1 or too_long:
        return None
    return _plain(a.factor * b.factor, tuple(sorted(a.symbols + b.symbols)), a.samples + b.samples)


def over(a: Length, b: Length) -> Length | None:
    """The quotient, if ``b`` divides ``a`` for all values of the symbols and N; else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    a, b = _term(a), _term(b)
    if not b.factor or a.factor % b.factor or b.samples > a.samples:
        return None
    left = list(a.symbols)
    for symbol in b.symbols:
        if symbol not in left:
            return None
        left.remove(symbol)
    return _plain(a.factor // b.factor, tuple(left), a.samples - b.samples)


def product(lengths: Sequence[Length]) -> Length | None:
    """The product of all; None if it has N squared, or is too long."""
    result: Length = 1
    for length in lengths:
        found = times(result, length)
        if found is None:
            return None
        result = found
    return result
