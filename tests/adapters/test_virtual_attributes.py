"""The virtual NPU reads .rknn files of the vendor's converter and reports them as the runtime does."""

import ctypes as c
import json

import numpy as np
import pytest
from support.virtual_runtime import (
    DTYPES,
    MODELS,
    NC1HWC2,
    NCHW,
    NHWC,
    UNDEFINED,
    Attr,
    InitExtend,
    Range,
    Runtime,
    fresh_runtime,
)

from ort_rknn_virtual.control import VirtualNpu

MANIFEST = json.loads((MODELS / "MANIFEST.json").read_text())


rt = pytest.fixture(fresh_runtime)


def _models():
    found = sorted(MODELS.glob("*.rk3588.rknn"))
    assert len(found) >= 11
    return [path.name.split(".")[0] for path in found]


@pytest.mark.parametrize("name", _models())
def test_signature_is_the_onnx_with_4d_inputs_as_nhwc(rt, name):
    import onnx

    graph = onnx.load(MODELS / f"{name}.onnx").graph
    context = rt.open(name)
    assert rt.counts(context) == (len(graph.input), len(graph.output))
    for command, values in ((1, graph.input), (2, graph.output)):
        for i, value in enumerate(values):
            attr = rt.attr(context, command, i)
            assert attr.name.decode() == value.name
            shape = list(attr.shape)
            if command == 1 and len(shape) == 4:
                assert attr.fmt == NHWC
                shape = [shape[0], shape[3], shape[1], shape[2]]
            else:
                assert attr.fmt == (NCHW if len(shape) == 4 else UNDEFINED)
            wanted = [d.dim_value for d in value.type.tensor_type.shape.dim] or [1]
            assert [(a, b) for a, b in zip(shape, wanted, strict=True) if b and a != b] == []
            assert attr.n_elems == int(np.prod(attr.shape))
            assert attr.size == attr.n_elems * np.dtype(DTYPES[attr.type]).itemsize
            assert attr.size_with_stride >= attr.size
    rt.destroy(context)


def test_types_and_quantization(rt):
    context = rt.open("conv_i8")
    x, y = rt.attr(context, 1), rt.attr(context, 2)
    assert (x.type, x.qnt_type, x.zp, x.scale) == (2, 2, -6, 0.03125)
    assert (y.type, y.zp) == (2, -4) and y.scale == pytest.approx(0.0381174236536026)
    rt.destroy(context)
    context = rt.open("tokens_i64")
    assert [rt.attr(context, 2, i).type for i in range(2)] == [1, 8]
    assert rt.attr(context, 1).type == 8
    rt.destroy(context)
    context = rt.open("bool_mask")
    assert [rt.attr(context, 1, i).type for i in range(2)] == [1, 9]
    rt.destroy(context)


def test_native_attributes(rt):
    """Channel blocks of 16 for int8 (20 channels: two), padded width for three channels."""
    context = rt.open("conv_i8")
    y = rt.attr(context, 9)
    assert (y.fmt, y.shape, y.size_with_stride) == (NC1HWC2, (1, 2, 8, 8, 16), 2048)
    x = rt.attr(context, 8)
    assert (x.fmt, x.shape, x.w_stride) == (NHWC, (1, 32, 32, 3), 32)
    assert rt.attr(context, 11).shape == (1, 8, 8, 20)
    rt.destroy(context)
    context = rt.open("image_u8")
    assert (rt.attr(context, 8).w_stride, rt.attr(context, 8).size_with_stride) == (32, 24 * 32 * 3)
    rt.destroy(context)


def test_batch_multiplies_the_first_dimension(rt):
    context = rt.open("batch4")
    assert rt.attr(context, 1).shape == (4, 16, 16, 3)
    assert rt.attr(context, 2).shape == (4, 5)
    rt.destroy(context)


def test_custom_string_and_version(rt):
    context = rt.open("conv_f16")
    text = c.create_string_buffer(1024)
    assert rt.c.rknn_query(context, 7, text, 1024) == 0
    options = MANIFEST["files"]["conv_f16.rk3588.rknn"]["options"]["config"]
    assert text.value.decode() == options["custom_string"] != ""
    version = c.create_string_buffer(512)
    assert rt.c.rknn_query(context, 5, version, 512) == 0
    assert version.raw[:6] == b"2.5.0 " and b"virtual" in version.raw[256:]
    rt.destroy(context)


