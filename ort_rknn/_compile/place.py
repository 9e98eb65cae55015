"""Puts compiled models beside their ONNX: a session sees the old result or the new one, never a mixture."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import onnx
from onnx import external_data_helper

from ..files.compiled_places import CONTEXT_ENDING, confined_path
from .fixed_axes import fix_built_in_axes
from .parts import InParts
from .put import put, put_copy
from .record import Keeping
from .write import CompiledPart, context_model

#: The nodes that stay on the CPU keep their weights inside the model up to this size in bytes.
_INLINE = 64 << 20


def place_whole(built: str, folder: Path, stem: str, target: str, keeping: Keeping) -> Path:
    """Put the compiled model ``built`` at ``<stem>.<target>.rknn``, with its record. An existing result in parts is
    removed."""
    place = folder / f"{stem}.{target}.rknn"
    with keeping.beside(place, _digest(built)):
        put_copy(place, built)
    _remove(folder / f"{stem}.{target}{CONTEXT_ENDING}")
    shutil.rmtree(folder / f"{stem}.{target}_parts", ignore_errors=True)
    return place


def place_parts(
    made: InParts, folder: Path, original: str, target: str, toolkit: str, keeping: Keeping, *, free: bool
) -> tuple[Path, list[Path]]:
    """Put the model in parts at ``<stem>.<target>_ctx.onnx`` with its record, its parts in ``<stem>.<target>_parts/``.

    A part's file name depends on its content, so that an older model in parts keeps working until it is replaced. An
    existing whole result is removed. Returns the model's path and those of the parts.
    """
    stem = Path(original).stem
    parts_folder = folder / f"{stem}.{target}_parts"
    place = folder / f"{stem}.{target}{CONTEXT_ENDING}"
    with _removed_unless_replaced(parts_folder, place):
        paths: list[Path] = []
        compiled: list[CompiledPart] = []
        for number, each in enumerate(made.built):
            name = f"part{number}"
            file = parts_folder / f"{name}-{_digest(each.built.path)[:12]}.rknn"
            if not file.exists():
                put_copy(file, each.built.path)
            paths.append(file)
            compiled.append(CompiledPart(each.part, name, f"{parts_folder.name}/{file.name}"))
        model = context_model(
            made.model, compiled, made.observed, onnx_name=Path(original).name, soc=target, toolkit=toolkit, free=free
        )
        fix_built_in_axes(model, made.model.graph, [each.part for each in made.built], made.observed, made.batch)
        weights = _own_weights(model, os.path.dirname(original), parts_folder)
        content = model.SerializeToString()
        with keeping.beside(place, hashlib.sha256(content).hexdigest()):
            put(place, lambda opened: _write(opened, content))
    _remove(folder / f"{stem}.{target}.rknn")
    for path in parts_folder.iterdir():
        if path not in paths and path != weights:
            _remove(path)
    return place, paths


@contextmanager
def _removed_unless_replaced(parts_folder: Path, place: Path) -> Iterator[None]:
    """Make the folder of the parts. If something fails before the model at ``place`` is replaced (a full disk, Ctrl-C),
    remove what was put into it, and it if it is new."""

    def identity() -> tuple[int, int] | None:
        found = place.stat() if place.exists() else None
        return (found.st_ino, found.st_mtime_ns) if found is not None else None

    new = not parts_folder.exists()
    parts_folder.mkdir(exist_ok=True)
    before, model = set(parts_folder.iterdir()), identity()
    try:
        yield
    except BaseException:
        if identity() == model:
            for path in set(parts_folder.iterdir()) - before:
                _remove(path)
            if new:
                parts_folder.rmdir()
        raise


def _own_weights(model: onnx.ModelProto, folder: str, parts_folder: Path) -> Path | None:
    """Move the weights that stay on the CPU into the model or, if they are large, into a separate data file, so that
    the original's data files are not needed. Returns that file."""
    for tensor in model.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            _load(tensor, folder)
    raw = [t for t in model.graph.initializer if t.HasField("raw_data") and len(t.raw_data) > 1024]
    if sum(len(t.raw_data) for t in raw) <= _INLINE:
        return None
    digest = hashlib.sha256()
    for tensor in raw:
        digest.update(tensor.raw_data)
    place = parts_folder / f"weights-{digest.hexdigest()[:12]}.bin"
    put(place, lambda file: [file.write(t.raw_data) for t in raw])
    offset = 0
    for tensor in raw:
        length = len(tensor.raw_data)
        external_data_helper.set_external_data(tensor, f"{parts_folder.name}/{place.name}", offset, length)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        offset += length
    return place


def _load(tensor: onnx.TensorProto, folder: str) -> None:
    """Load a tensor's external data into it. Does not use the package onnx, which refuses a file with several names,
    such as the links in the toolkit's folder."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(where.get("offset", 0)), int(where.get("length", -1))
    with open(confined_path(os.path.join(folder, "model"), where["location"]), "rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(length)
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
