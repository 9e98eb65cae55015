"""Arrays in memory that the NPU shares, on the virtual NPU: what is bound, what is copied, what is refused."""

import asyncio
import gc
import os
import threading

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.virtual_sessions import MODELS, VIRTUAL, virtual_rk3588

import ort_rknn as ort
from ort_rknn._executor.buffers import BufferTable, Entry
from ort_rknn.adapter.contract import SharedBuffer

npu = pytest.fixture(virtual_rk3588)
RAW = {"layout": "NHWC", "input_dtype": "uint8"}
IMAGE = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)


def session(model="conv_f16", **options):
    return ort.InferenceSession(MODELS / f"{model}.onnx", provider_options={**VIRTUAL, **RAW, **options})


def frame(content=IMAGE):
    array = ort.empty(content.shape, content.dtype, device="virtual:rk3588")
    array[...] = content
    return array


def kinds(npu, since=0):
    return [event.kind for event in npu.events(since)]


def last(npu):
    return npu.events()[-1].sequence


def of(a_session):
    return a_session._npu.executor.buffer_runs()


def test_a_run_reads_npu_memory_without_a_copy(npu):
    with session() as s:
        (expected,) = s.run(None, {"x": IMAGE})
        array = frame()
        since = last(npu)
        (y,) = s.run(None, {"x": array})
        np.testing.assert_array_equal(y, expected)
        events = npu.events(since)
        assert {e.kind for e in events} >= {"create_mem_from_fd", "set_io_mem", "mem_sync", "run"}
        assert not {"inputs_set", "outputs_get"} & {e.kind for e in events}
        assert array.ctypes.data in [e.address for e in events if e.kind == "create_mem_from_fd"]
        since = last(npu)
        array[...] = 255 - IMAGE
        (other,) = s.run(None, {"x": array})
        assert kinds(npu, since) == ["mem_sync", "run", "mem_sync"]
        np.testing.assert_array_equal(other, s.run(None, {"x": 255 - IMAGE})[0])
        assert not np.array_equal(other, y)
        assert (of(s).bound, of(s).usual) == (2, {})
        assert of(s).copied == 2 * y.nbytes
        assert "2 runs bound NPU memory" in s.explain()
    assert npu.counters().mems == 0
    assert npu.counters().misuses == 0


def test_outputs_are_written_to_npu_memory(npu):
    with session() as s:
        (expected,) = s.run(None, {"x": IMAGE})
        x, y = frame(), ort.empty(expected.shape, np.float32, device="virtual:rk3588")
        binding = s.io_binding()
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        since = last(npu)
        s.run_with_iobinding(binding)
        np.testing.assert_array_equal(y, expected)
        assert not {"inputs_set", "outputs_get", "create_mem"} & set(kinds(npu, since))
        assert of(s).copied == 0


@pytest.mark.parametrize("shift", [0, 512, -512])
def test_an_output_in_the_memory_of_an_input_is_written_after_the_input_was_read(npu, shift):
    with session() as s:
        (expected,) = s.run(None, {"x": IMAGE})
        memory = ort.empty(65536, np.uint8, device="virtual:rk3588")
        x = memory[1024 : 1024 + IMAGE.nbytes].reshape(IMAGE.shape)
        x[...] = IMAGE
        y = memory[1024 + shift : 1024 + shift + expected.nbytes].view(np.float32).reshape(expected.shape)
        binding = s.io_binding()
        binding.bind_input("x", "cpu", 0, np.uint8, x.shape, x.ctypes.data)
        binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        since = last(npu)
        s.run_with_iobinding(binding)
        np.testing.assert_array_equal(y, expected)
        assert {"inputs_set", "outputs_get"} <= set(kinds(npu, since))  # not written while the NPU may still read it
        assert (of(s).bound, list(of(s).usual)) == (
            0,
            ["an output lies in the memory of an input or of another output"],
        )


@pytest.mark.parametrize("shape", [(1.5,), (1, "2"), 2.0])
def test_shapes_are_integers(npu, shape):
    with pytest.raises(TypeError):
        ort.empty(shape, device="virtual:rk3588")


