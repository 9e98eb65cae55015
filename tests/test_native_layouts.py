"""Inputs and outputs as the NPU stores them, on the virtual NPU: described, packed, run, chained; and unsupported
cases."""

import numpy as np
import pytest
from support.models_in_parts import three_steps, write_in_parts
from support.virtual_sessions import MODELS, VIRTUAL, virtual_rk3588

import ort_rknn as ort

npu = pytest.fixture(virtual_rk3588)


def session(model, **options):
    return ort.InferenceSession(MODELS / f"{model}.onnx", provider_options={**VIRTUAL, **options})


def in_npu_memory(array):
    made = ort.empty(array.shape, array.dtype, device="virtual:rk3588")
    made[...] = array
    return made


def last(npu):
    return npu.events()[-1].sequence


def raw_feed(s, name, x):
    """What ``layout="native"`` is fed for a real-valued input in the ONNX's order."""
    how = s.native_layouts[name]
    if how.dtype == "int8":
        q = s.quantization[name]
        x = np.clip(np.round(x / q.scale) + q.zero_point, -128, 127)
    return how.pack(x.astype(how.dtype))


@pytest.mark.parametrize(
    ("model", "shape", "dtype"),
    [("conv_f16", [1, 2, 16, 16, 8], "float16"), ("conv_i8", [1, 2, 8, 8, 16], "int8")],
)
def test_an_output_in_blocks(npu, model, shape, dtype):
    pixels = {"layout": "nhwc", "input_dtype": "uint8"}
    blocks = {**pixels, "output_layout": "native"}
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    with (
        session(model, output_dtype="native", **pixels) as plain,
        session(model, **blocks) as s,
    ):
        (told,) = s.get_outputs()
        assert (told.shape, told.type) == (shape, f"tensor({dtype})")
        how = s.native_layouts["y"]
        assert (how.layout, how.dtype, list(how.shape)) == ("NC1HWC2", dtype, shape)
        assert how.onnx_shape == tuple(plain.get_outputs()[0].shape)
        assert how.strides == np.empty(shape, dtype).strides
        (want,) = plain.run(None, {"x": image})
        since = last(npu)
        (got,) = s.run(None, {"x": image})
        np.testing.assert_array_equal(how.unpack(got), want)
        kinds = {e.kind for e in npu.events(since)}
        assert "set_io_mem" in kinds
        assert not {"inputs_set", "outputs_get"} & kinds
        assert f"output 'y': as the NPU stores it, {dtype} {shape} NC1HWC2" in s.explain()
        assert "x" not in s.native_layouts
        assert plain.native_layouts == {}
    assert (npu.counters().mems, npu.counters().misuses) == (0, 0)


@pytest.mark.parametrize("model", ["tail_f16", "tail_i8", "conv_f16", "conv_i8"])
def test_an_input_as_the_npu_stores_it(npu, model):
    with session(model) as plain, session(model, layout="native") as s:
        (name,) = (i.name for i in plain.get_inputs())
        x = np.random.default_rng(1).standard_normal(plain.get_inputs()[0].shape).astype(np.float32)
        want = plain.run(None, {name: x})[0]
        fed = raw_feed(s, name, x)
        how = s.native_layouts[name]
        assert how.layout == ("NC1HWC2" if model.startswith("tail") else "NHWC")
        assert s.get_inputs()[0].shape == list(fed.shape)
        np.testing.assert_array_equal(s.run(None, {name: fed})[0], want)
        # from NPU memory, without a copy of the input
        array = in_npu_memory(fed)
        np.testing.assert_array_equal(s.run(None, {name: array})[0], want)
        total = s.stats().total
        assert (total.bound_runs, total.unbound_runs) == (1, 0)
        (one,) = s.buffers(1)
        one[name][...] = fed
        np.testing.assert_array_equal(s.run(None, one)[0], want)
    assert (npu.counters().mems, npu.counters().misuses) == (0, 0)


def test_rows_that_are_filled_up(npu):
    """The compiled width is 24; the NPU stores rows of 32 pixels."""
    with session("image_u8", input_dtype="native") as plain, session("image_u8", layout={"image": "native"}) as s:
        how = s.native_layouts["image"]
        assert (how.layout, how.shape, how.onnx_shape) == ("NHWC", (1, 24, 32, 3), (1, 3, 24, 24))
        x = np.random.default_rng(2).integers(-128, 128, (1, 3, 24, 24)).astype(np.int8)
        want = plain.run(None, {"image": x})[0]
        fed = how.pack(x)
        fed[:, :, 24:] = 99  # what fills a row up is not read
        np.testing.assert_array_equal(s.run(None, {"image": fed})[0], want)
        np.testing.assert_array_equal(how.unpack(fed), x)


