"""How far outputs are from the ONNX's, and whether that is close enough."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Slices of an output are judged separately if their sizes differ by this factor, with none in between.
_GAP = 8.0
#: An output is split into slices along axes up to this length.
_MOST_SLICES = 4096
#: The maximum error of a bounded or mixed output, as a share of its range, in units of (1 - accuracy).
_LARGEST = 3.0
#: The smallest value that float16 holds with its full precision: of the NPU's values below it, some are 0.
_SMALLEST = 2.0**-14


@dataclass(slots=True)
class _Group:
    """Slices of similar size."""

    slices: NDArray[np.intp] | None
    dot: float = 0.0
    want: float = 0.0
    got: float = 0.0
    largest: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def add(self, want: Array, got: Array) -> None:
        self.dot += float(np.vdot(want, got))
        self.want += float(np.vdot(want, want))
        self.got += float(np.vdot(got, got))
        if want.size:
            self.largest = max(self.largest, float(np.abs(want - got).max()))
            self.low, self.high = min(self.low, float(want.min())), max(self.high, float(want.max()))

    @property
    def cosine(self) -> float:
        if self.want == 0.0 or self.got == 0.0:
            return 1.0 if self.want == self.got else 0.0
        return self.dot / float(np.sqrt(self.want) * np.sqrt(self.got))


@dataclass(slots=True)
class OutputAccuracy:
    """The accuracy of one output over all samples."""

    name: str
    largest: float = 0.0
    """Largest absolute error."""
    place: tuple[int, ...] = ()
    """Its position: the sample, then the index in the output."""
    relative: float = 0.0
    """Largest error relative to the ONNX's value, for values of at least a thousandth of the output's largest."""
    incomparable: str = ""
    """Why the two cannot be compared: different shapes, or values that are not finite."""
    samples: int = 0
    _equal: int = 0
    _counted: int = 0
    """For outputs that are not floating-point: the number of elements compared exactly, and how many were equal."""
    _same_top: int = 0
    _tops: int = 0
    _by_shape: dict[tuple[int, ...], tuple[int, list[_Group]]] = field(default_factory=dict)
    """For each shape that the output has had: the axis along which it was split, and the groups."""

    def add(self, want: Array, got: Array) -> None:
        """Add the outputs of the ONNX and of the compiled model for one sample."""
        want, got = np.asarray(want), np.asarray(got)
        self.samples += 1
        if want.shape != got.shape:
            self.incomparable = f"the ONNX gives {list(want.shape)}, the compiled model {list(got.shape)}"
            return
        if want.dtype.kind != "f":
            self._equal += int(np.count_nonzero(want == got))
            self._counted += want.size
        if want.dtype.kind not in "biuf":  # text, or maps
            return
        if want.ndim == 2 and want.shape[1] > 1:
            self._same_top += int((want.argmax(1) == got.argmax(1)).sum())
            self._tops += want.shape[0]
        want, got = want.astype(np.float64), got.astype(np.float64)
        if not np.array_equal(np.isfinite(want), np.isfinite(got)):
            self.incomparable = "values are infinite or not a number in one of the two only"
            return
        want, got = (np.where(np.isfinite(a), a, 0.0) for a in (want, got))
        if want.shape not in self._by_shape:
            axis, slices = _groups_of(want)
            self._by_shape[want.shape] = axis, [_Group(g) for g in slices]
        self._errors(want, got)
        axis, groups = self._by_shape[want.shape]
        for group in groups:
            if group.slices is None:
                group.add(want, got)
            else:
                group.add(np.take(want, group.slices, axis), np.take(got, group.slices, axis))

    def _errors(self, want: Array, got: Array) -> None:
        if not want.size:
            return
        error = np.abs(want - got)
        at = np.unravel_index(int(error.argmax()), error.shape)
        if error[at] >= self.largest:
            self.largest, self.place = float(error[at]), (self.samples - 1, *(int(i) for i in at))
        counted = np.abs(want) >= max(np.abs(want).max() / 1000, 1e-30)
        if counted.any():
            self.relative = max(self.relative, float((error[counted] / np.abs(want[counted])).max()))

    @property
    def _groups(self) -> list[_Group]:
        return [group for _, groups in self._by_shape.values() for group in groups]

    @property
    def cosine(self) -> float:
        """Cosine similarity of the two; for an output that mixes ranges, the lowest of its groups."""
        return min((group.cosine for group in self._compared), default=0.0 if self.incomparable else 1.0)

    @property
    def _compared(self) -> list[_Group]:
        """The groups whose cosine counts: not those of probabilities and scores that are too small for float16, beside
        larger ones."""
        groups = self._groups
        if any(group.low < 0 or group.high > 1 for group in groups):
            return groups
        return [group for group in groups if max(group.high, group.largest) >= _SMALLEST] or groups

    @property
    def same_top(self) -> float | None:
        """For outputs [N, classes], the share of rows whose maximum is at the same index; else None."""
        return self._same_top / self._tops if self._tops else None

    @property
    def same(self) -> float | None:
        """For outputs of integers, bool or text, the share of equal elements; else None."""
        return self._equal / self._counted if self._counted else None

    @property
    def mixed(self) -> bool:
        """Whether the output contains slices of very different sizes, such as boxes and scores."""
        return any(len(groups) > 1 for _, groups in self._by_shape.values())

    def problem(self, accuracy: float) -> str | None:
        """How the bound is violated; None if it holds."""
        if self.incomparable:
            return self.incomparable
        if self.same is not None:
            return f"{self.same:.2%} of the values are the same" if self.used_share(accuracy) > 1 else None
        if self.cosine < accuracy:
            return f"cosine {self.cosine:.4f} < {accuracy:g}"
        for group, allowed in self._bounded(accuracy):
            if group.largest > allowed:
                return f"largest error {group.largest:.3g} > {allowed:.3g} among values up to {group.high:.4g}"
        return None

    def used_share(self, accuracy: float) -> float:
        """The share of the bound used up by the errors: 0 if both are equal, above 1 if the bound is violated."""
        if self.incomparable:
            return math.inf
        if self.same is not None:
            # For labels and masks, the share of equal elements must reach the accuracy. Other numbers must be as close
            # as pixel values.
            numbers = any(group.high > 1 or group.low < 0 for group in self._groups)
            return min(1 - self.same, 1 - self.cosine if numbers else 1.0) / (1 - accuracy)
        shares = [group.largest / allowed for group, allowed in self._bounded(accuracy)]
        return max(self.cosine_share(accuracy), *shares, 0.0)

    def cosine_share(self, accuracy: float) -> float:
        """The share of the bound on the cosine that is used up; 0 for outputs to which it does not apply."""
        if self.incomparable:
            return math.inf
        return 0.0 if self.same is not None else (1 - self.cosine) / (1 - accuracy)

    def _bounded(self, accuracy: float) -> Iterator[tuple[_Group, float]]:
        """Groups for which the largest error counts, with the maximum allowed."""
        for group in self._groups:
            bounded = group.low >= 0.0 and group.high <= 1.0
            if bounded or self.mixed:
                span = 1.0 if bounded else max(abs(group.low), abs(group.high))
                if span > 0:
                    yield group, _LARGEST * (1 - accuracy) * span

    def as_json(self) -> dict[str, Any]:
        """The values for ``--json``."""
        return {
            "name": self.name,
            "cosine": self.cosine,
            "largest": self.largest,
            "place": list(self.place),
            "relative": self.relative,
            "same_top": self.same_top,
            "same": self.same,
            "unlike": self.incomparable,
        }


def _groups_of(value: Array) -> tuple[int, list[NDArray[np.intp] | None]]:
    """The axis along which slices differ most in size, and groups of slices separated by a gap."""
    best: tuple[int, list[NDArray[np.intp] | None]] = (0, [None])
    widest = _GAP
    for axis, length in enumerate(value.shape):
        if not 2 <= length <= _MOST_SLICES or value.size // length < 8:
            continue
        others = tuple(i for i in range(value.ndim) if i != axis)
        size = np.sqrt(np.square(value).mean(axis=others))
        order = np.argsort(size)
        ordered = size[order]
        order, ordered = order[ordered > 0], ordered[ordered > 0]
        steps = ordered[1:] / ordered[:-1]
        if steps.size and steps.max() >= widest:
            widest = float(steps.max())
            zero = np.flatnonzero(size == 0)
            cuts = np.flatnonzero(steps >= _GAP) + 1
            groups: list[NDArray[np.intp] | None] = [np.sort(part) for part in np.split(order, cuts)]
            if zero.size:
                groups.append(zero)
            best = (axis, groups)
    return best


def lines_of(outputs: Sequence[OutputAccuracy], accuracy: float) -> list[str]:
    """One line per output."""
    lines = []
    for one in outputs:
        problem = one.problem(accuracy)
        top = f", same top-1 {one.same_top:.1%}" if one.same_top is not None else ""
        top += f", the same {one.same:.2%}" if one.same is not None else ""
        at = f" at {list(one.place)}" if one.place else ""
        verdict = f"NOT within the bound: {problem}" if problem else "within the bound"
        errors = f"largest error {one.largest:.4g}{at}, relative {one.relative:.3g}"
        lines.append(f"{one.name}: cosine {one.cosine:.5f}, {errors}{top}: {verdict}")
    return lines