@pytest.mark.parametrize("way", ["run_with_ort_values", "submit", "map", "run_async", "ortvalue"])
def test_every_way_of_running_knows_it(npu, way):
    with session(schedule="0,1,2") as s:
        (expected,) = s.run(None, {"x": IMAGE})
        x = frame()
        since = last(npu)
        if way == "run_with_ort_values":
            got = s.run_with_ort_values(None, {"x": ort.OrtValue.ortvalue_from_numpy(x)})[0].numpy()
        elif way == "ortvalue":
            got = s.run(None, {"x": ort.OrtValue.ortvalue_from_numpy(x)})[0]
        elif way == "submit":
            got = s.submit(None, {"x": x}, copy=False).result()[0]
        elif way == "map":
            (got,) = next(s.map([{"x": x}] * 3, copy=False))
        else:
            done = threading.Event()
            results = []
            s.run_async(None, {"x": x}, lambda r, _, error: (results.append(r), done.set()), None)
            assert done.wait(20)
            got = results[0][0]
        np.testing.assert_array_equal(got, expected)
        assert "inputs_set" not in kinds(npu, since)


def test_views_of_an_array_are_known_too(npu):
    with session() as s:
        frames = frame(np.concatenate([IMAGE, 255 - IMAGE, IMAGE // 2]))
        for k in (1, 2, 0):
            one = frames[k : k + 1]
            (y,) = s.run(None, {"x": one})
            np.testing.assert_array_equal(y, s.run(None, {"x": one.copy()})[0])
        assert of(s).bound == 3


def test_the_memory_lives_as_long_as_a_view(npu, descriptors):
    array = frame()
    part = array[0, 1:3]
    del array
    gc.collect()
    np.testing.assert_array_equal(part, IMAGE[0, 1:3])
    fds = descriptors()
    del part
    gc.collect()
    assert descriptors() == fds - 1


def test_a_freed_buffer_is_given_up_at_the_next_run(npu):
    with session() as s:
        x = frame()
        s.run(None, {"x": x})
        del x
        gc.collect()
        other = frame(255 - IMAGE)  # most likely at the same address
        (y,) = s.run(None, {"x": other})
        np.testing.assert_array_equal(y, s.run(None, {"x": 255 - IMAGE})[0])
        assert npu.counters().mems == 2  # this one, and the output's stand-in
        assert npu.counters().misuses == 0


def test_ordinary_memory_at_a_freed_address_is_ordinary(npu):
    with session() as s:
        kept = frame()
        for _ in range(50):
            array = frame()
            s.run(None, {"x": array})
            del array
            np.testing.assert_array_equal(s.run(None, {"x": IMAGE.copy()})[0], s.run(None, {"x": kept})[0])
        assert npu.counters().misuses == 0


def test_a_dmabuf_of_somebody_else(npu):
    size = 4096 + IMAGE.nbytes
    fd = os.memfd_create("camera")
    os.write(fd, bytes(4096) + IMAGE.tobytes())
    with session() as s:
        x = ort.from_dmabuf(fd, IMAGE.shape, np.uint8, offset=4096)
        os.close(fd)  # it was duplicated
        np.testing.assert_array_equal(x, IMAGE)
        (y,) = s.run(None, {"x": x})
        np.testing.assert_array_equal(y, s.run(None, {"x": IMAGE})[0])
        assert of(s).bound == 1
    assert size == 4096 + x.nbytes


def camera(pitch, height=32):
    """A buffer with gaps between the rows, and its descriptor."""
    whole = np.full((height, pitch), 77, np.uint8)
    whole[:32, : 32 * 3] = IMAGE.reshape(32, 96)
    fd = os.memfd_create("camera")
    os.write(fd, whole.tobytes())
    return fd


@pytest.mark.parametrize("pitch", [96, 128, 100])
def test_a_pitch_is_respected(npu, pitch):
    fd = camera(pitch, 40)
    x = ort.from_dmabuf(fd, IMAGE.shape, "uint8", strides=(40 * pitch, pitch, 3, 1))
    os.close(fd)
    np.testing.assert_array_equal(x, IMAGE)
    with session() as s:
        (expected,) = s.run(None, {"x": IMAGE})
        np.testing.assert_array_equal(s.run(None, {"x": x})[0], expected)
        binding = s.io_binding()
        binding.bind_input("x", "cpu", 0, np.uint8, x.shape, x.ctypes.data)
        binding.bind_output("y")
        s.run_with_iobinding(binding)
        np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected)
        if pitch != 96:  # the model's own width has no gaps
            assert any("rows are" in reason for reason in of(s).usual)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"layout": "NCHW", "input_dtype": "uint8"}, "uint8 NCHW"),
        ({"layout": "NHWC", "input_dtype": "float32"}, "float32 NHWC"),
        ({"layout": "nchw_software", "input_dtype": "uint8"}, "converted above the runtime"),
    ],
)
def test_what_does_not_fit_is_counted_by_its_reason(npu, options, word):
    with session(**options) as s:
        content = IMAGE if options["layout"] == "NHWC" else np.ascontiguousarray(IMAGE.transpose(0, 3, 1, 2))
        x = frame(content.astype(options["input_dtype"]))
        (y,) = s.run(None, {"x": x})
        np.testing.assert_array_equal(y, s.run(None, {"x": np.array(x)})[0])
        ((reason, number),) = of(s).usual.items()
        assert word in reason
        assert number == 1
        assert of(s).bound == 0
        assert reason in s.explain()


