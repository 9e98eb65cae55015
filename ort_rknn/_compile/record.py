"""The record of a conversion, kept beside its result so that it can be repeated: the toolkit's simulator works only in
the process that built the model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from .._json import JsonError, array, boolean, hex_digest, integer, members, none_or, number, one_of, read_json, text
from .._rknpu import is_soc
from ..files.compiled_places import CONTEXT_ENDING
from ..files.hashes import sha256_of
from .put import put

#: Ending of a record's name, after the compiled model's without suffix.
RECORD_ENDING = ".build.json"

_VERSION = 4
#: More than any model has.
_MOST_INPUTS, _MOST_AXES, _MOST_CHANNELS = 4096, 16, 1 << 16
_MOST_SETS, _MOST_SAMPLES = 4096, 1 << 16
_LONGEST_REASON = 1 << 16
_DOUBLE = sys.float_info.max

Algorithm = Literal["normal", "mmse", "rounded"]


class RecordError(ValueError):
    """The record is missing, damaged, or of another ONNX. The message says what to do."""


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """One build."""

    sha256: str
    """Of the ONNX."""
    target: str
    toolkit: str
    """Version."""
    shapes: dict[str, tuple[int, ...]]
    """Of one sample; of several sets the first, which the samples for int8 have."""
    mean: tuple[tuple[float, ...], ...]
    std: tuple[tuple[float, ...], ...]
    freeze: dict[str, Any]
    fit: str
    data: str | None
    """The path of the samples for int8; None: there were none, or a callable returned them."""
    samples: tuple[str, ...]
    """SHA-256 of each sample; () for float16."""
    whole: bool
    lowered: bool
    """The opset was lowered for the whole model."""
    hybrid: bool
    on_cpu: dict[int, str]
    """Nodes that stay on the CPU, with the reason."""
    algorithm: Algorithm = "normal"
    """How the scales were determined, and the weights rounded; see :class:`.cuts.CutPlan`."""
    more_shapes: tuple[dict[str, tuple[int, ...]], ...] = ()
    """The other shape sets."""
    batch: int | None = None
    """Samples per run, if more than ``shapes`` has."""
    result: str = ""
    """SHA-256 of the file that a session loads: the compiled model, or the model in parts."""

    @property
    def shape_sets(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """Every set of shapes that was compiled."""
        return self.shapes, *self.more_shapes

    def write(self, place: Path) -> None:
        """Write it to ``place``, atomically."""
        text = json.dumps({"version": _VERSION, **asdict(self)}, indent=1)
        put(place, lambda file: file.write(text.encode()))


def record_path(folder: str | os.PathLike[str], stem: str, target: str) -> Path:
    """The path of a conversion's record: beside the compiled model."""
    return Path(folder) / f"{stem}.{target}{RECORD_ENDING}"


@dataclass(frozen=True, slots=True)
class Keeping:
    """Writes a record together with the result that it describes.

    Two files cannot be replaced atomically. So the new record has a hidden name while the result is replaced, and a
    reader takes the record that matches the result.
    """

    place: Path
    """Of the record."""
    record: BuildRecord
    """Without its result."""

    @contextmanager
    def beside(self, result: Path, digest: str) -> Iterator[None]:
        """A context in which a file with the SHA-256 ``digest`` is put at ``result``."""
        waiting = _waiting(self.place)
        replace(self.record, result=digest).write(waiting)
        try:
            yield
        except BaseException:
            if not result.is_file() or sha256_of(result) != digest:
                waiting.unlink(missing_ok=True)
            raise
        os.replace(waiting, self.place)


def _waiting(place: Path) -> Path:
    return place.with_name(f".{place.name.removesuffix(RECORD_ENDING)}.new{RECORD_ENDING}")


def read_record(place: Path, onnx_path: str) -> BuildRecord:
    """The record at ``place``, which must match the current ONNX and the result beside it. It is untrusted, like the
    ONNX it came with: every field is checked. Raises RecordError, and OSError if the ONNX or the result cannot be
    read."""
    results = _results(place)
    waiting = _waiting(place)
    if results and waiting.exists():  # a conversion was killed between the two, or is between them now
        found = _read(waiting, onnx_path)
        if found.result in results:
            return found
    record = _read(place, onnx_path)
    if results and record.result not in results:
        raise RecordError(f"{place.name} is of another result than the one beside it: convert again")
    return record


def follow(result: Path, before: str) -> None:
    """Update the record of ``result`` after its stamp was changed; ``before``: the SHA-256 that it had. A record of
    another file is left unchanged. Raises OSError if the record cannot be written."""
    place = result.with_name(f"{result.name.removesuffix('.rknn')}{RECORD_ENDING}")
    try:
        record = _checked(members(read_json(place), "the whole"))
    except (OSError, JsonError, _OtherVersion):
        return
    if record.result == before:
        replace(record, result=sha256_of(result)).write(place)


