"""Feeds and the ONNX's outputs in a file: written where there is time and memory, used for comparison on a board."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._arrays import ArrayError, names_in, open_npz, read_member

Run = tuple[dict[str, Any], list[Any]]
"""A feed, and the outputs for it."""


#: Maximum size of an array in bytes.
_LARGEST = 1 << 30


class SavedRunError(ValueError):
    """The file is not a saved run, or belongs to another model."""


def save_runs(place: Path, names: Sequence[str], runs: Iterable[Run]) -> int:
    """Write runs as "INDEX/in/NAME" and "INDEX/out/NAME", with one array in memory at a time; returns how many."""
    fresh = place.with_name(f".{place.name}.new")
    count = 0
    try:
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
            for feed, outputs in runs:
                for side, values in (("in", feed.items()), ("out", zip(names, outputs))):
                    for name, value in values:
                        with archive.open(f"{count}/{side}/{name}.npy", "w", force_zip64=True) as file:
                            np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
                count += 1
        os.replace(fresh, place)
    finally:
        fresh.unlink(missing_ok=True)
    return count


def saved_runs(path: str, names: Sequence[str]) -> Iterator[Run]:
    """Read saved runs. Raises SavedRunError, and OSError if the file cannot be opened."""
    try:
        with open_npz(path) as archive:
            keys = [key.split("/", 2) for key in names_in(archive)]
            indices = sorted({int(key[0]) for key in keys if len(key) == 3 and key[0].isdecimal() and len(key[0]) < 10})
            if not indices:
                raise SavedRunError(f"{path}: it was not made by `ort-rknn check --save`")
            for index in indices:
                inputs = [key[2] for key in keys if key[:2] == [str(index), "in"]]
                feed = {name: read_member(archive, f"{index}/in/{name}", _LARGEST) for name in inputs}
                yield feed, [read_member(archive, f"{index}/out/{name}", _LARGEST) for name in names]
    except ArrayError as error:
        raise SavedRunError(f"{path}: it is not a run of this model: {error}") from error
