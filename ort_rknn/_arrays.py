"""Reads ``.npy`` and ``.npz`` files from untrusted sources.

numpy's own reader allocates the memory that a header asks for before it checks the file's size, and raises whatever
exceptions its parsers, and zipfile's, happen to raise.
"""

from __future__ import annotations

import ast
import math
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ._regular import open_regular

_MAGIC = b"\x93NUMPY"
#: numpy's own limit. A header of plain numbers takes about a hundred characters.
_LONGEST_HEADER = 10_000
_MOST_AXES = 32
_NUMBERS = re.compile(r"[<>|=]?[biuf][0-9]{1,2}")
_BLOCK = 1 << 20
#: The directory of an archive with 90,000 members.
_LARGEST_DIRECTORY = 4 << 20


class ArrayError(ValueError):
    """Not an array of numbers, or not an archive of them."""


@dataclass(frozen=True, slots=True)
class Head:
    """The header of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    """In column-major order."""


def read_head(stream: IO[bytes]) -> Head:
    """Read up to the first number. Raises ArrayError, and OSError or what the stream raises."""
    start = stream.read(8)
    if len(start) < 8 or start[:6] != _MAGIC or start[6] not in (1, 2, 3):
        raise ArrayError("it does not begin as an array of numpy does")
    length = int.from_bytes(stream.read(2 if start[6] == 1 else 4), "little")
    if length > _LONGEST_HEADER:
        raise ArrayError(f"its header has {length} bytes, at most {_LONGEST_HEADER} are read")
    header = _exactly(stream, length)
    try:
        found = ast.literal_eval(header.decode("latin1" if start[6] < 3 else "utf-8").strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ArrayError("its header cannot be read") from None
    if not isinstance(found, dict) or set(found) != {"descr", "fortran_order", "shape"}:
        raise ArrayError("its header does not say dtype, order and shape")
    shape, fortran, descr = found["shape"], found["fortran_order"], found["descr"]
    if not isinstance(descr, str) or not _NUMBERS.fullmatch(descr):
        raise ArrayError(f"expected numbers, and its dtype is {ascii(descr)[:40]}")
    if not isinstance(shape, tuple) or len(shape) > _MOST_AXES or not isinstance(fortran, bool):
        raise ArrayError("its header has no shape, or no order")
    if not all(type(length) is int and 0 <= length < 1 << 62 for length in shape):
        raise ArrayError("its shape contains something that is not a length")
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise ArrayError(f"its dtype {descr} is unknown") from None
    return Head(shape, dtype, fortran)


def read_numbers(stream: IO[bytes], shape: tuple[int, ...], head: Head) -> NDArray[Any]:
    """Read the numbers of an array or of a row of it. Memory is allocated as they arrive. Raises ArrayError if the
    stream is too short."""
    data = _exactly(stream, math.prod(shape) * head.dtype.itemsize)
    values: NDArray[Any] = np.frombuffer(data, head.dtype).reshape(shape, order="F" if head.fortran else "C")
    return values.view(np.uint8) != 0 if head.dtype == np.bool_ else values  # a byte of 2 is not a valid bool


def _exactly(stream: IO[bytes], size: int) -> bytearray:
    data = bytearray()
    while len(data) < size:
        block = stream.read(min(size - len(data), _BLOCK))
        if not block:
            raise ArrayError("it is cut off")
        data += block
    return data


@contextmanager
def open_npz(source: str | os.PathLike[str] | BinaryIO) -> Iterator[zipfile.ZipFile]:
    """Open an archive of arrays. Raises OSError if it cannot be opened, and ArrayError for anything wrong with it or
    its members, inside the block, too."""
    with ExitStack() as opened:
        if isinstance(source, (str, os.PathLike)):
            source = opened.enter_context(open_regular(source))
        try:
            yield opened.enter_context(zipfile.ZipFile(cast(BinaryIO, _Bounded(source))))
        except ArrayError:
            raise
        except _of_zip() as error:
            raise ArrayError(f"its archive cannot be read: {error}") from error


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> NDArray[Any]:
    """The array ``name`` of an archive, of at most ``most`` bytes. Raises like the block of :func:`open_npz`."""
    with archive.open(f"{name}.npy") as stream:
        head = read_head(stream)
        size = math.prod(head.shape) * head.dtype.itemsize
        if size > most:
            raise ArrayError(f"{name!a} has {size} bytes, at most {most} are read")
        return read_numbers(stream, head.shape, head)


def names_in(archive: zipfile.ZipFile) -> list[str]:
    """The arrays of an archive, in order."""
    return [name[:-4] for name in archive.namelist() if name.endswith(".npy")]


def _of_zip() -> tuple[type[Exception], ...]:
    """Exceptions of zipfile and its decompressors. RuntimeError: encrypted. NotImplementedError: unsupported
    compression. OSError: an offset before the start of the file, or damaged bzip2."""
    import lzma
    import struct
    import zlib

    of_archive = (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, ValueError, KeyError, struct.error)
    return (*of_archive, OSError, OverflowError, zlib.error, lzma.LZMAError)


class _Bounded:
    """A file for zipfile, which reads an archive's directory in one piece, whatever size the file claims for it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._file.tell(), 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has more than {_LARGEST_DIRECTORY} bytes")
        return self._file.read(wanted)
