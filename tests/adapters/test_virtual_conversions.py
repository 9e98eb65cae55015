"""Inputs and outputs of a run: element types, axis orders, quantization, the pattern."""

import ctypes as c

import numpy as np
import pytest
from support.virtual_runtime import (
    MODELS,
    NC1HWC2,
    NCHW,
    NHWC,
    TYPES,
    UNDEFINED,
    Input,
    Output,
    Runtime,
    Tap,
    fresh_runtime,
    pattern,
    quantize,
)

from ort_rknn_virtual._abi import COMPUTE
from ort_rknn_virtual._standin import stand_in
from ort_rknn_virtual.control import VirtualNpu

rt = pytest.fixture(fresh_runtime)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_float16_rounds_as_ieee_does(rt):
    """Every float16, the middles between them and their neighbors, infinities and not a number."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    middles = (finite[1:] + finite[:-1]) / 2
    above, below = np.nextafter(middles, np.float32(9e9)), np.nextafter(middles, np.float32(-9e9))
    edges = np.float32([65519.99, 65520, 1e9, -1e9, 1e-30, -1e-30])
    values = np.concatenate([halves, middles, above, below, edges]).astype(np.float32)
    context = rt.open(stand_in([("x", "float32", values.shape)], [("y", "float32", values.shape)], "rk3588"))
    tap = Tap(rt, context, [values])
    (result,) = rt.infer(context, [values])
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(tap.inputs[0], expected)
    np.testing.assert_array_equal(result, expected)
    assert (np.signbit(result) == np.signbit(expected))[~np.isnan(expected)].all()
    rt.destroy(context)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8", "int64"])
@pytest.mark.parametrize("fmt", [NCHW, NHWC])
@pytest.mark.parametrize("shape", [(1, 3, 9, 21), (2, 5, 40, 50), (1, 64, 33, 35)])
def test_orders_of_axes(rt, rng, dtype, fmt, shape):
    context = rt.open(stand_in([("x", "float32", shape)], [("y", "float32", (1,))], "rk3588"))
    tap = Tap(rt, context)
    value = (rng.normal(size=shape) * 50).astype(dtype)
    rt.infer(context, [value if fmt == NCHW else value.transpose(0, 2, 3, 1)], fmt)
    np.testing.assert_array_equal(tap.inputs[0], value.astype(np.float16).astype(np.float32))
    assert (tap.inputs[0].dtype, tap.names) == (np.float32, ["x", "y"])
    rt.destroy(context)


def test_quantized_input_and_output(rt, rng):
    context = rt.open("conv_i8")
    x, y = rt.attr(context, 1), rt.attr(context, 2)
    value = rng.normal(size=(1, 3, 32, 32)).astype(np.float32) * 3
    value[0, 0, 0, :4] = [1e9, -1e9, np.nan, 0.5 * x.scale]
    answer = rng.normal(size=(1, 20, 8, 8)).astype(np.float32) * 3
    tap = Tap(rt, context, [answer])
    (wide,) = rt.infer(context, [value])
    (raw,) = rt.outputs(context, want_float=False)
    stored = quantize(np.nan_to_num(value, nan=-1e9), x.scale, x.zp)
    np.testing.assert_array_equal(tap.inputs[0], (stored.astype(np.float32) - x.zp) * np.float32(x.scale))
    np.testing.assert_array_equal(raw, quantize(answer, y.scale, y.zp))
    np.testing.assert_array_equal(wide, (raw.astype(np.float32) - y.zp) * np.float32(y.scale))
    assert raw.dtype == np.int8
    tap.inputs.clear()
    rt.infer(context, [stored.transpose(0, 2, 3, 1)], pass_through=True)  # compiled values, reported order
    np.testing.assert_array_equal(tap.inputs[0], (stored.astype(np.float32) - x.zp) * np.float32(x.scale))
    rt.destroy(context)


@pytest.mark.parametrize("fmt", [NCHW, NHWC])
def test_image_with_mean_and_std(rt, rng, fmt):
    """A camera frame is fed unchanged: the file's mean and std are applied per channel."""
    context = rt.open("image_u8")
    x = rt.attr(context, 1)
    image = rng.integers(0, 256, (1, 24, 24, 3)).astype(np.uint8)
    tap = Tap(rt, context)
    rt.infer(context, [image if fmt == NHWC else image.transpose(0, 3, 1, 2)], fmt)
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    stored = quantize((image.astype(np.float32) - mean) / std, x.scale, x.zp).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(tap.inputs[0], (stored.astype(np.float32) - x.zp) * np.float32(x.scale))
    rt.destroy(context)