def test_several_inputs_of_which_one_is_npu_memory(npu):
    with session("two_io", layout={}, input_dtype={}) as s:
        feeds = {i.name: np.ones(i.shape, np.float32) for i in s.get_inputs()}
        expected = s.run(None, feeds)
        first = next(iter(feeds))
        for got, want in zip(s.run(None, {**feeds, first: frame(feeds[first])}), expected):
            np.testing.assert_array_equal(got, want)


def test_two_sessions_share_a_buffer(npu):
    x = frame()
    with session() as a, session("conv_i8") as b:
        for one in (a, b, a, b):
            np.testing.assert_array_equal(one.run(None, {"x": x})[0], one.run(None, {"x": IMAGE})[0])
        assert of(a).bound == of(b).bound == 2


def test_one_models_output_is_the_next_ones_input(npu):
    with session() as s:
        (expected,) = s.run(None, {"x": IMAGE})
        y = ort.empty(expected.shape, np.float32, device="virtual:rk3588")
        binding = s.io_binding()
        x = frame()  # onnxruntime 1.23.1 does not keep it for a binding
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
        binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(y))
        for _ in range(3):
            y[...] = 0
            s.run_with_iobinding(binding)
            np.testing.assert_array_equal(y, expected)


def test_all_cores_at_once(npu):
    npu.run_time_us = 2000
    images = [np.full_like(IMAGE, 7 * k) for k in range(9)]
    with session(schedule="0,1,2") as s:
        expected = [s.run(None, {"x": image})[0] for image in images]
        frames = [frame(image) for image in images]
        for _ in range(2):
            for (y,), want in zip(s.map([{"x": x} for x in frames], copy=False), expected):
                np.testing.assert_array_equal(y, want)
        assert of(s).bound == 18
        assert len({e.core_mask for e in npu.events() if e.kind == "run"}) == 3
    assert npu.counters().misuses == 0


def test_an_output_in_flight_is_not_written_by_another_run(npu):
    npu.run_time_us = 300_000
    with session(schedule="0,1") as s:
        (first,) = s.run(None, {"x": IMAGE})
        y = ort.empty(first.shape, np.float32, device="virtual:rk3588")

        def bound(x):
            binding = s.io_binding()
            binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x))
            binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(y))
            return binding

        a, b = frame(), frame(255 - IMAGE)
        one, two = bound(a), bound(b)
        thread = threading.Thread(target=s.run_with_iobinding, args=(one,))
        thread.start()
        while not any(entry.uses for entry in _entries()):
            pass
        with pytest.raises(Exception, match="another run is using"):
            s.run_with_iobinding(two)
        thread.join()
        np.testing.assert_array_equal(y, first)
        s.run_with_iobinding(two)  # it is over


