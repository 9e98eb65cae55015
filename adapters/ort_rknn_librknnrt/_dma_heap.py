"""Memory from the kernel's dma-buf heaps (Linux 5.6 and later; ``linux/dma-heap.h``)."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from ort_rknn.adapter import AdapterError

FOLDER: Final = "/dev/dma_heap"
#: Heap names in Rockchip's kernels, best first. Not verified on a board.
_CACHED: Final = ("system", "system-dma32", "cma")
_UNCACHED: Final = ("system-uncached", "system-uncached-dma32", "cma-uncached")
#: ``DMA_HEAP_IOCTL_ALLOC``: _IOWR('H', 0, 24 bytes); length, the new descriptor, its flags, the heap's.
_ALLOCATE: Final = 0xC0184800
_DATA: Final = "=QIIQ"


def allocate(nbytes: int, *, cached: bool, folder: str = FOLDER) -> int:
    """A new dma-buf's descriptor. Raises AdapterError, which lists each heap's error."""
    answers = []
    for name in _CACHED if cached else _UNCACHED:
        path = os.path.join(folder, name)
        try:
            heap = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            answers.append(f"{path}: {error.strerror}")
            continue
        try:
            asked = bytearray(struct.pack(_DATA, nbytes, 0, os.O_RDWR | os.O_CLOEXEC, 0))
            fcntl.ioctl(heap, _ALLOCATE, asked)
            return int(struct.unpack(_DATA, asked)[1])
        except OSError as error:
            answers.append(f"{path}: {error.strerror}")
        finally:
            os.close(heap)
    raise AdapterError(
        f"cannot allocate a dma-buf of {nbytes} bytes ({'; '.join(answers)}). The user must be able to read {folder}: "
        "a udev rule or a group gives that, as for the NPU's device node"
    )