MEAN_STD = {
    "rgb": ([0, 0, 0], [255, 255, 255]),
    "rgba": ([10, 20, 30, 40], [1, 1, 1, 1]),
    "gray": ([5], [2]),
    "six": ([0] * 6, [2, 4, 8, 16, 32, 64]),
}


@pytest.mark.parametrize("fmt", [NCHW, NHWC])
def test_mean_and_std_are_broadcast(rng, fmt):
    """If the file has only one mean or std, it applies to every channel; a 3-D input gets neither."""
    rt = Runtime("rk3562")
    context = rt.open(MODELS / "mean_std.rk3562.rknn")
    tap = Tap(rt, context)
    images = [rng.integers(0, 256, (1, len(mean), 8, 8)).astype(np.uint8) for mean, _ in MEAN_STD.values()]
    line = rng.normal(size=(1, 3, 8)).astype(np.float16).astype(np.float32)
    rt.infer(context, [*(i if fmt == NCHW else i.transpose(0, 2, 3, 1) for i in images), line], fmt)
    for got, image, (mean, std) in zip(tap.inputs, images, MEAN_STD.values(), strict=False):
        m, s = (np.float32(v).reshape(1, -1, 1, 1) for v in (mean, std))
        np.testing.assert_array_equal(got, ((image.astype(np.float32) - m) / s).astype(np.float16))
    np.testing.assert_array_equal(tap.inputs[4], line)
    rt.destroy(context)


@pytest.mark.parametrize("mean", [b"[10, 20]", b"[10, 20, 30]", b"[1, 2, 3, 4, 5]"])
def test_a_mean_that_is_not_by_channel_is_refused(mean):
    """Answers without the mean that the file has would be wrong."""
    data = (MODELS / "mean_std.rk3562.rknn").read_bytes()
    before = b"[10, 20, 30, 40]"
    rt = Runtime("rk3562")
    code, _ = rt.init(data.replace(before, mean.ljust(len(before))))
    assert code == -6
    assert "means" in rt.message()


def test_integers_stay_exact(rt):
    ids = np.int64([2**62 + 1, -(2**62) - 3, 2**31, 2**53 + 1])
    context = rt.open(
        stand_in([("ids", "int64", (4,)), ("b", "bool", (4,))], [("k", "int64", (4,)), ("f", "bool", (4,))], "rk3588")
    )
    tap = Tap(rt, context, [ids, [True, False, True, False]])
    numbers, flags = rt.infer(context, [ids, np.float32([0.5, 0, -3, 0])], want_float=False)
    np.testing.assert_array_equal(tap.inputs[0], ids)
    np.testing.assert_array_equal(tap.inputs[1], [False, False, True, False])  # numbers become whole first
    np.testing.assert_array_equal(numbers, ids)
    np.testing.assert_array_equal(flags, [True, False, True, False])
    assert (numbers.dtype, flags.dtype) == (np.int64, np.bool_)
    rt.infer(context, [np.int32([7, -7, 1, 0]), np.array([True, False, True, True])])
    np.testing.assert_array_equal(tap.inputs[0], [7, -7, 1, 0])
    rt.destroy(context)


def test_float64_twin(rt):
    seen = []

    def call(_user, _n_in, inputs, _n_out, outputs):
        seen.append((inputs[0].type, inputs[0].nbytes))
        values = np.frombuffer((c.c_char * 24).from_address(inputs[0].data), np.float64)
        np.frombuffer((c.c_char * 24).from_address(outputs[0].data), np.float64)[...] = 2 * values
        return 0

    callback = COMPUTE(call)
    context = rt.open(stand_in([("x", "float64", (3,))], [("y", "float64", (3,))], "rk3588"))
    assert rt.c.rknn_virtual_set_compute(context, callback, None) == 0
    (result,) = rt.infer(context, [np.float32([1, 2.5, -4])])
    assert seen == [(32, 24)]
    np.testing.assert_array_equal(result, [2, 5, -8])
    rt.destroy(context)