def test_models_in_a_chain_copy_nothing(npu):
    """conv_i8's output is tail_i8's input: the same blocks in one buffer. Their scales differ, so the reference run
    takes the stored values."""
    with session("conv_i8", output_layout="native", layout="nhwc", input_dtype="uint8") as first:
        with session("tail_i8", layout="native", output_layout="native") as second:
            between = first.native_layouts["y"]
            assert between == second.native_layouts["y"]
            x = in_npu_memory(np.random.default_rng(3).integers(0, 256, (1, 32, 32, 3), np.uint8))
            y = ort.empty(between.shape, between.dtype, device="virtual:rk3588")
            z = ort.empty(second.native_layouts["z"].shape, "int8", device="virtual:rk3588")
            bindings = []
            for s, given, name, made in ((first, x, "x", y), (second, y, "y", z)):
                binding = s.io_binding()
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(given))
                binding.bind_ortvalue_output(s.get_outputs()[0].name, ort.OrtValue.ortvalue_from_numpy(made))
                bindings.append(binding)
            since = last(npu)
            for s, binding in zip((first, second), bindings):
                s.run_with_iobinding(binding)
            kinds = {e.kind for e in npu.events(since)}
            assert not {"inputs_set", "outputs_get", "create_mem"} & kinds
            assert [s.stats().total.bound_runs for s in (first, second)] == [1, 1]
            assert [s.stats().total.unbound_runs for s in (first, second)] == [0, 0]
        with session("tail_i8", input_dtype="native", output_dtype="native") as plain:
            want = plain.run(None, {"y": between.unpack(y)})[0]
    with session("tail_i8", layout="native", output_layout="native") as second:
        np.testing.assert_array_equal(second.native_layouts["z"].unpack(z), want)
    assert (npu.counters().mems, npu.counters().misuses) == (0, 0)


def test_a_chain_whose_first_output_has_a_block_more(npu):
    """Outputs of convolutions have an even number of blocks: of conv_f16's two, the next model's input is the first."""
    native = {"layout": "native", "output_layout": "native"}
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float16)
    with session("conv_f16", **native) as first, session("tail_f16", layout="native") as second:
        y = first.run(None, {"x": first.native_layouts["x"].pack(x)})[0]
        with session("conv_f16") as a, session("tail_f16") as b:
            want = b.run(None, {"y": a.run(None, {"x": x.astype(np.float32)})[0]})[0]
        blocks = second.native_layouts["y"].shape[1]
        assert (y.shape[1], blocks) == (2, 1)
        np.testing.assert_array_equal(second.run(None, {"y": y[:, :blocks]})[0], want)


@pytest.mark.parametrize("model", ["two_io", "tokens_i64", "bool_mask", "nd", "batch4", "scalarish"])
def test_models_of_all_kinds(npu, model):
    """Tensors without four axes are stored as the ONNX has them."""
    native = {"layout": "native", "output_layout": "native"}
    with session(model, input_dtype="native", output_dtype="native") as plain, session(model, **native) as s:
        rng = np.random.default_rng(4)
        feed, stored = {}, {}
        for value in plain.get_inputs():
            dtype = {"float16": "float16", "int64": "int64", "bool": "bool"}[value.type[7:-1]]
            x = rng.standard_normal(value.shape) if dtype == "float16" else rng.integers(0, 2, value.shape)
            feed[value.name] = x.astype(dtype)
            stored[value.name] = s.native_layouts[value.name].pack(feed[value.name])
        results = s.run(None, stored)
        for value, got, want in zip(s.get_outputs(), results, plain.run(None, feed)):
            np.testing.assert_array_equal(s.native_layouts[value.name].unpack(got), want)
    assert npu.counters().misuses == 0


def test_every_way_of_calling(npu):
    with session("tail_i8", layout="native", output_layout="native", schedule="0,1,2") as s:
        fed = np.random.default_rng(5).integers(-128, 128, (1, 2, 8, 8, 16)).astype(np.int8)
        want = s.run(None, {"y": fed})[0]
        np.testing.assert_array_equal(s.submit(None, {"y": fed}).result()[0], want)
        for (got,) in s.map([{"y": fed}] * 6):
            np.testing.assert_array_equal(got, want)
        cores = {e.core_mask for e in npu.events() if e.kind == "run"}
        assert len(cores) == 3


