"""What a conversion did, kept beside its result so that it can be repeated: the toolkit's simulator answers only in the
process that built the model."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .put import put

_VERSION = 2

Algorithm = Literal["normal", "mmse"]


class RecordError(ValueError):
    """The record is missing, damaged, or of another ONNX. The text says what to do."""


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """One build."""

    sha256: str
    """Of the ONNX."""
    target: str
    toolkit: str
    """Version."""
    shapes: dict[str, tuple[int, ...]]
    mean: tuple[tuple[float, ...], ...]
    std: tuple[tuple[float, ...], ...]
    freeze: dict[str, Any]
    fit: str
    data: str | None
    """Where the samples for int8 were; None: there were none, or a callable gave them."""
    samples: tuple[str, ...]
    """SHA-256 of each sample; () for float16."""
    whole: bool
    lowered: bool
    """The opset was brought down for the whole."""
    hybrid: bool
    on_cpu: dict[int, str]
    """Nodes that stay on the CPU, with the reason."""
    algorithm: Algorithm = "normal"
    """How the toolkit found the scales."""

    def write(self, place: Path) -> None:
        """Put it at ``place``, at once."""
        text = json.dumps({"version": _VERSION, **asdict(self)}, indent=1)
        put(place, lambda file: file.write(text.encode()))


def record_path(folder: str | os.PathLike[str], stem: str, target: str) -> Path:
    """Where the record of a conversion lies: beside what was compiled."""
    return Path(folder) / f"{stem}.{target}.build.json"


def read_record(place: Path, onnx_path: str) -> BuildRecord:
    """The record at ``place``, which must be of the ONNX as it is now. Raises RecordError."""
    try:
        data = json.loads(place.read_bytes())
        if data.pop("version") != _VERSION:
            raise RecordError(f"{place}: written by another version of ort_rknn: convert again")
        record = BuildRecord(
            sha256=str(data["sha256"]),
            target=str(data["target"]),
            toolkit=str(data["toolkit"]),
            shapes={str(k): tuple(int(d) for d in v) for k, v in data["shapes"].items()},
            mean=tuple(tuple(float(x) for x in row) for row in data["mean"]),
            std=tuple(tuple(float(x) for x in row) for row in data["std"]),
            freeze=dict(data["freeze"]),
            fit="letterbox" if data["fit"] == "letterbox" else "stretch",
            data=None if data["data"] is None else str(data["data"]),
            samples=tuple(str(x) for x in data["samples"]),
            whole=bool(data["whole"]),
            lowered=bool(data["lowered"]),
            hybrid=bool(data["hybrid"]),
            algorithm="mmse" if data["algorithm"] == "mmse" else "normal",
            on_cpu={int(k): str(v) for k, v in data["on_cpu"].items()},
        )
    except FileNotFoundError:
        raise RecordError(f"there is no {place.name}, which `ort-rknn convert` leaves beside its result") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{place}: damaged ({error}): convert again") from error
    if record.sha256 != sha256_of(onnx_path):
        raise RecordError(f"{os.path.basename(onnx_path)} has changed since it was converted: convert again")
    return record


def sha256_of(path: str) -> str:
    """Of a file's contents."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
