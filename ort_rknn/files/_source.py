"""Access to the bytes of a model (a path, an open file or bytes) without reading it whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import overload

from .pinned import Pinned

Source = str | os.PathLike[str] | bytes | Pinned

#: Files up to this size are read at once, larger ones block by block.
_READ_LIMIT = 1 << 20
#: A block starts at a multiple of its size. It is read with some bytes of the next one, so that a field's tag and
#: length never cross its end. Larger blocks cost more than they save: most of a model is weights, which are skipped.
_BLOCK = 1 << 11
_OVERLAP = 64
#: The number of blocks kept: 128 kB.
_MOST_BLOCKS = 64


class FileData:
    """The bytes of an open file, read on demand: ``data[7]``, ``data[100:200]``, ``len(data)``.

    The last blocks are kept, so that nearby small reads cost one system call. Raises EOFError if the file has become
    shorter since it was opened.
    """

    __slots__ = ("_base", "_block", "_blocks", "_file", "_size")

    def __init__(self, file: Pinned) -> None:
        self._file = file
        self._size = file.size
        self._blocks: dict[int, bytes] = {}
        self._block = b""
        self._base = 0

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> bytes: ...
    def __getitem__(self, key: int | slice) -> int | bytes:
        if not isinstance(key, slice):
            if not 0 <= key < self._size:
                raise IndexError(f"the file has {self._size} bytes, and {key} is not among them")
            block, base = self.window(key)
            return block[key - base]
        start, stop = key.start or 0, key.stop
        if stop is None or stop > self._size:
            stop = self._size
        if start >= stop:
            return b""
        base = self._base
        if start < base or stop > base + len(self._block):
            if stop - start > _BLOCK:
                return self._file.read(start, stop - start)
            base = self.window(start)[1]
            if stop > base + len(self._block):
                return self._file.read(start, stop - start)
        return self._block[start - base : stop - base]

    def window(self, position: int) -> tuple[bytes, int]:
        """Bytes around ``position``, which must be inside the file, and the position of the first one.

        They include the 64 bytes from ``position``, or all up to the end of the file.
        """
        number = position // _BLOCK
        base = number * _BLOCK
        block = self._blocks.pop(number, None)
        if block is None:
            block = os.pread(self._file.descriptor, _BLOCK + _OVERLAP, base)
            if len(block) < _BLOCK + _OVERLAP and base + len(block) != self._size:
                block = self._file.read(base, min(_BLOCK + _OVERLAP, self._size - base))
            if len(self._blocks) >= _MOST_BLOCKS:
                del self._blocks[next(iter(self._blocks))]  # the least recently used one
        self._blocks[number] = block
        self._block, self._base = block, base
        return block, base


#: What the readers index and slice. Slices are copies, so nothing refers to a closed file.
Data = bytes | FileData


def describe_source(source: Source) -> str:
    """The name of ``source`` in error messages: its path, or "the model in memory"."""
    if isinstance(source, Pinned):
        return source.path
    return "the model in memory" if isinstance(source, bytes) else os.fspath(source)


@contextmanager
def open_source(source: Source, error: type[ValueError]) -> Iterator[Data]:
    """The bytes of ``source``, readable at any offset. A file opened here is closed on every path.

    Raises OSError if the file cannot be opened (IsADirectoryError for a folder), ``error`` if it cannot be read at an
    offset (a pipe, a device), or if it was modified in the meantime: results from it must not be used then.
    """
    if isinstance(source, bytes):
        yield source
        return
    if isinstance(source, Pinned):
        with _unchanged(source, error):
            yield _data(source)
        return
    try:
        file = Pinned(source)
    except OSError:
        raise
    except ValueError as problem:
        raise error(str(problem)) from None
    with file, _unchanged(file, error):
        yield _data(file)


def _data(file: Pinned) -> Data:
    return file.read(0, file.size) if file.size <= _READ_LIMIT else FileData(file)


@contextmanager
def _unchanged(file: Pinned, error: type[ValueError]) -> Iterator[None]:
    """Raise ``error`` if the file has changed at the end, even instead of the reader's own exception."""
    try:
        yield
    except (ValueError, EOFError) as problem:
        if (change := file.change()) is not None:
            raise error(f"{change}; wait until it is written, then load it again") from problem
        raise
    if (change := file.change()) is not None:
        raise error(f"{change}; wait until it is written, then load it again")


def describe_head(head: bytes) -> str:
    """What a file that starts with ``head`` (its first 64 bytes or so) seems to be, as a noun for an error message."""
    for start, name in _MAGIC:
        if head.startswith(start):
            return name
    if head[4:8] == b"ORTM":
        return "an onnxruntime model in ORT format"
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "nothing but zero bytes, as an interrupted download or copy leaves them"
    # An ONNX model starts with its ir_version (field 1), followed by another field of ModelProto.
    if head[0] == 0x08 and len(head) > 2 and head[1] < 0x40 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42\x72":
        return "an ONNX model"
    if all(byte >= 0x20 or byte in b"\t\n\r" for byte in head):
        return "text"
    return "something unknown"


_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"RKNX", "a model for RKNPU3, which this runtime generation cannot run"),
    (b"RKNN", "a compiled Rockchip model (.rknn)"),
    (b"CYPTRKNN", "an encrypted Rockchip model (.rknn)"),
    (b"\x7fELF", "an ELF library or program"),
    (b"PK\x03\x04", "a ZIP archive (as PyTorch and Keras save their models)"),
    (b"\x1f\x8b", "gzip data: unpack it first"),
    (b"\xfd7zXZ\0", "xz data: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data: unpack it first"),
    (b"\x89HDF\r\n", "an HDF5 file (as Keras saves its models)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF model"),
    (b"<!DOCTYPE", "a web page, as a download that needed a login leaves it"),
    (b"<html", "a web page, as a download that needed a login leaves it"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
)
