"""dma-bufs on the virtual NPU: its own mapping, cache synchronization, use after free."""

import ctypes as c
import mmap
import os

import numpy as np
import pytest
from support.virtual_runtime import Attr, Runtime

INPUT, OUTPUT, TO_DEVICE, FROM_DEVICE = 1, 2, 1, 2


@pytest.fixture
def rt():
    made = Runtime("rk3588")
    made.c.rknn_virtual_reset()
    yield made
    made.c.rknn_virtual_reset()


class Bound:
    """A context of conv_f16 with input and output in dma-bufs."""

    def __init__(self, rt):
        self.c = rt.c
        self.context = rt.open("conv_f16")
        self.buffers = []
        self.x, self.x_attr = self.bind(INPUT)
        self.y, self.y_attr = self.bind(OUTPUT)

    def bind(self, query):
        attr = Attr()
        attr.index = 0
        assert self.c.rknn_query(self.context, query, c.byref(attr), c.sizeof(attr)) == 0
        fd = self.c.rknn_virtual_dmabuf(c.c_uint64(attr.size_with_stride))
        mapped = mmap.mmap(fd, attr.size_with_stride)
        array = np.frombuffer(mapped, np.uint8)
        memory = self.c.rknn_create_mem_from_fd(
            self.context, fd, c.c_void_p(array.ctypes.data), c.c_uint32(attr.size_with_stride), 0
        )
        assert memory
        os.close(fd)
        assert self.c.rknn_set_io_mem(self.context, memory, c.byref(attr)) == 0
        self.buffers.append(array)
        return memory, attr

    def sync(self, memory, mode):
        assert self.c.rknn_mem_sync(self.context, memory, mode) == 0

    def run(self):
        return self.c.rknn_run(self.context, None)

    def close(self):
        assert self.c.rknn_destroy(self.context) == 0


@pytest.fixture
def bound(rt):
    made = Bound(rt)
    yield made
    made.close()


def misuses(rt):
    from ort_rknn_virtual.control import virtual_npu

    return virtual_npu("rk3588").counters().misuses


def test_in_step(rt, bound):
    x, y = bound.buffers
    results = []
    for value in (1, 2, 1):
        x[...] = value
        bound.sync(bound.x, TO_DEVICE)
        assert bound.run() == 0
        bound.sync(bound.y, FROM_DEVICE)
        results.append(y.copy())
    np.testing.assert_array_equal(results[0], results[2])
    assert not np.array_equal(results[0], results[1])
    assert misuses(rt) == 0


def test_an_input_that_was_not_synchronized_is_the_one_before(rt, bound):
    x, y = bound.buffers
    x[...] = 1
    bound.sync(bound.x, TO_DEVICE)
    assert bound.run() == 0
    bound.sync(bound.y, FROM_DEVICE)
    first = y.copy()
    x[...] = 2
    assert bound.run() == 0
    bound.sync(bound.y, FROM_DEVICE)
    np.testing.assert_array_equal(y, first)
    assert misuses(rt) == 1


def test_an_output_is_there_after_the_synchronization(rt, bound):
    x, y = bound.buffers
    x[...] = 1
    bound.sync(bound.x, TO_DEVICE)
    assert bound.run() == 0
    assert not y.any()
    bound.sync(bound.y, FROM_DEVICE)
    assert y.any()


@pytest.mark.parametrize("side", ["x", "y"])
def test_memory_that_was_destroyed_is_not_used(rt, bound, side):
    bound.sync(bound.x, TO_DEVICE)
    memory, attr = getattr(bound, side), getattr(bound, f"{side}_attr")
    assert rt.c.rknn_destroy_mem(bound.context, memory) == 0
    assert bound.run() == -1
    assert misuses(rt) == 1
    assert rt.c.rknn_destroy_mem(bound.context, memory) == -5
    assert rt.c.rknn_set_io_mem(bound.context, memory, c.byref(attr)) == -5


@pytest.mark.parametrize("what", ["closed", "negative", "too small", "beyond the end", "read-only output"])
def test_buffers_that_are_refused(rt, bound, what):
    size, offset = bound.y_attr.size_with_stride, 0
    fd = rt.c.rknn_virtual_dmabuf(c.c_uint64(size))
    number = fd
    if what == "closed":
        os.close(fd)
    elif what == "negative":
        number = -1
    elif what == "too small":
        size += 1
    elif what == "beyond the end":
        offset = 4096
    else:
        number = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    memory = rt.c.rknn_create_mem_from_fd(bound.context, number, c.c_void_p(1), c.c_uint32(size), offset)
    if what == "read-only output":
        assert memory
        assert rt.c.rknn_set_io_mem(bound.context, memory, c.byref(bound.y_attr)) == -5
        os.close(number)
    else:
        assert not memory
    if what != "closed":
        os.close(fd)