def _entries():
    from ort_rknn._executor.buffers import table

    return list(table._entries.values())


@pytest.mark.parametrize("function", ["rknn_create_mem_from_fd", "rknn_create_mem", "rknn_set_io_mem"])
def test_a_refused_binding_goes_the_usual_way(npu, function):
    with session() as s:
        (expected,) = s.run(None, {"x": IMAGE})
        x = frame()
        npu.fault(function, -5, times=1)
        np.testing.assert_array_equal(s.run(None, {"x": x})[0], expected)
        assert (of(s).bound, list(of(s).usual.values())) == (0, [1])
        np.testing.assert_array_equal(s.run(None, {"x": x})[0], expected)
        assert of(s).bound == 1


@pytest.mark.parametrize("function", ["rknn_run", "rknn_mem_sync"])
def test_a_failed_run_is_an_error_and_the_next_one_works(npu, function):
    with session() as s:
        x = frame()
        (expected,) = s.run(None, {"x": x})
        npu.fault(function, -1, times=1)
        with pytest.raises(Exception, match=function):
            s.run(None, {"x": x})
        np.testing.assert_array_equal(s.run(None, {"x": x})[0], expected)


def test_allocation_refused(npu):
    npu.fault("rknn_virtual_dmabuf", -4)
    with pytest.raises(Exception, match="no NPU memory of 3072 bytes on device virtual:rk3588"):
        frame()


@pytest.mark.parametrize("dtype", ["U3", "S3", "M8[s]", object])
def test_memory_holds_numbers(npu, dtype):
    with pytest.raises(ValueError, match="holds numbers"):
        ort.empty((4,), dtype, device="virtual:rk3588")


def test_a_descriptor_that_is_closed(npu):
    fd = os.memfd_create("gone")
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        ort.from_dmabuf(fd, (4,), "uint8")


@pytest.mark.parametrize(
    ("shape", "arguments", "words"),
    [
        ((101,), {}, "has 100 bytes"),
        ((50,), {"offset": 51}, "ends at byte 101"),
        ((50,), {"offset": -1}, "offset must be"),
        ((2, 10), {"strides": (91, 1)}, "ends at byte 101"),
        ((2, 10), {"strides": (10,)}, "each of 2 axes"),
        ((2, 10), {"strides": (10, -1)}, ">= 0"),
        ((0, 10), {}, "no elements"),
        ((-1,), {}, "lengths >= 1"),
    ],
)
def test_a_tensor_that_is_not_inside_of_the_buffer(shape, arguments, words):
    fd = os.memfd_create("small")
    os.ftruncate(fd, 100)
    try:
        with pytest.raises(ValueError, match=words):
            ort.from_dmabuf(fd, shape, "uint8", **arguments)
    finally:
        os.close(fd)


async def awaited(session, names, feed):
    return await session.run_awaitable(names, feed)


def test_a_memfd_that_was_truncated_is_an_error(npu):
    """Reading it would end the process with SIGBUS. It may grow again."""
    fd = os.memfd_create("shrinks")
    os.write(fd, IMAGE.tobytes())
    array = ort.from_dmabuf(fd, IMAGE.shape, IMAGE.dtype)
    with session() as s:
        (want,) = s.run(None, {"x": array})
        os.ftruncate(fd, IMAGE.nbytes - 1)
        ways = (
            s.run,
            lambda *call: s.submit(*call).result(),
            lambda names, feed: list(s.map([feed] * 9, output_names=names)),
            lambda *call: asyncio.run(awaited(s, *call)),
        )
        for call in ways * 5:
            with pytest.raises(state.RuntimeException, match=f"truncated from {IMAGE.nbytes} to {IMAGE.nbytes - 1} b"):
                call(None, {"x": array})
        os.ftruncate(fd, IMAGE.nbytes)
        os.pwrite(fd, IMAGE.tobytes(), 0)
        assert np.array_equal(s.run(None, {"x": array})[0], want)
    os.close(fd)