def _results(place: Path) -> set[str]:
    """SHA-256 of the results beside a record: the compiled model or the model in parts, for a moment both."""
    name = place.name.removesuffix(RECORD_ENDING)
    paths = [place.with_name(f"{name}{ending}") for ending in (".rknn", CONTEXT_ENDING)]
    return {sha256_of(path) for path in paths if path.is_file()}


def _read(place: Path, onnx_path: str) -> BuildRecord:
    try:
        record = _checked(members(read_json(place), "the whole"))
    except FileNotFoundError:
        raise RecordError(f"there is no {place.name}, which `ort-rknn convert` leaves beside its result") from None
    except OSError as error:
        raise RecordError(f"{place}: it cannot be read: {error.strerror or error}") from error
    except JsonError as error:
        raise RecordError(f"{place}: damaged ({error}): convert again") from error
    except _OtherVersion:
        raise RecordError(f"{place}: written by another version of ort_rknn: convert again") from None
    if record.sha256 != sha256_of(onnx_path):
        raise RecordError(f"{os.path.basename(onnx_path)} has changed since it was converted: convert again")
    return record


class _OtherVersion(Exception):
    pass


def _checked(data: Mapping[str, object]) -> BuildRecord:
    """Raises JsonError for a field that is missing or could not have been written by us."""
    if integer(data.get("version"), "version") != _VERSION:
        raise _OtherVersion
    target = text(data.get("target"), "target", most=32)
    if not is_soc(target):
        raise JsonError(f"target: {target!a} is no SoC that is known")
    shapes = _shapes(data.get("shapes"), "shapes")
    more_shapes = tuple(
        _shapes(each, "more_shapes") for each in array(data.get("more_shapes"), "more_shapes", most=_MOST_SETS)
    )
    if any(each.keys() != shapes.keys() for each in more_shapes):
        raise JsonError("more_shapes: not of the inputs that shapes names")
    mean, std = _rows(data.get("mean"), "mean", len(shapes)), _rows(data.get("std"), "std", len(shapes))
    if any(value == 0.0 for row in std for value in row):
        raise JsonError("std: nothing can be divided by 0")
    freeze = members(data.get("freeze"), "freeze", most=_MOST_INPUTS)
    batch = None if data.get("batch") is None else integer(data["batch"], "batch", least=1, most=_MOST_SAMPLES)
    whole = boolean(data.get("whole"), "whole")
    if not whole and (more_shapes or batch is not None):
        raise JsonError("more_shapes, batch: a model in parts has neither")
    return BuildRecord(
        sha256=hex_digest(data.get("sha256"), "sha256"),
        target=target,
        toolkit=text(data.get("toolkit"), "toolkit", most=64),
        shapes=shapes,
        mean=mean,
        std=std,
        freeze={text(name, "freeze"): _constant(value, f"freeze, {name!a}") for name, value in freeze.items()},
        fit=one_of(data.get("fit"), "fit", ("letterbox", "stretch")),
        data=none_or(text, data.get("data"), "data"),
        samples=tuple(hex_digest(each, "samples") for each in array(data.get("samples"), "samples")),
        whole=whole,
        lowered=boolean(data.get("lowered"), "lowered"),
        hybrid=boolean(data.get("hybrid"), "hybrid"),
        algorithm=cast(Algorithm, one_of(data.get("algorithm"), "algorithm", get_args(Algorithm))),
        more_shapes=more_shapes,
        batch=batch,
        result=hex_digest(data.get("result"), "result"),
        on_cpu={
            _index(key): text(why, "on_cpu", most=_LONGEST_REASON)
            for key, why in members(data.get("on_cpu"), "on_cpu").items()
        },
    )


def _shapes(value: object, what: str) -> dict[str, tuple[int, ...]]:
    found = members(value, what, most=_MOST_INPUTS)
    return {text(name, what): _shape(shape, f"the shape of {name!a}") for name, shape in found.items()}


def _shape(value: object, what: str) -> tuple[int, ...]:
    return tuple(integer(dim, what, least=1, most=(1 << 31) - 1) for dim in array(value, what, most=_MOST_AXES))


def _rows(value: object, what: str, inputs: int) -> tuple[tuple[float, ...], ...]:
    """No rows, one for all inputs, or one for each."""
    rows = array(value, what, most=_MOST_INPUTS)
    if len(rows) not in (0, 1, inputs):
        raise JsonError(f"{what}: expected one for all inputs or one for each of the {inputs}, found {len(rows)}")
    return tuple(tuple(number(x, what) for x in array(row, what, most=_MOST_CHANNELS)) for row in rows)


def _constant(value: object, what: str, axes: int = _MOST_AXES) -> object:
    """A number, true, false, or lists of them."""
    if isinstance(value, list):
        if axes == 0:
            raise JsonError(f"{what}: lists in lists, more than {_MOST_AXES} deep")
        return [_constant(each, what, axes - 1) for each in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return integer(value, what, least=-(1 << 63), most=(1 << 64) - 1)
    return number(value, what, least=-_DOUBLE, most=_DOUBLE)


def _index(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 10):
        raise JsonError(f"on_cpu: expected the index of a node, found {key[:40]!a}")
    return int(key)