@pytest.mark.parametrize(
    ("options", "model", "words"),
    [
        ({"layout": "native", "input_dtype": "uint8"}, "conv_f16", "exclude each other: input 'x' is taken as it is"),
        ({"output_layout": "native", "output_dtype": "float32"}, "conv_f16", "exclude each other"),
        ({"layout": "native", "on_missing_shape": "cpu"}, "conv_f16", "only the compiled shape"),
        ({"layout": "native", "split_batch": True}, "free_batch", "only the compiled shape"),
        ({"layout": "native"}, "dynamic", "several shapes"),
        ({"output_layout": "native"}, "dynamic", "several shapes"),
        ({"output_layout": "native"}, "conv_f16", "input 'x' is float32 NCHW, which the runtime would have to convert"),
        ({"output_layout": "native", "layout": "nhwc"}, "conv_i8", "input 'x' is float32 NHWC, .* Feed it int8"),
        ({"output_layout": "native", "layout": "nhwc", "input_dtype": "uint8"}, "two_io", "input 'b' is uint8, "),
        ({"layout": {"q": "native"}}, "conv_f16", "names an input 'q'"),
        ({"output_layout": "nc1hwc2"}, "conv_f16", "expected one of 'onnx', 'native'"),
    ],
)
def test_what_cannot_be(npu, options, model, words):
    with pytest.raises(ort.OptionError, match=words):
        session(model, **options)
    assert npu.counters().contexts == 0


def test_models_in_parts_and_stand_ins_have_no_native_layout(npu, tmp_path):
    path = write_in_parts(tmp_path, three_steps())
    with pytest.raises(ort.OptionError, match="has nodes on the NPU and a graph around them"):
        ort.InferenceSession(path, provider_options={**VIRTUAL, "layout": "native"})
    alone = tmp_path / "alone.onnx"
    alone.write_bytes((MODELS / "conv_f16.onnx").read_bytes())
    with pytest.raises(ort.OptionError, match="it is a stand-in, which nobody compiled"):
        ort.InferenceSession(alone, provider_options={**VIRTUAL, "layout": "native"})
    assert npu.counters().contexts == 0


def test_a_forked_child_runs_them(python):
    python(
        f"""
import os, signal
import numpy as np, ort_rknn
options = {{**{VIRTUAL!r}, "layout": "native", "output_layout": "native"}}
s = ort_rknn.InferenceSession({str(MODELS / "tail_i8.onnx")!r}, provider_options=options)
fed = np.random.default_rng(5).integers(-128, 128, (1, 2, 8, 8, 16)).astype(np.int8)
want = s.run(None, {{"y": fed}})[0]
pid = os.fork()
if not pid:
    signal.alarm(25)
    assert np.array_equal(s.run(None, {{"y": fed}})[0], want)
    s.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert np.array_equal(s.run(None, {{"y": fed}})[0], want)
""",
        quiet=False,
    )


def test_a_run_that_the_runtime_refuses_to_bind_is_an_error(npu):
    """Such a run has no other path."""
    with session("tail_i8", layout="native", output_layout="native") as s:
        fed = np.zeros((1, 2, 8, 8, 16), np.int8)
        npu.fault("rknn_set_io_mem", -5, times=1)
        with pytest.raises(ort.capi.onnxruntime_pybind11_state.RuntimeException, match="rknn_set_io_mem refuses it"):
            s.run(None, {"y": fed})
        want = s.run(None, {"y": fed})[0]
        np.testing.assert_array_equal(s.run(None, {"y": in_npu_memory(fed)})[0], want)
    assert npu.counters().mems == 0


def test_another_shape_is_onnxruntimes_error(npu):
    wrong = pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument, match="Got invalid dimensions|rank")
    with session("tail_i8", layout="native") as s, wrong:
        s.run(None, {"y": np.zeros((1, 20, 8, 8), np.int8)})


@pytest.mark.parametrize("options", [{"layout": "native"}, {"output_layout": "native"}])
def test_a_session_on_the_cpu_cannot_keep_it(options):
    with pytest.raises(ort.NpuUnavailable, match="cannot be kept on the CPU, .*: no NPU: "):
        ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options={"device": "npu", **options})


@pytest.mark.parametrize("code", [-1, -3, -5])
def test_a_runtime_whose_queries_fail(npu, code):
    npu.fault("rknn_query", code, after=0)
    with pytest.raises(ort.NpuUnavailable, match=rf"rknn_query failed: .*\({code}\)"):
        session("conv_f16", layout="native")
    npu.clear_faults()
    assert npu.counters().contexts == 0


def test_packing_refuses_what_it_does_not_know(npu):
    with session("tail_i8", layout="native") as s:
        how = s.native_layouts["y"]
        for wrong in (np.zeros((1, 20, 8, 8), np.float32), np.zeros((1, 20, 8, 9), np.int8), [1, 2]):
            with pytest.raises(ValueError, match=r"expected int8 \[1, 20, 8, 8\], got"):
                how.pack(wrong)
        with pytest.raises(ValueError, match=r"expected int8 \[1, 2, 8, 8, 16\], got"):
            how.unpack(np.zeros((1, 20, 8, 8), np.int8))