@pytest.mark.parametrize("offset", [1 << 31, (1 << 32) + 4096])
def test_an_offset_that_the_runtime_cannot_take_is_copied(npu, offset):
    """An int32 in ``rknn_create_mem_from_fd``: more would be cut off, and other bytes read."""
    fd = os.memfd_create("large")
    os.ftruncate(fd, offset + IMAGE.nbytes)  # sparse
    array = ort.from_dmabuf(fd, IMAGE.shape, IMAGE.dtype, offset=offset)
    os.close(fd)
    array[...] = IMAGE
    with session() as s:
        (want,) = s.run(None, {"x": IMAGE})
        assert np.array_equal(s.run(None, {"x": array})[0], want)
        (reason,) = s.stats().models[0].unbound
    assert f"begins {offset} bytes into its buffer" in reason


def test_many_buffers_cost_one_sort():
    """Many buffers created in a row and then recognized cost one sort, not one each."""
    sorts = []

    class Counting(BufferTable):
        def _sort(self):
            sorts.append(len(self._entries))
            super()._sort()

    counting = Counting()
    entries = [Entry(SharedBuffer(-1, 4096 * number, 4096)) for number in range(1, 1000)]
    for entry in reversed(entries):
        counting.add(entry)
    for entry in entries:
        assert counting.find(entry.buffer.address + 5, 10) is entry
    assert sorts == [999]
    for entry in entries[::2]:
        counting.remove(entry)
    for place, entry in enumerate(entries):
        assert counting.find(entry.buffer.address, 4096) is (entry if place % 2 else None)
    assert sorts == [999, 499]


def test_a_read_only_buffer_is_a_read_only_array(npu):
    fd = os.memfd_create("mine")
    os.write(fd, IMAGE.tobytes())
    other = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    x = ort.from_dmabuf(other, IMAGE.shape, "uint8")
    os.close(fd)
    os.close(other)
    assert not x.flags.writeable
    with session() as s:
        np.testing.assert_array_equal(s.run(None, {"x": x})[0], s.run(None, {"x": IMAGE})[0])
        assert of(s).bound == 1


def test_sessions_that_come_and_go(npu):
    x = frame()
    for _ in range(20):
        with session() as s:
            s.run(None, {"x": x})
    assert (npu.counters().mems, npu.counters().misuses) == (0, 0)


def test_a_new_buffer_for_every_frame_does_not_grow(npu, descriptors):
    with session() as s:
        fds = descriptors()
        for k in range(int(os.environ.get("ORT_RKNN_SOAK_FRAMES", "300"))):
            x = frame()
            s.run(None, {"x": x})
            assert npu.counters().mems <= 3, k
        del x
        gc.collect()
        assert descriptors() <= fds


def test_no_device_is_an_error_that_says_why():
    with pytest.raises(ort.NpuUnavailable, match="no NPU memory, because there is no NPU"):
        ort.empty((4,))


@pytest.mark.parametrize("pitch", [32 * 3, 24 * 3])
def test_a_width_that_the_npu_pads(npu, pitch):
    """The compiled width is 24, and the NPU reads rows of 32 pixels."""
    image = np.random.default_rng(3).integers(0, 256, (1, 24, 24, 3), np.uint8)
    whole = np.full((24, pitch), 99, np.uint8)
    whole[:, :72] = image.reshape(24, 72)
    fd = os.memfd_create("camera")
    os.write(fd, whole.tobytes())
    with ort.InferenceSession(MODELS / "image_u8.onnx", provider_options={**VIRTUAL, **RAW}) as s:
        name = s.get_inputs()[0].name
        expected = s.run(None, {name: image})[0]
        x = ort.from_dmabuf(fd, image.shape, np.uint8, strides=(24 * pitch, pitch, 3, 1))
        os.close(fd)
        binding = s.io_binding()
        binding.bind_input(name, "cpu", 0, np.uint8, x.shape, x.ctypes.data)
        binding.bind_output(s.get_outputs()[0].name)
        s.run_with_iobinding(binding)
        np.testing.assert_array_equal(binding.copy_outputs_to_cpu()[0], expected)
        assert of(s).bound == (pitch == 96)
        assert pitch == 96 or "rows that are 96 bytes apart" in str(of(s).usual)


