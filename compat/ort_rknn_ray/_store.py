"""Models in Ray's object store: put there once, written to disk once on each node that runs them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ort_rknn.files import read_onnx
from ort_rknn.files.compiled_places import CONTEXT_ENDING


@dataclass(frozen=True)
class StoredModel:
    """A model and all files beside it, in the object store."""

    name: str
    """The ONNX's file name."""
    digest: str
    """A hash of names and contents, which names a node's copy."""
    references: Mapping[str, Any]
    """Name relative to the model's folder -> reference to the file's bytes."""


def put_model(path: str | os.PathLike[str]) -> StoredModel:
    """Put an ONNX, its external data and its compiled twins for every SoC into the object store.

    Each board picks the twin for its own SoC. Raises OnnxFileError if it is not an ONNX, OSError if a file cannot
    be read.
    """
    import ray

    model = Path(path).absolute()
    files = {name: (model.parent / name).read_bytes() for name in _names(model)}
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode())
        digest.update(files[name])
    return StoredModel(model.name, digest.hexdigest(), {name: ray.put(data) for name, data in files.items()})


def _names(model: Path) -> list[str]:
    """The files of the model, relative to its folder."""
    stem = model.stem
    beside = [
        path.name
        for path in sorted(model.parent.iterdir())
        if path.is_file()
        and (path.suffix == ".rknn" or path.name.endswith(CONTEXT_ENDING))
        and path.name.startswith((f"{stem}.", f"{stem}-", f"{stem}_"))
    ]
    inside = [
        str(path.relative_to(model.parent))
        for folder in sorted(model.parent.glob(f"{_escaped(stem)}.*_parts"))
        for path in sorted(folder.iterdir())
        if path.is_file()
    ]
    return list(dict.fromkeys([model.name, *read_onnx(model).external_data, *beside, *inside]))


def _escaped(stem: str) -> str:
    import glob

    return glob.escape(stem)


def on_this_node(model: str | os.PathLike[str] | StoredModel) -> str:
    """The path of a model on this node: its own, or that of the copy written by the first caller here.

    Raises ValueError for a stored name that leaves its folder, OSError if the copy cannot be written.
    """
    if not isinstance(model, StoredModel):
        return os.fspath(model)
    if not re.fullmatch("[0-9a-f]{64}", model.digest):
        raise ValueError(f"a stored model's digest is 64 hexadecimal digits, not {model.digest!r}")
    if model.name not in model.references:
        raise ValueError(f"a stored model has no file {model.name!r}")
    base = Path(tempfile.gettempdir()) / f"ort_rknn_ray-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    status = base.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise OSError(f"{base} belongs to another user or is open to others: remove it")
    folder = base / model.digest
    with open(base / f"{model.digest}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=base) as scratch:
                fresh = Path(scratch) / "model"
                _write(model, fresh)
                fresh.rename(folder)
    return str(folder / model.name)


def _write(model: StoredModel, folder: Path) -> None:
    import ray

    folder.mkdir(mode=0o700)
    for name, reference in model.references.items():
        place = folder / name
        if os.path.isabs(name) or ".." in Path(name).parts:
            raise ValueError(f"a stored model may not name {name!r}: it lies outside of its folder")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(ray.get(reference))
