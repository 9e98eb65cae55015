"""Arrays in memory shared with the NPU: ordinary numpy arrays over dma-bufs, and a table to recognize them.

onnxruntime passes a numpy array's address to the kernel unchanged, so an address range suffices to recognize such an
array however it arrives: ``run``, IOBinding, an OrtValue over it, ``submit``, ``map``.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import stat
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .._concurrency.forks import renewed_in_child
from .._errors import RUNTIME_EXCEPTION, ort_error
from .._locks import Lock, RLock
from .._tensors import Shape
from ..adapter.contract import SharedBuffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAP_SHARED, _PROT_READ, _PROT_WRITE = 1, 1, 2
_MAP_FAILED = ctypes.c_void_p(-1).value


@dataclass(slots=True, eq=False)
class Strided:
    """The position and strides of a non-contiguous tensor in a buffer."""

    offset: int
    shape: Shape
    dtype: str
    strides: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Entry:
    """A mapped buffer, and the runs that use it."""

    buffer: SharedBuffer
    strided: Strided | None = None
    shrinks: bool = False
    """Its file may be truncated: a memfd, not a dma-buf."""
    uses: list[tuple[int, int, bool]] = field(default_factory=list)
    """One entry per active run: first byte, one past the last, whether it is written."""


class BufferTable:
    """Mapped buffers by address. Thread safe; only the first look-up after a change takes a lock.

    False while it is empty. A finalizer may run at any point, even during a look-up on the same thread.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._lock = renewed_in_child(RLock())
        self._changes = itertools.count(1)
        self._last = 0
        self._sorted = 0
        """The change up to which :attr:`_index` is sorted: many additions in a row cost one sort."""
        self._index: tuple[list[int], list[Entry]] = ([], [])
        self._using = renewed_in_child(Lock())

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entry: Entry) -> None:
        """Recognize a buffer by its addresses from now on."""
        self._entries[entry.buffer.address] = entry
        self._last = next(self._changes)

    def remove(self, entry: Entry) -> None:
        """Forget a buffer that is about to be unmapped."""
        entry.buffer.freed = True
        self._entries.pop(entry.buffer.address, None)
        self._last = next(self._changes)

    def _renew(self) -> None:
        with self._lock:  # no loop in here: see Places._claim
            self._sort()

    def _sort(self) -> None:
        while self._sorted != (last := self._last):  # again if a finalizer ran in between
            entries = sorted(self._entries.copy().values(), key=lambda entry: entry.buffer.address)
            self._index = ([entry.buffer.address for entry in entries], entries)
            self._sorted = last

    def find(self, address: int, nbytes: int) -> Entry | None:
        """The buffer that contains these bytes; None if there is none. Raises RuntimeException if the memory under it
        is gone, because its memfd was truncated."""
        if self._sorted != self._last:
            self._renew()
        starts, entries = self._index
        place = bisect_right(starts, address) - 1
        if place < 0:
            return None
        entry = entries[place]
        if address + nbytes > entry.buffer.address + entry.buffer.nbytes:
            return None
        if entry.shrinks:
            _check_size(entry.buffer)
        return entry

    def begin(self, uses: Sequence[tuple[Entry, int, int, bool]]) -> bool:
        """Record what a run reads and writes. False, and nothing recorded, if another run writes it, or reads what this
        one would write."""
        with self._using:  # no loop in here: see Places._claim
            if _conflict(uses):
                return False
            _note(uses)
            return True

    def end(self, uses: Sequence[tuple[Entry, int, int, bool]]) -> None:
        """Remove the records of a run that has ended."""
        with self._using:
            _forget(uses)


def _conflict(uses: Sequence[tuple[Entry, int, int, bool]]) -> bool:
    return any(first < e and f < end and (writes or w) for entry, first, end, writes in uses for f, e, w in entry.uses)


