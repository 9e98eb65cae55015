"""Opening a model given as a path or as bytes, without reading it whole."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

Source = str | os.PathLike[str] | bytes
#: What the readers index and slice. Slices are copies, so nothing outlives a closed map.
Data = bytes | mmap.mmap

#: Up to this size a file is read, above it mapped: a read copy cannot be cut short by another process at work on the
#: file (which would end this one with SIGBUS), and a map takes no memory for the weights.
_READ_LIMIT = 1 << 20


def describe_source(source: Source) -> str:
    """How an error names ``source``: its path, or "the model in memory"."""
    return "the model in memory" if isinstance(source, bytes) else os.fspath(source)


@contextmanager
def open_source(source: Source, error: type[ValueError]) -> Iterator[Data]:
    """The bytes of ``source`` for reading at any offset, closed on every path.

    Raises OSError where the file cannot be opened (IsADirectoryError for a folder), ``error`` where it is something
    that has no contents to read at an offset (a pipe, a device).
    """
    if isinstance(source, bytes):
        yield source
        return
    path = os.fspath(source)
    # O_NONBLOCK: opening a pipe must not wait for its writer. It changes nothing for a regular file.
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    mapped: mmap.mmap | None = None
    descriptor = os.open(path, flags)
    try:
        info = os.fstat(descriptor)
        if stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(info.st_mode):
            raise error(f"{path}: not a regular file")
        if info.st_size <= _READ_LIMIT:
            contents = _read_all(descriptor)
        else:
            mapped = mmap.mmap(descriptor, info.st_size, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)
    if mapped is None:
        yield contents
        return
    try:
        yield mapped
    finally:
        mapped.close()


def _read_all(descriptor: int) -> bytes:
    """Read to the end, or to twice the limit for a file that grows meanwhile."""
    parts: list[bytes] = []
    left = 2 * _READ_LIMIT
    while left > 0 and (part := os.read(descriptor, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def looks_like(head: bytes) -> str:
    """What a file that starts with ``head`` (its first 64 bytes or so) seems to be, as a noun for an error."""
    for start, name in _MAGIC:
        if head.startswith(start):
            return name
    if head[4:8] == b"ORTM":
        return "an onnxruntime model in ORT format"
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return "nothing but zero bytes, as an interrupted download or copy leaves them"
    # An ONNX model starts with its ir_version (field 1) and goes on with one of ModelProto's other fields.
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
