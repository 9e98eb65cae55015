"""Memory from the kernel's dma-buf heaps, as far as it can be tested on a machine without them."""

import os
import struct

import pytest

from ort_rknn.adapter import AdapterError
from ort_rknn_librknnrt import _dma_heap


def test_every_heap_that_was_tried_is_named(tmp_path):
    (tmp_path / "system-dma32").touch()  # it opens, and is no heap
    with pytest.raises(AdapterError) as told:
        _dma_heap.allocate(4096, cached=True, folder=str(tmp_path))
    text = str(told.value)
    assert f"{tmp_path}/system: No such file" in text
    assert f"{tmp_path}/system-dma32: Inappropriate ioctl" in text
    assert f"{tmp_path}/cma: No such file" in text


@pytest.mark.parametrize(("cached", "name"), [(True, "system"), (False, "system-uncached")])
def test_the_size_is_read_from_the_kernel(tmp_path, monkeypatch, descriptors, cached, name):
    (tmp_path / name).touch()
    (tmp_path / "system").touch()
    asked = []

    def ioctl(fd, request, data):
        asked.append((os.readlink(f"/proc/self/fd/{fd}"), request, struct.unpack("=QIIQ", data)))
        struct.pack_into("=I", data, 8, 77)

    monkeypatch.setattr(_dma_heap.fcntl, "ioctl", ioctl)
    before = descriptors()
    assert _dma_heap.allocate(12345, cached=cached, folder=str(tmp_path)) == 77
    # struct dma_heap_allocation_data and DMA_HEAP_IOCTL_ALLOC of linux/dma-heap.h, on 64-bit machines
    assert asked == [(str(tmp_path / name), 0xC0184800, (12345, 0, os.O_RDWR | os.O_CLOEXEC, 0))]
    assert descriptors() == before
