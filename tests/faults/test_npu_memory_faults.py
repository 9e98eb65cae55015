"""Faults of memory that the NPU shares: buffers that are too small or oddly aligned, descriptors closed early, sessions
that share one, runtimes that refuse, models that are loaded and closed."""

import gc
import os

import numpy as np
import pytest
from support.virtual_sessions import MODELS, VIRTUAL, virtual_rk3588

import ort_rknn as ort

npu = pytest.fixture(virtual_rk3588)
RAW = {"layout": "NHWC", "input_dtype": "uint8"}
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
SMALL = np.random.default_rng(1).integers(0, 256, (1, 24, 24, 3), np.uint8)


def session(model="conv_f16", **options):
    return ort.InferenceSession(MODELS / f"{model}.onnx", provider_options={**VIRTUAL, **RAW, **options})


def memfd(content):
    fd = os.memfd_create("camera")
    os.write(fd, content)
    return fd


def frame(content=IMAGE):
    array = ort.empty(content.shape, content.dtype, device="virtual:rk3588")
    array[...] = content
    return array


def counts(a_session):
    total = a_session.stats().total
    return total.bound_runs, total.unbound_runs


def bound(a_session, name, array):
    """One run of the address, which onnxruntime does not copy for its strides."""
    binding = a_session.io_binding()
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for output in a_session.get_outputs():
        binding.bind_output(output.name)
    a_session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()[0]


def test_a_buffer_without_what_fills_up_the_last_row(npu):
    """The NPU reads rows of 32 pixels; the buffer ends with the 24th pixel of the last one."""
    whole = np.full((24, 96), 99, np.uint8)
    whole[:, :72] = SMALL.reshape(24, 72)
    fd = memfd(whole.tobytes()[:-24])
    x = ort.from_dmabuf(fd, SMALL.shape, np.uint8, strides=(24 * 96, 96, 3, 1))
    os.close(fd)
    with session("image_u8") as s:
        np.testing.assert_array_equal(bound(s, "image", x), s.run(None, {"image": SMALL})[0])
        assert sum(counts(s)) == 1
    assert npu.counters().misuses == 0


@pytest.mark.parametrize(
    "strides",
    [(24 * 72, 72, 3, 1), (0, 96, 3, 1), (24 * 96, 96, 4, 1), (1, 24 * 24, 24, 24 * 24 * 24)],
    ids=["no gaps", "one image", "pixels with gaps", "planes"],
)
def test_strides_of_all_kinds_give_the_numbers_that_numpy_sees(npu, strides):
    """Buffers that the NPU can read are bound, all others are copied; no bytes are misread."""
    whole = np.random.default_rng(2).integers(0, 256, 24 * 24 * 24 * 3 + 4096, np.uint8)
    fd = memfd(whole.tobytes())
    x = ort.from_dmabuf(fd, SMALL.shape, np.uint8, strides=strides)
    os.close(fd)
    with session("image_u8") as s:
        np.testing.assert_array_equal(bound(s, "image", x), s.run(None, {"image": x.copy()})[0])
        assert counts(s) == ((1, 0) if strides == (0, 96, 3, 1) else (0, 1))
    assert npu.counters().misuses == 0


def test_rows_that_overlap(npu):
    """A pitch below the width: every row starts inside the previous one."""
    fd = memfd(np.random.default_rng(3).integers(0, 256, 24 * 72, np.uint8).tobytes())
    x = ort.from_dmabuf(fd, SMALL.shape, np.uint8, strides=(24 * 60, 60, 3, 1))
    os.close(fd)
    with session("image_u8") as s:
        np.testing.assert_array_equal(bound(s, "image", x), s.run(None, {"image": x.copy()})[0])
        assert counts(s) == (0, 1)


def test_a_descriptor_that_is_closed_between_runs(npu):
    """Ours is a duplicate: the number may even be another file's by then."""
    fd = memfd(IMAGE.tobytes())
    x = ort.from_dmabuf(fd, IMAGE.shape, np.uint8)
    with session(schedule="0,1,2") as s:
        want = s.run(None, {"x": IMAGE})[0]
        np.testing.assert_array_equal(s.run(None, {"x": x})[0], want)
        os.close(fd)
        other = memfd(bytes(10))
        for (got,) in s.map([{"x": x}] * 6, copy=False):  # the other cores import it only now
            np.testing.assert_array_equal(got, want)
        os.close(other)
        assert counts(s) == (7, 0)


def test_a_session_that_is_closed_leaves_the_buffer_to_others(npu):
    x = frame()
    with session("conv_i8") as stays:
        want = stays.run(None, {"x": IMAGE})[0]
        for _ in range(3):
            with session() as goes:
                goes.run(None, {"x": x})
            np.testing.assert_array_equal(stays.run(None, {"x": x})[0], want)
        assert counts(stays) == (3, 0)
    assert (npu.counters().mems, npu.counters().misuses) == (0, 0)


@pytest.mark.parametrize(
    "function", ["rknn_dup_context", "rknn_create_mem", "rknn_create_mem_from_fd", "rknn_set_io_mem"]
)
def test_what_is_refused_leaves_nothing_behind(npu, function):
    """Refused permanently: runs use copies, or fail, and nothing stays allocated."""
    with session() as s:
        want = s.run(None, {"x": IMAGE})[0]
        x = frame()
        npu.fault(function, -4)
        for _ in range(3):
            try:
                np.testing.assert_array_equal(s.run(None, {"x": x})[0], want)
            except ort.capi.onnxruntime_pybind11_state.RuntimeException as error:
                assert function == "rknn_dup_context" and function in str(error)
        npu.clear_faults()
        np.testing.assert_array_equal(s.run(None, {"x": x})[0], want)
        assert counts(s)[0] == 1
    assert (npu.counters().mems, npu.counters().contexts, npu.counters().misuses) == (0, 0, 0)


def test_memory_is_made_once_however_often_a_small_model_runs(npu):
    """Creating and destroying at a high rate crashed the vendor's runtime, by one user's report."""
    with session() as s:
        frames = [frame(np.full_like(IMAGE, k)) for k in range(4)]
        for x in frames:
            s.run(None, {"x": x})
        since = npu.events()[-1].sequence
        for k in range(400):
            s.run(None, {"x": frames[k % 4]})
        kinds = {event.kind for event in npu.events(since)}
        assert kinds == {"set_io_mem", "mem_sync", "run"}


def test_small_models_that_come_and_go_with_buffers_of_their_own(npu, descriptors):
    gc.collect()
    before = descriptors()
    for k in range(40):
        with session("conv_i8" if k % 2 else "conv_f16") as s:
            (one,) = s.buffers(1)
            one["x"][...] = IMAGE
            np.testing.assert_array_equal(s.run(None, one)[0], s.run(None, {"x": IMAGE})[0])
            assert counts(s) == (1, 0)
        del one
    gc.collect()
    assert descriptors() <= before
    assert (npu.counters().mems, npu.counters().contexts, npu.counters().misuses) == (0, 0, 0)
