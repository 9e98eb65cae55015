"""Writes the record of its origin into a compiled model.

The record is the custom string of the model's FlatBuffers table. A longer one is appended to the model part, so that
nothing else moves: weights and programs keep their position and alignment. (The container has no checksum: models
compiled by rknn-toolkit2 2.5.0 with and without a custom string differ in nothing else.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

from .._regular import new_beside
from ._flatbuffer import Budget, FlatbufferError, Table
from ._rknn_parts import MODEL_CUSTOM_STRING
from ._source import Data, open_source
from .onnx_model import OnnxModel, OnnxValue, read_onnx
from .origin import Origin
from .pinned import Pinned
from .rknn import RknnFile, RknnFileError, RknnTensor, measure, read_rknn

__all__ = ["StampError", "stamp"]

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_LENGTH_FIELD = 16
_ALIGNMENT = 64
_LONGEST_STRING = 4096


class StampError(ValueError):
    """The record cannot be written. The message says why, and what would help."""


def stamp(
    onnx_path: str | os.PathLike[str],
    rknn_path: str | os.PathLike[str],
    *,
    independent: bool | None = None,
) -> Origin:
    """Record in the compiled model ``rknn_path`` that it was made from ``onnx_path`` in its current state.

    ``independent``: what you know about the samples along the first axis. True lets a session split a batch into runs
    even if the ONNX's graph alone does not prove that it may. None keeps the value of an existing record of the same
    ONNX.

    The file is replaced atomically and keeps its mode; an active session keeps the old one. Returns the record. Raises
    StampError if the two do not belong together, the compiled model's custom string is used for something else, or the
    file is a link; RknnFileError and OnnxFileError if one cannot be parsed; OSError if it cannot be read or written.
    """
    path = os.fspath(rknn_path)
    if os.path.islink(path):
        raise StampError(f"{path} is a link to {os.path.realpath(path)}: stamp that file, if it is yours to change")
    onnx = read_onnx(onnx_path)
    with Pinned(path) as pinned:
        file = read_rknn(pinned)
        if file.encrypted:
            raise StampError(f"{path} is encrypted: a record of its origin can be given to the converter only")
        _check_that_they_fit(path, file, onnx)
        others = Origin.others_in(file.custom_string)
        if others is None:
            raise StampError(
                f"{path} has the custom string {file.custom_string!r:.80}, which a record would replace; convert the "
                "ONNX again without it, or with a JSON object in its place"
            )
        record = _record(onnx_path, file, independent)
        try:
            text = record.to_custom_string(others).encode("ascii")
        except ValueError as error:
            raise StampError(f"{path}: {error}") from None
        with _replacing(path, pinned) as (new, temporary):
            _write(pinned, new, text)
            _check_copy(temporary, file, record)
    return record


def _record(onnx_path: str | os.PathLike[str], file: RknnFile, independent: bool | None) -> Origin:
    record = Origin.of(onnx_path, toolkit=file.toolkit_version or "", independent=independent)
    old = Origin.parse(file.custom_string)
    if old is None or (old.sha256, old.external and [f.sha256 for f in old.external]) != (
        record.sha256,
        record.external and [f.sha256 for f in record.external],
    ):
        return record
    return replace(record, options=old.options, independent=old.independent if independent is None else independent)


def _check_that_they_fit(path: str, file: RknnFile, onnx: OnnxModel) -> None:
    """Compare names, types and shapes, as far as both are known. The converter may leave out tensors."""
    for what, compiled, declared in (("input", file.inputs, onnx.inputs), ("output", file.outputs, onnx.outputs)):
        by_name = {value.name: value for value in declared}
        if not compiled:
            raise StampError(f"{path} does not record its {what}s, so it cannot be checked against the ONNX")
        for index, tensor in enumerate(compiled):
            value = by_name.get(tensor.name)
            if value is None:
                raise StampError(
                    f"{path} has the {what} {tensor.name!r}, the ONNX has {list(by_name)}; "
                    "it was compiled from another model"
                )
            sets = file.shape_sets if what == "input" else file.output_shape_sets
            shapes = [group[index] for group in sets] if file.dynamic else [tensor.shape]
            problem = _difference(tensor, value, shapes, lengths=what == "input")
            if problem is not None:
                raise StampError(f"{path}: {what} {tensor.name!r} {problem}; it was compiled from another model")


def _difference(
    tensor: RknnTensor, value: OnnxValue, shapes: Sequence[Sequence[int] | None], *, lengths: bool
) -> str | None:
    if tensor.dtype is not None and value.dtype is not None and tensor.dtype != value.dtype:
        return f"is {tensor.dtype}, in the ONNX {value.dtype}"
    if value.dims is None:
        return None
    for shape in shapes:
        if shape is None:
            continue
        # An ONNX often declares output lengths that belong to another input shape.
        fits = len(shape) == len(value.dims) and (
            not lengths or all(not isinstance(dim, int) or dim == size for dim, size in zip(value.dims, shape))
        )
        # The converter drops and moves axes of length 1.
        if not fits and (lengths or [d for d in shape if d != 1] != [d for d in value.dims if d != 1]):
            return f"is {list(shape)}, in the ONNX {list(value.dims)}"
    return None


@contextlib.contextmanager
def _replacing(path: str, old: Pinned) -> Iterator[tuple[BinaryIO, str]]:
    """A new file beside ``path``, and its path. It replaces ``path`` at the end of the ``with`` block, or is deleted if
    anything fails."""
    descriptor, temporary = new_beside(path, ".stamp-", ".rknn")
    try:
        with open(descriptor, "w+b") as new:
            info = os.fstat(old.descriptor)
            with contextlib.suppress(OSError):  # only root may change the owner
                os.fchown(descriptor, info.st_uid, info.st_gid)
            os.fchmod(descriptor, info.st_mode & 0o7777)
            yield new, temporary
            new.flush()
            os.fsync(descriptor)
        change = old.change()
        if change is not None or not old.is_at_its_path():
            raise StampError(f"{change or path + ' was replaced'} while it was stamped; do it again")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _write(old: Pinned, new: BinaryIO, text: bytes) -> None:
    """Copy ``old`` to ``new`` with another custom string."""
    with open_source(old, RknnFileError) as data:
        (start, end), _ = measure(data, _U64.unpack(data[8:16])[0])
        field, at, length = _place(data, start, end, old.path)
        in_place = len(text) <= length and Origin.parse(data[at : at + length].decode("utf-8", "replace")) is not None
    with open(old.reopen_path(), "rb") as source:
        if in_place:
            # Our own record: nothing else refers to it.
            shutil.copyfileobj(source, new)
            new.seek(at - 4)
            new.write(_U32.pack(len(text)) + text + bytes(length - len(text)))
        else:
            _copy(source, new, end)
            place = end + -end % 4
            tail = bytes(place - end) + _U32.pack(len(text)) + text + b"\0"
            new.write(tail + bytes(-(end - start + len(tail)) % _ALIGNMENT))
            new_end = new.tell()
            shutil.copyfileobj(source, new)
            if new_end - start >= 1 << 32:
                raise StampError(f"{old.path} is too large: offsets in it have 32 bits")
            new.seek(_LENGTH_FIELD)
            new.write(_U64.pack(new_end - start))
            new.seek(field)
            new.write(_U32.pack(place - field))
    new.flush()


def _copy(source: BinaryIO, new: BinaryIO, size: int) -> None:
    while size > 0:
        block = source.read(min(size, 1 << 20))
        if not block:
            raise StampError("the file became shorter while it was stamped; do it again")
        new.write(block)
        size -= len(block)


def _place(data: Data, start: int, end: int, path: str) -> tuple[int, int, int]:
    """Where the model table refers to its custom string, where that is, and its length."""
    try:
        root = Table.root(data, start, end, Budget(1 << 20))
        found = root.place_of_string(MODEL_CUSTOM_STRING, _LONGEST_STRING)
    except FlatbufferError as error:
        raise StampError(f"{path}: its model table cannot be understood: {error}") from None
    if found is None:
        raise StampError(
            f"{path} has no room for a custom string: its toolkit was too old for one. Convert the ONNX again"
        )
    return found


def _check_copy(path: str, old: RknnFile, record: Origin) -> None:
    """Check that the copy has the old file's metadata and the record."""
    new = read_rknn(path)
    same = replace(new, size=old.size, custom_string=old.custom_string) == old
    if not same or Origin.parse(new.custom_string) != record:
        raise StampError(f"{path}: the stamped copy does not read as the file did; the file was left as it was")