def test_pattern_as_documented(rt, rng):
    context = rt.open(
        stand_in(
            [("x", "float32", (1, 3, 5, 7)), ("ids", "int64", (1, 5)), ("b", "bool", (3,))],
            [("y", "float32", (1, 2, 3, 4)), ("k", "int64", (6,)), ("m", "bool", (9,)), ("q", "int8", (5,))],
            "rk3588",
        )
    )
    x = rng.normal(size=(1, 3, 5, 7)).astype(np.float32)
    ids, b = rng.integers(0, 99, (1, 5)), np.array([True, False, True])
    outputs = [("float16", (1, 2, 3, 4)), ("int64", (6,)), ("bool", (9,)), ("int8", (5,))]
    found = rt.infer(context, [x, ids, b], want_float=False)
    for got, wanted in zip(found, pattern([x.astype(np.float16), ids, b], outputs), strict=True):
        np.testing.assert_array_equal(got, wanted)
    x[0, 2, 4, 6] += 0.01
    assert not np.array_equal(rt.infer(context, [x, ids, b], want_float=False)[0], found[0])
    rt.destroy(context)


def test_pattern_of_a_quantized_model(rt, rng):
    context = rt.open("conv_i8")
    x, y = rt.attr(context, 1), rt.attr(context, 2)
    value = rng.normal(size=(1, 3, 32, 32)).astype(np.float32)
    (wanted,) = pattern([quantize(value, x.scale, x.zp)], [("int8", (1, 20, 8, 8))])
    (wide,) = rt.infer(context, [value])
    np.testing.assert_array_equal(wide, (wanted.astype(np.float32) - y.zp) * np.float32(y.scale))
    rt.destroy(context)


def test_input_sizes(rt):
    context = rt.open("conv_f16")
    x = np.zeros((2, 3, 32, 32), np.float32)
    assert rt.set_inputs(context, [x]) == 0  # a larger buffer is taken
    assert rt.set_inputs(context, [x[0].reshape(-1)[:-1]]) == -5
    assert "12288" in rt.message()
    assert rt.set_inputs(context, [x, x]) == -8
    bad = Input(0, x.ctypes.data, x.nbytes, 0, 77, NCHW)
    assert rt.c.rknn_inputs_set(context, 1, c.byref(bad)) == -5
    bad = Input(0, None, x.nbytes, 0, 0, NCHW)
    assert rt.c.rknn_inputs_set(context, 1, c.byref(bad)) == -5
    bad = Input(3, x.ctypes.data, x.nbytes, 0, 0, NCHW)
    assert rt.c.rknn_inputs_set(context, 1, c.byref(bad)) == -8
    rt.destroy(context)


def test_all_inputs_must_be_set(rt):
    context = rt.open("two_io")
    a = np.zeros((1, 3, 16, 16), np.float32)
    one = Input(0, a.ctypes.data, a.nbytes, 0, 0, NCHW)
    assert rt.c.rknn_inputs_set(context, 1, c.byref(one)) == 0
    assert rt.run(context) == -8 and "input 1" in rt.message()
    rt.destroy(context)