def _note(uses: Sequence[tuple[Entry, int, int, bool]]) -> None:
    for entry, first, end, writes in uses:
        entry.uses.append((first, end, writes))


def _forget(uses: Sequence[tuple[Entry, int, int, bool]]) -> None:
    for entry, first, end, writes in uses:
        entry.uses.remove((first, end, writes))


def _check_size(buffer: SharedBuffer) -> None:
    """Touching pages beyond a file's end would kill the process with SIGBUS."""
    size = os.fstat(buffer.fd).st_size
    if size < buffer.nbytes:
        raise ort_error(
            RUNTIME_EXCEPTION,
            f"an input or output lies in a memfd that was truncated from {buffer.nbytes} to {size} bytes: the array "
            "over it must not be used anymore",
        )


#: All mapped buffers of this process.
table = BufferTable()


class _Mapping:
    """The owner of the memory, for numpy; the memory is unmapped when the last array over it is gone."""

    __slots__ = ("__array_interface__", "__weakref__")

    def __init__(self, entry: Entry, writable: bool) -> None:
        buffer = entry.buffer
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (buffer.nbytes,),
            "data": (buffer.address, not writable),
        }
        weakref.finalize(self, _release, entry).atexit = False  # the end of the process unmaps it


def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


def _release(entry: Entry) -> None:
    table.remove(entry)  # before unmapping: then the addresses may be reused at once
    buffer = entry.buffer
    _libc().munmap(buffer.address, buffer.nbytes)
    os.close(buffer.fd)


def size_of(fd: int) -> int:
    """Size of a dma-buf or memfd, in bytes. Raises OSError for any other descriptor, and for a closed one."""
    status = os.fstat(fd)
    return status.st_size if stat.S_ISREG(status.st_mode) else os.lseek(fd, 0, os.SEEK_END)


def map_buffer(fd: int, nbytes: int, strided: Strided | None = None) -> NDArray[np.uint8]:
    """The first ``nbytes`` of a dma-buf as an array that runs recognize from now on. Takes ownership of ``fd``.

    Read-only if the descriptor is. Raises OSError if it cannot be mapped.
    """
    try:
        libc = _libc()
        address, writable = None, True
        for protection in (_PROT_READ | _PROT_WRITE, _PROT_READ):
            address = libc.mmap(None, nbytes, protection, _MAP_SHARED, fd, 0)
            if address != _MAP_FAILED:
                break
            writable = False
        if address is None or address == _MAP_FAILED:
            error = ctypes.get_errno()
            raise OSError(error, f"the buffer cannot be mapped: {os.strerror(error)}")
    except BaseException:
        os.close(fd)
        raise
    entry = Entry(SharedBuffer(fd, address, nbytes), strided, stat.S_ISREG(os.fstat(fd).st_mode))
    array = np.asarray(_Mapping(entry, writable))
    table.add(entry)
    return array


#: Further reasons are counted together.
_REASONS = 32


class BufferRuns:
    """Counters of one context. ``usual``: runs that had such memory and could not bind it, by reason."""

    __slots__ = ("bound", "copied", "usual")

    def __init__(self) -> None:
        self.bound = 0
        self.copied = 0
        """Bytes that bound runs copied, for inputs and outputs in ordinary memory."""
        self.usual: dict[str, int] = {}

    def count_usual(self, reason: str) -> None:
        if reason not in self.usual and len(self.usual) >= _REASONS:
            reason = "other reasons"
        self.usual[reason] = self.usual.get(reason, 0) + 1


def sum_of(counts: Iterable[BufferRuns]) -> BufferRuns:
    """The sum over several contexts."""
    counts = list(counts)
    total = BufferRuns()
    for one in counts:
        total.bound += one.bound
        total.copied += one.copied
    total.usual = sums(one.usual.copy() for one in counts)
    return total


def sums(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of each key."""
    total: dict[str, int] = {}
    for one in counts:
        for key, number in one.items():
            total[key] = total.get(key, 0) + number
    return total
