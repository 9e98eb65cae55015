"""The build settings of a part of a model: its share of the user's settings for the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .converter import BuildSpec
from .observe import Observed
from .partition import GraphPart
from .shapes import ShapeError, channels


def part_spec(
    path: str,
    part: GraphPart,
    observed: Observed,
    target: str,
    shapes: Mapping[str, tuple[int, ...]],
    mean: Sequence[tuple[float, ...]],
    std: Sequence[tuple[float, ...]],
    *,
    custom_string: str = "",
) -> BuildSpec:
    """The build of ``part``, whose ONNX is at ``path``. ``mean`` and ``std`` apply to the part that reads the input."""
    inputs = {name: observed.shapes[name] for name in part.inputs}
    named = list(shapes)
    sides = []
    for values, name, neutral in ((mean, "mean", 0.0), (std, "std", 1.0)):
        given = per_input(values, len(named), name)
        side = [
            given[named.index(tensor)] if given and tensor in named else (neutral,) * channels(shape)
            for tensor, shape in inputs.items()
        ]
        sides.append(side if given else None)
    return BuildSpec(path, target, inputs, mean=sides[0], std=sides[1], custom_string=custom_string)


def with_shapes(spec: BuildSpec, sets: Sequence[Mapping[str, tuple[int, ...]]], batch: int | None) -> BuildSpec:
    """The build of a whole model with every shape set, or the batch."""
    shape_sets = tuple(tuple(group[name] for name in spec.inputs or group) for group in sets) if len(sets) > 1 else ()
    return replace(spec, shape_sets=shape_sets, batch=batch)


def per_input(values: Sequence[tuple[float, ...]], inputs: int, name: str) -> list[tuple[float, ...]] | None:
    """One value per input: ``values`` has one for all, or one for each."""
    if not values:
        return None
    if not all(math.isfinite(x) and (x or name != "std") for row in values for x in row):
        raise ShapeError(f"{name}: expected finite numbers{', none of them 0' if name == 'std' else ''}")
    if len(values) == 1:
        return [values[0]] * inputs
    if len(values) != inputs:
        raise ShapeError(f"{name}: expected one for all inputs or one for each of the {inputs}; got {len(values)}")
    return list(values)


def per_channel(
    values: Sequence[tuple[float, ...]], shapes: Mapping[str, tuple[int, ...]], name: str
) -> tuple[tuple[float, ...], ...]:
    """For each input one number per channel (axis 1), as the toolkit requires; a single number applies to all channels.

    Raises ShapeError if there is neither one number nor one per channel.
    """
    out = []
    for (of, shape), row in zip(shapes.items(), per_input(values, len(shapes), name) or ()):
        count = channels(shape)
        if len(row) not in (1, count):
            raise ShapeError(
                f"{name}: input {of!r} has {count} channels; expected 1 or {count} numbers, got {len(row)}"
            )
        out.append(row if len(row) == count else row * count)
    return tuple(out)


def rows(values: Sequence[float] | Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """One row per input: plain numbers are one row."""
    listed: list[Any] = list(values)
    if listed and not isinstance(listed[0], Sequence):
        listed = [listed]
    return tuple(tuple(float(x) for x in row) for row in listed)