def test_getting_outputs(rt):
    npu = VirtualNpu("rk3588")
    context = rt.open("two_io")
    outputs = (Output * 2)(Output(1, 0, 0), Output(1, 0, 1))
    assert rt.c.rknn_outputs_get(context, 2, outputs, None) == -1  # nothing has run
    assert rt.set_inputs(context, [np.ones((1, 3, 16, 16), np.float32), np.ones((1, 16), np.float32)]) == 0
    assert rt.run(context) == 0
    lent = rt.outputs(context, prealloc=False)
    for a, b in zip(lent, rt.outputs(context), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rt.c.rknn_outputs_get(context, 2, outputs, None) == 0
    assert npu.counters().outputs == 2
    small = np.empty(3, np.float32)
    bad = Output(1, 1, 1, small.ctypes.data, small.nbytes)
    assert rt.c.rknn_outputs_get(context, 1, c.byref(bad), None) == -5
    assert rt.c.rknn_outputs_release(context, 2, outputs) == 0
    assert rt.c.rknn_outputs_release(context, 2, outputs) == -9  # twice
    assert npu.counters().outputs == 0
    only = Output(1, 0, 1)
    assert rt.c.rknn_outputs_get(context, 1, c.byref(only), None) == 0 and only.size == 24
    rt.destroy(context)  # what was not released is freed too
    assert npu.counters().outputs == 0


def test_a_new_shape_set_needs_new_inputs(rt, rng):
    from support.virtual_runtime import Attr

    context = rt.open("dynamic")
    tap = Tap(rt, context)
    rt.infer(context, [rng.normal(size=(1, 3, 32, 32)).astype(np.float32)])
    shapes = Attr(index=0, n_dims=4, fmt=NHWC)
    shapes.dims[:4] = (1, 16, 24, 3)
    assert rt.c.rknn_set_input_shapes(context, 1, c.byref(shapes)) == 0
    assert rt.run(context) == -8
    value = rng.normal(size=(1, 16, 24, 3)).astype(np.float32)
    (result,) = rt.infer(context, [value], NHWC)
    assert result.shape == (1, 4, 16, 24)
    np.testing.assert_array_equal(tap.inputs[0], value.transpose(0, 3, 1, 2).astype(np.float16).astype(np.float32))
    rt.destroy(context)


def test_memory_of_the_program(rt, rng):
    """rknn_set_io_mem: a padded NHWC image in, channel blocks out; the same numbers as the usual way."""
    npu = VirtualNpu("rk3588")
    context = rt.open("image_u8")
    image = rng.integers(0, 256, (1, 24, 24, 3)).astype(np.uint8)
    (wanted,) = rt.infer(context, [image], NHWC, want_float=False)
    attr = rt.attr(context, 8)
    attr.type = TYPES["uint8"]
    memory = rt.c.rknn_create_mem(context, attr.size_with_stride)
    c.memset(memory.contents.virt_addr, 9, attr.size_with_stride)
    rows = np.frombuffer((c.c_char * attr.size_with_stride).from_address(memory.contents.virt_addr), np.uint8)
    rows.reshape(24, attr.w_stride, 3)[:, :24] = image[0]
    assert rt.c.rknn_set_io_mem(context, memory, c.byref(attr)) == 0
    out = rt.attr(context, 9)
    result = rt.c.rknn_create_mem2(context, c.c_uint64(out.size_with_stride), c.c_uint64(0))
    assert rt.c.rknn_set_io_mem(context, result, c.byref(out)) == 0
    assert npu.counters().mems == 2
    assert rt.c.rknn_mem_sync(context, memory, 1) == 0
    assert rt.run(context) == 0
    got = np.frombuffer(c.string_at(result.contents.virt_addr, 10), np.int8)
    np.testing.assert_array_equal(got, wanted[0])
    assert rt.c.rknn_destroy_mem(context, memory) == 0
    assert rt.c.rknn_destroy_mem(context, memory) == -5
    rt.destroy(context)
    assert npu.counters().mems == 0
    assert (attr.fmt, out.fmt) == (NHWC, UNDEFINED)


def test_channel_blocks(rt, rng):
    context = rt.open("conv_i8")
    (wanted,) = rt.infer(context, [rng.normal(size=(1, 3, 32, 32)).astype(np.float32)], want_float=False)
    out = rt.attr(context, 9)
    memory = rt.c.rknn_create_mem(context, out.size_with_stride)
    assert out.fmt == NC1HWC2 and rt.c.rknn_set_io_mem(context, memory, c.byref(out)) == 0
    assert rt.run(context) == 0
    blocks = np.frombuffer(c.string_at(memory.contents.virt_addr, 2048), np.int8).reshape(2, 8, 8, 16)
    plain = blocks.transpose(0, 3, 1, 2).reshape(32, 8, 8)
    np.testing.assert_array_equal(plain[:20], wanted[0])
    assert not plain[20:].any()
    small = rt.c.rknn_create_mem(context, 64)
    assert rt.c.rknn_set_io_mem(context, small, c.byref(out)) == -5
    rt.destroy(context)
