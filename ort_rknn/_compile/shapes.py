"""Which shapes are compiled: what the user gave, and what the ONNX leaves free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..files import OnnxModel

Shapes = dict[str, tuple[int, ...]]


class ShapeError(ValueError):
    """Shapes that are missing, or do not fit the model. The message says what to give."""


@dataclass(frozen=True, slots=True)
class CompiledShapes:
    """The shapes of every input, per set."""

    sets: tuple[Mapping[str, tuple[int, ...]], ...]
    """One set for a static model, several for one with shape sets. Each contains every input, in the ONNX's order."""
    batch_axis: bool
    """The ONNX leaves the first axis of every input free: it is compiled as one sample (or as ``batch``)."""
    notes: tuple[str, ...] = ()


def channels(shape: Sequence[int]) -> int:
    """The number of values that the toolkit expects as mean, and as std, of an input: 2.5.0 refuses anything but the
    length of axis 1, whatever the rank."""
    return (*shape[1:2], *shape[:1], 1)[0]


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse "images=1,3,640,640" or "images=1x3x640x640". Raises ShapeError for anything else."""
    name, equals, dims = text.rpartition("=")
    try:
        shape = tuple(int(d) for d in dims.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not name or not equals or not shape or min(shape) < 1:
        raise ShapeError(f"expected NAME=N,N,...: an input's name and its shape; got {text!r}")
    return name, shape


def group_shapes(pairs: Sequence[tuple[str, tuple[int, ...]]]) -> list[Shapes]:
    """Group shapes, in the given order, into sets: a repeated name begins the next set, which keeps the previous set's
    shapes for names that it does not mention."""
    sets: list[Shapes] = []
    named: set[str] = set()
    for name, shape in pairs:
        if not sets or name in named:
            sets.append(dict(sets[-1]) if sets else {})
            named = set()
        sets[-1][name] = shape
        named.add(name)
    return sets


def compiled_shapes(model: OnnxModel, given: Sequence[Mapping[str, tuple[int, ...]]]) -> CompiledShapes:
    """The shapes to compile for an ONNX and the sets of shapes that the user gave (none: the ONNX's own).

    A first axis that is free in every input is a batch, and compiled as 1 unless a shape says otherwise. Raises
    ShapeError for a free axis that was not given, or a shape that contradicts the ONNX.
    """
    names = [value.name for value in model.inputs]
    for group in given:
        unknown = sorted(set(group) - set(names))
        if unknown:
            raise ShapeError(f"the model has no input {unknown[0]!r}; its inputs are {', '.join(map(repr, names))}")
    batch = bool(model.inputs) and all(value.dims and not isinstance(value.dims[0], int) for value in model.inputs)
    sets = []
    for group in given or ({},):
        sets.append({value.name: _one(value.name, value.dims, group.get(value.name), batch) for value in model.inputs})
    notes = []
    if batch and not any(given):
        notes.append("the first axis of every input is free and taken for the batch: compiled for 1 sample")
    return CompiledShapes(tuple(sets), batch, tuple(notes))


def _one(
    name: str, dims: tuple[int | str | None, ...] | None, given: tuple[int, ...] | None, batch: bool
) -> tuple[int, ...]:
    if dims is None:
        if given is None:
            raise ShapeError(f"input {name!r} has no rank in the ONNX: give its shape with --shape {name}=...")
        return given
    if given is not None:
        if len(given) != len(dims):
            raise ShapeError(f"input {name!r} has {len(dims)} axes {_spell(dims)}, the shape given {list(given)}")
        for axis, (dim, length) in enumerate(zip(dims, given)):
            if isinstance(dim, int) and dim != length:
                raise ShapeError(f"input {name!r} is {_spell(dims)} in the ONNX: axis {axis} is {dim}, not {length}")
        return given
    free = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int) and not (axis == 0 and batch)]
    if free:
        example = ",".join(
            str(d) if isinstance(d, int) else "1" if i == 0 and batch else "N" for i, d in enumerate(dims)
        )
        raise ShapeError(
            f"input {name!r} is {_spell(dims)}: the NPU takes fixed shapes, so say what axis "
            f"{', '.join(map(str, free))} is: --shape {name}={example}"
        )
    return tuple(d if isinstance(d, int) else 1 for d in dims)


def _spell(dims: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
