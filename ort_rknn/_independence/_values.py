"""What is known about a tensor while a graph is followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ._lengths import Length

Dims = tuple[Length, ...]
#: The elements of a small integer tensor, in its shape; objects: Length, or None if unknown.
Entries = npt.NDArray[np.object_]

#: Tensors with more elements are not followed element by element.
ENTRY_LIMIT = 256


def as_entries(elements: Sequence[Length | None], shape: Sequence[int]) -> Entries:
    """An array of ``elements``, in row-major order."""
    entries: Entries = np.empty(len(elements), np.object_)
    for position, element in enumerate(elements):
        # One by one: numpy would treat a Term, which is a tuple, as a row.
        entries[position] = element
    return entries.reshape(shape)


class Unproved(Exception):
    """The samples cannot be shown to be independent. The message is for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Undetermined(Unproved):
    """The node may return something different each time, even for equal inputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor whose contents do not depend on the number of samples, or one that holds all samples along one axis.

    With ``axis``, that axis has ``outer * N * inner`` elements, the element ``(o * N + n) * inner + i`` depends on only
    sample n of the inputs, and every sample is computed in the same way. No other axis depends on N.
    """

    dims: Dims | None
    """None if the rank is unknown; never with ``axis``."""
    axis: int | None = None
    outer: Length = 1
    entries: Entries | None = None
    """Of a small tensor without ``axis`` whose elements are known."""
    whole: bool = True
    """False: ``entries`` are floating-point numbers."""
    below: Length | None = None
    """Set if all elements are known to be integers from 0 to ``below - 1``: indices."""


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """A small tensor computed from the number of samples N: each element is a Length, or None if it depends on N in
    another way."""

    entries: Entries
    whole: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """``factor`` times the numbers 0 to N - 1, each sample's own position along ``axis``; the same along all other
    axes."""

    dims: Dims
    axis: int
    outer: Length = 1
    factor: Length = 1


@dataclass(frozen=True, slots=True, eq=False)
class FlatRows:
    """Indices into an axis of N times ``factor`` elements: those of sample n are from ``n * factor`` to
    ``(n + 1) * factor - 1``."""

    dims: Dims
    axis: int
    outer: Length
    factor: Length


@dataclass(frozen=True, slots=True, eq=False)
class IndexRows:
    """Indices for GatherND: along the last axis, the sample's position, followed by numbers that depend only on that
    sample."""

    dims: Dims
    axis: int
    outer: Length = 1


@dataclass(frozen=True, slots=True, eq=False)
class Refused:
    """A tensor about which nothing is proved."""

    reason: str


Abstract = Value | Counted | Positions | IndexRows | FlatRows | Refused