def test_questions_that_cannot_be_answered(rt):
    context = rt.open("conv_f16")
    attr = Attr(index=1)
    assert rt.c.rknn_query(context, 1, c.byref(attr), 376) == -5  # one input only
    assert rt.c.rknn_query(context, 1, c.byref(Attr()), 375) == -5
    assert rt.c.rknn_query(context, 99, c.byref(attr), 376) == -5
    assert rt.c.rknn_query(context, 13, c.byref(Range()), c.sizeof(Range)) == -1  # not dynamic
    assert "dynamic" in rt.message()
    rt.destroy(context)


def test_dynamic_sets(rt):
    context = rt.open("dynamic")
    found = Range()
    assert rt.c.rknn_query(context, 13, c.byref(found), c.sizeof(found)) == 0
    sets = [tuple(found.dyn_range[i][: found.n_dims]) for i in range(found.shape_number)]
    assert sets == [(1, 32, 32, 3), (1, 16, 24, 3), (1, 16, 16, 3)]
    assert (found.fmt, found.name) == (NHWC, b"x")
    shapes = Attr(index=0, n_dims=4, fmt=NCHW)
    shapes.dims[:4] = (1, 3, 16, 24)
    assert rt.c.rknn_set_input_shapes(context, 1, c.byref(shapes)) == 0
    assert rt.attr(context, 14).shape == (1, 16, 24, 3)
    assert rt.attr(context, 15).shape == (1, 4, 16, 24)
    assert rt.attr(context, 2).shape == (1, 4, 32, 32)  # plain attributes stay at the largest
    rt.c.rknn_virtual_set_attr_follows(1)
    assert rt.attr(context, 2).shape == (1, 4, 16, 24)
    shapes.dims[:4] = (1, 3, 17, 24)
    assert rt.c.rknn_set_input_shapes(context, 1, c.byref(shapes)) == -1
    assert rt.attr(context, 15).shape == (1, 4, 16, 24)
    assert rt.c.rknn_set_input_shapes(context, 2, c.byref(shapes)) == -5
    rt.destroy(context)


@pytest.mark.parametrize("soc", ["rk3576", "rk3566", "rk3568", "rk3562"])
def test_another_soc_refuses_the_model(soc):
    rt = Runtime(soc)
    assert rt.init(MODELS / "conv_f16.rk3588.rknn")[0] == -13
    assert "rk3588" in rt.message() and soc in rt.message()
    if soc in ("rk3576", "rk3566"):
        rt.destroy(rt.open("conv_f16", soc))
    if soc == "rk3568":
        assert rt.init(MODELS / "conv_f16.rk3566.rknn")[0] == -13  # alike, and yet not one


def test_rk3588s_is_an_rk3588(rt):
    data = (MODELS / "conv_f16.rk3588.rknn").read_bytes()
    at = data.index(b"\x06\x00\x00\x00rk3588\x00\x00")
    named = data[:at] + b"\x07\x00\x00\x00rk3588s\x00" + data[at + 12 :]
    rt.destroy(rt.open(named))
    named = data[:at] + b"\x07\x00\x00\x00rk3588x\x00" + data[at + 12 :]
    assert rt.init(named)[0] == -13


def test_ways_to_give_a_model(rt, tmp_path):
    data = (MODELS / "conv_f16.rk3588.rknn").read_bytes()
    rt.destroy(rt.open(data))
    (tmp_path / "two").write_bytes(b"before" + data + b"after")
    code, context = rt.init(
        tmp_path / "two", extend=c.byref(InitExtend(real_model_offset=6, real_model_size=len(data)))
    )
    assert code == 0
    rt.destroy(context)
    assert rt.init(tmp_path / "none")[0] == -1
    assert rt.init(tmp_path)[0] == -1
    assert rt.init(b"not a model at all" * 9)[0] == -6
    assert rt.init(tmp_path / "two", extend=c.byref(InitExtend(real_model_offset=99, real_model_size=1 << 30)))[0] == -5


def test_weights_are_counted_once(rt):
    npu = VirtualNpu("rk3588")
    first = rt.open("conv_f16")
    one = npu.counters()
    assert one.weight_bytes > 0
    copies = [rt.dup(first) for _ in range(3)]
    assert npu.counters().weight_bytes == one.weight_bytes
    assert (npu.counters().contexts, npu.counters().models) == (4, 1)
    code, shared = rt.init(MODELS / "conv_f16.rk3588.rknn", 0x20, c.byref(InitExtend(ctx=first.value)))
    assert code == 0 and npu.counters().weight_bytes == one.weight_bytes
    other = rt.open("conv_f16")
    assert npu.counters().weight_bytes == 2 * one.weight_bytes
    rt.destroy(first, shared, other)
    assert npu.counters().weight_bytes == one.weight_bytes  # the copies outlive the first
    rt.destroy(*copies)
    assert rt.init(MODELS / "conv_f16.rk3588.rknn", 0x20, None)[0] == -5
