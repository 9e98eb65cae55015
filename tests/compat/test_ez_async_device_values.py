"""The face of EZ RKNN Async: device values in memory that the NPU shares, dma-bufs, and the NPU's own layouts."""

import os

import numpy as np
import pytest
from support.ez_async_models import X, fresh_npu, make, model

import ort_rknn_ez_async as ez

VALUE = ez.OrtValue
HALF = X.astype(np.float16)

npu = pytest.fixture(fresh_npu)


def empty(session, name, io_kind, dtype, shape):
    return VALUE.ortvalue_from_shape_and_type(shape, dtype, "rknpu2", name=name, session=session, io_kind=io_kind)


def on_device(session, array, name):
    return VALUE.ortvalue_from_numpy(array, "rknpu2", name=name, session=session, io_kind="input")


def last(npu):
    return npu.events()[-1].sequence


def run(session, inputs, outputs):
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    session.run_with_iobinding(binding)


@pytest.mark.parametrize("layout", ["nhwc", "native"])
@pytest.mark.parametrize(
    ("name", "dtype", "shape"), [("conv_f16", "float16", [1, 8, 16, 16]), ("conv_i8", "int8", [1, 20, 8, 8])]
)
def test_device_values_are_bound_and_nothing_is_copied(npu, layout, name, dtype, shape):
    with make(model(name)) as plain:
        expected = plain.run(None, X.astype(np.float16).astype(np.float32))[0]
    with make(model(name), zero_copy_layout=layout) as session:
        x, y = (
            on_device(session, HALF.astype(np.float32) if dtype == "int8" else HALF, "x"),
            empty(session, "y", "output", dtype, shape),
        )
        for _ in range(2):
            since = last(npu)
            run(session, {"x": x}, {"y": y})
            kinds = {event.kind for event in npu.events(since)}
            assert not {"inputs_set", "outputs_get", "create_mem"} & kinds, kinds
        assert kinds == {"mem_sync", "run"}
        got = y.numpy()
        if dtype == "int8":
            scale, zero = 0.0381174237, -4
            got = (got.astype(np.float32) - zero) * scale
        assert np.allclose(got.astype(np.float32), expected, atol=1e-5)
        assert y.memory_info()["fmt"] == (2 if layout == "native" else 1)
        assert session.get_native_outputs()[0].layout == ("NC1HWC2" if layout == "native" else "NHWC")
    del x, y
    assert (npu.counters().mems, npu.counters().misuses) == (0, 0)


def test_models_in_a_chain_share_a_value(npu):
    with make(model("conv_f16")) as first, make(model("tail_f16")) as second:
        expected = second.run(None, first.run(None, HALF)[0])[0]
        x, y = on_device(first, HALF, "x"), empty(first, "y", "output", "float16", [1, 8, 16, 16])
        z = empty(second, "z", "output", "float16", [1, 20, 8, 8])
        since = last(npu)
        run(first, {"x": x}, {"y": y})
        run(second, {"y": y}, {"z": z})
        assert not {"inputs_set", "outputs_get"} & {event.kind for event in npu.events(since)}
        assert np.allclose(z.numpy().astype(np.float32), expected, atol=2e-3)
    assert npu.counters().misuses == 0


def test_blocks_that_are_others_do_not_chain(npu):
    """conv_f16 writes two blocks of channels; tail_f16 reads one."""
    native = {"zero_copy_layout": "native"}
    with make(model("conv_f16"), **native) as first, make(model("tail_f16"), **native) as second:
        y = empty(first, "y", "output", "float16", [1, 8, 16, 16])
        with pytest.raises(RuntimeError, match="native zero-copy layout mismatch: dims"):
            second.io_binding().bind_ortvalue_input("y", y)


