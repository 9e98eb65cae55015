"""Buffers in the NPU's memory, for bound runs."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..contract import PortForm, Region, SharedBuffer

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The tensor's offset in its buffer. Not 0, so that an ignored offset is detected.
_OFFSET = 4096


class SharedTensor:
    """A dma-buf with one tensor inside. ``allocate`` creates one of the given size in bytes."""

    def __init__(self, allocate: Callable[[int], int], port: PortForm) -> None:
        size = _OFFSET + -(-max(port.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._fd = allocate(size)
        try:
            self._map = mmap.mmap(self._fd, size)
        except BaseException:
            os.close(self._fd)
            raise
        self._first: ctypes.c_char | None = ctypes.c_char.from_buffer(self._map)
        self._map[:] = b"\xff" * size
        self._port = port
        self._buffer = SharedBuffer(self._fd, ctypes.addressof(self._first), size)
        self.region = Region(self._buffer, _OFFSET)

    def write(self, array: NDArray[Any]) -> None:
        """Write the tensor."""
        self._map[_OFFSET : _OFFSET + array.nbytes] = array.tobytes()

    def read(self) -> NDArray[Any]:
        """A copy of the tensor."""
        data = self._map[_OFFSET : _OFFSET + self._port.nbytes]
        return np.frombuffer(data, self._port.dtype).reshape(self._port.shape)

    def close(self) -> None:
        """Free it, while a context may still remember it."""
        self._buffer.freed = True
        self._first = None
        self._map.close()
        os.close(self._fd)