# Raw inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("model", ["conv_i8", "conv_f16"])
def test_an_input_that_is_fed_in_its_stored_form(npu, model, layout):
    x = np.random.default_rng(1).standard_normal((1, 3, 32, 32), np.float32)
    with ort.InferenceSession(MODELS / f"{model}.onnx", provider_options=VIRTUAL) as plain:
        (expected,) = plain.run(None, {"x": x})
    raw = {**VIRTUAL, "layout": layout, "input_dtype": "native"}
    with ort.InferenceSession(MODELS / f"{model}.onnx", provider_options=raw) as s:
        stored = x
        if model == "conv_i8":
            how = s.quantization["x"]
            stored = np.clip(np.round(x / how.scale) + how.zero_point, -128, 127).astype(np.int8)
        else:
            stored = x.astype(np.float16)
        assert s.get_inputs()[0].type == ("tensor(int8)" if model == "conv_i8" else "tensor(float16)")
        stored = np.ascontiguousarray(stored.transpose(0, 2, 3, 1)) if layout == "NHWC" else stored
        np.testing.assert_array_equal(s.run(None, {"x": stored})[0], expected)
        array = frame(stored)
        np.testing.assert_array_equal(s.run(None, {"x": array})[0], expected)
        assert of(s).bound == (layout == "NHWC")
    cpu = {**raw, "device": "npu"}
    with pytest.warns(ort.FallbackWarning), ort.InferenceSession(MODELS / f"{model}.onnx", provider_options=cpu) as s:
        np.testing.assert_allclose(s.run(None, {"x": stored})[0], expected, atol=0.2)
        assert s.get_inputs()[0].type == ("tensor(int8)" if model == "conv_i8" else "tensor(float16)")
        assert ("x" in s.quantization) == (model == "conv_i8")


# Sets of buffers ------------------------------------------------------------------------------------------------------


def test_sets_of_buffers_keep_three_cores_busy_without_a_copy(npu):
    npu.run_time_us = 1000
    with session(schedule="0,1,2") as s:
        images = [np.full_like(IMAGE, k) for k in range(40)]
        expected = [s.run(None, {"x": image})[0] for image in images]
        sets = s.buffers(4)
        assert [(one["x"].shape, one["x"].dtype) for one in sets] == [(IMAGE.shape, np.uint8)] * 4

        def feeds():
            for k, image in enumerate(images):
                one = sets[k % 4]
                assert not any(entry.uses for entry in _entries() if entry.buffer.address == one["x"].ctypes.data)
                one["x"][...] = image
                yield one

        since = last(npu)
        results = [y.copy() for (y,) in s.map(feeds(), copy=False, depth=4)]
        np.testing.assert_array_equal(results, expected)
        events = npu.events(since)
        assert "inputs_set" not in {e.kind for e in events}
        assert len({e.core_mask for e in events if e.kind == "run"}) == 3
        assert len([e for e in events if e.kind == "create_mem_from_fd"]) <= 4 * 3
        assert of(s).usual == {}


@pytest.mark.parametrize("model", ["two_io", "tokens_i64", "free_batch", "dynamic", "bool_mask"])
def test_sets_of_buffers_fit_every_model(npu, model):
    with ort.InferenceSession(MODELS / f"{model}.onnx", provider_options=VIRTUAL) as s:
        (one,) = s.buffers(1)
        expected = s.run(None, {name: np.array(array) for name, array in one.items()})
        for got, want in zip(s.run(None, one), expected):
            np.testing.assert_array_equal(got, want)


def test_sets_of_buffers_on_the_cpu_are_numpys():
    s = ort.InferenceSession(MODELS / "conv_f16.onnx", providers=["CPUExecutionProvider"])
    (one,) = s.buffers(1)
    assert one["x"].shape == (1, 3, 32, 32)
    s.run(None, one)
    with pytest.raises(ValueError, match="at least 1"):
        s.buffers(0)