def test_native_values_are_packed_and_unpacked(npu):
    """20 channels in two blocks of 16."""
    with make(model("tail_i8"), zero_copy_layout="native") as session:
        stored = np.random.default_rng(1).integers(-128, 128, (1, 20, 8, 8)).astype(np.int8)
        value = on_device(session, stored, "y")
        assert value.shape() == [1, 20, 8, 8]
        assert np.array_equal(value.numpy(), stored)
        assert value.memory_info()["size"] == 2 * 8 * 8 * 16
        value.update_inplace(-1 - stored)
        assert np.array_equal(value.numpy(), -1 - stored)
        binding = session.io_binding()
        binding.bind_cpu_input("y", -1 - stored)
        binding.bind_output("z", "rknpu2")
        session.run_with_iobinding(binding)
        z = binding.copy_outputs_to_cpu()[0]
        binding.bind_ortvalue_input("y", value)
        binding.bind_output("z")
        session.run_with_iobinding(binding)
        assert np.array_equal(binding.copy_outputs_to_cpu()[0], z)
        assert z.shape == (1, 12, 8, 8)
    assert npu.counters().misuses == 0


def test_a_dmabuf_is_read_where_it_is(npu):
    fd = os.memfd_create("camera")
    os.write(fd, bytes(4096) + np.ascontiguousarray(HALF.transpose(0, 2, 3, 1)).tobytes())
    with make() as session:
        value = VALUE.ortvalue_from_dmabuf(
            fd, [1, 3, 32, 32], "float16", size=HALF.nbytes, offset=4096, session=session, name="x", io_kind="input"
        )
        os.close(fd)
        y = empty(session, "y", "output", "float16", [1, 8, 16, 16])
        since = last(npu)
        run(session, {"x": value}, {"y": y})
        assert "inputs_set" not in {event.kind for event in npu.events(since)}
        assert np.array_equal(y.numpy().astype(np.float32), session.run(None, HALF)[0])


@pytest.mark.parametrize(("size", "offset"), [(6143, 0), (6144, 4097), (6144, -1)])
def test_a_dmabuf_that_is_too_small(npu, size, offset):
    fd = os.memfd_create("camera")
    os.ftruncate(fd, 4096 + 6144)
    with make() as session, pytest.raises(RuntimeError, match="OrtValue buffer is too small for bound tensor: 6144"):
        VALUE.ortvalue_from_dmabuf(
            fd, [1, 3, 32, 32], "float16", size=size, offset=offset, session=session, name="x", io_kind="input"
        )
    os.close(fd)


def test_where_no_memory_is_given_values_are_host_memory(npu):
    npu.fault("rknn_virtual_dmabuf", -4)
    with make() as session:
        x, y = on_device(session, HALF, "x"), empty(session, "y", "output", "float16", [1, 8, 16, 16])
        assert (x.memory_info()["fd"], x.memory_info()["dmabuf_backed"]) == (-1, False)
        run(session, {"x": x}, {"y": y})
        assert np.array_equal(y.numpy().astype(np.float32), session.run(None, HALF)[0])


def test_several_shapes_have_no_native_layout(npu):
    with pytest.raises(RuntimeError, match="zero_copy_layout='native' needs the NPU's own layouts: .*several shapes"):
        make(model("dynamic"), zero_copy_layout="native")
    assert npu.counters().contexts == 0


def test_a_bound_on_the_time_reads_what_the_array_has(python):
    """The array ends where the memory ends: a run on a copy reads the array's size, not that of float32."""
    python(
        f"""
import ctypes, mmap
import numpy as np, ort_rknn_ez_async as ez
whole = mmap.mmap(-1, 8192)
x = np.frombuffer(whole, np.uint8, 3072, 1024).reshape(1, 3, 32, 32)
start = x.ctypes.data - 1024
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + 4096), 4096, 0) == 0
options = {{"device": "virtual:rk3588", "run_timeout_ms": 20000}}
with ez.InferenceSession({str(model("conv_f16"))!r}, provider_options=options) as session:
    assert session.run(None, x)[0].shape == (1, 8, 16, 16)
""",
        quiet=False,
    )
