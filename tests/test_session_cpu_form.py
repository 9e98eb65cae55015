"""A session that falls back to the CPU still has the input and output forms that the options ask for."""

import json
import shutil
import warnings

import numpy as np
import onnx
import onnxruntime
import ort_rknn.capi.onnxruntime_pybind11_state as state
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.cpu_sessions import CPU, OURS, feed, without_npu

import ort_rknn
from ort_rknn import FallbackWarning, OptionError

without_npu = pytest.fixture(without_npu)
pytestmark = [pytest.mark.usefixtures("without_npu")]
random = np.random.default_rng(0)
PIXELS = random.integers(0, 256, (1, 24, 24, 3), np.uint8)
MEAN = np.asarray([123.675, 116.28, 103.53], np.float32)
STD = np.asarray([58.395, 57.12, 57.375], np.float32)
AS_PIXELS = {"input_dtype": "uint8", "layout": "nhwc"}


def made(path, so=None, **options):
    with pytest.warns(FallbackWarning):
        return ort_rknn.InferenceSession(path, so, provider_options=options)


def plain(path, feed, outputs=None):
    return onnxruntime.InferenceSession(path, providers=[CPU]).run(outputs, feed)


def as_floats(pixels, mean=MEAN, std=STD):
    return ((pixels.astype(np.float32) - mean) / std).transpose(0, 3, 1, 2).copy()


@pytest.fixture
def image(models):
    return models / "image_u8.onnx"


def test_pixels_of_an_image(image):
    session = made(image, **AS_PIXELS)
    (x,) = session.get_inputs()
    assert (x.name, x.type, x.shape) == ("image", "tensor(uint8)", [1, 24, 24, 3])
    (want,) = plain(image, {"image": as_floats(PIXELS)})
    assert np.array_equal(session.run(None, {"image": PIXELS})[0], want)
    assert session.get_providers() == [CPU]
    told = session.explain()
    assert "input 'image': Transpose, Cast, Sub, Div in front of the ONNX's graph" in told
    assert "mean [123.675, 116.28, 103.53] and std [58.395, 57.12, 57.375] as image_u8.rk3588.rknn says" in told
    with pytest.raises(state.InvalidArgument, match=r"tensor\(float\).*tensor\(uint8\)"):
        session.run(None, {"image": as_floats(PIXELS)})


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "int32", "uint32", "int64"])
def test_integers_of_every_kind_are_pixels(image, dtype):
    """As on the NPU: the values, whatever the dtype; int8 is not the compiled model's raw form."""
    session = made(image, input_dtype={"image": dtype}, layout="nhwc")
    values = (PIXELS // 2).astype(dtype)
    (want,) = plain(image, {"image": as_floats(values)})
    assert np.array_equal(session.run(None, {"image": values})[0], want)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_floats_are_what_the_onnx_takes(image, dtype):
    """They are normalized already: so it is on the NPU."""
    session = made(image, input_dtype=dtype, layout="nhwc")
    x = as_floats(PIXELS).transpose(0, 2, 3, 1).astype(dtype)
    (want,) = plain(image, {"image": x.astype(np.float32).transpose(0, 3, 1, 2).copy()})
    assert np.array_equal(session.run(None, {"image": x})[0], want)


def test_only_the_order_of_axes_or_only_the_dtype(models, image):
    x = random.standard_normal((1, 3, 32, 32), np.float32)
    (want,) = plain(models / "conv_f16.onnx", {"x": x})
    session = made(models / "conv_f16.onnx", layout="nhwc")
    assert np.array_equal(session.run(None, {"x": x.transpose(0, 2, 3, 1).copy()})[0], want)
    session = made(image, input_dtype="uint8")
    (want,) = plain(image, {"image": as_floats(PIXELS)})
    assert session.get_inputs()[0].shape == [1, 3, 24, 24]
    assert np.array_equal(session.run(None, {"image": PIXELS.transpose(0, 3, 1, 2).copy()})[0], want)


@pytest.mark.parametrize("options", [{"layout": "nchw"}, {"output_dtype": "onnx"}, {"layout": "nchw_software"}])
def test_options_that_change_nothing_leave_the_model_where_it_is(models, options, monkeypatch):
    import ort_rknn.files.surrounded as surrounded

    monkeypatch.setattr(surrounded, "_model", None)
    session = made(models / "conv_f16.onnx", **options)
    assert session._model_path == str(models / "conv_f16.onnx")
    assert session._model_bytes is None


def test_one_mean_with_three_stds_and_the_other_way_round(models):
    path = models / "mean_std.onnx"
    file = ort_rknn.files.read_rknn(models / "mean_std.rk3562.rknn")
    images = {
        t.name: random.integers(0, 256, (t.shape[0], *t.shape[2:], t.shape[1]), np.uint8)
        for t in file.inputs
        if len(t.shape) == 4
    }
    others = {t.name: random.standard_normal(t.shape, np.float32) for t in file.inputs if len(t.shape) != 4}
    assert len({tuple(t.mean) for t in file.inputs}) > 1
    asked = dict.fromkeys(images, "uint8")
    session = made(path, input_dtype=asked, layout="nhwc")
    said = {t.name: (np.asarray(t.mean, np.float32), np.asarray(t.std, np.float32)) for t in file.inputs}
    want = plain(path, {**{n: as_floats(x, *said[n]) for n, x in images.items()}, **others})
    for a, b in zip(session.run(None, {**images, **others}), want, strict=True):
        assert np.array_equal(a, b)


def test_inputs_that_are_asked_for_by_name(models):
    """A float input without image axes is not normalized; the others are unchanged."""
    path = models / "two_io.onnx"
    given = feed(a=random.integers(0, 9, (1, 16, 16, 3), np.uint8), b=random.integers(0, 9, (1, 16), np.int32))
    session = made(path, layout={"a": "nhwc"}, input_dtype={"a": "uint8", "b": "int32"})
    want = plain(path, feed(a=given["a"].transpose(0, 3, 1, 2).astype(np.float32), b=given["b"].astype(np.float32)))
    for a, b in zip(session.run(None, given), want, strict=True):
        assert np.array_equal(a, b)
    session = made(path, input_dtype={"b": "float16"})
    assert [i.type for i in session.get_inputs()] == ["tensor(float)", "tensor(float16)"]


def test_tokens_and_masks(models):
    """Integers stay integers: an input that the ONNX takes as integers needs no mean."""
    ids = np.arange(16).reshape(1, 16)
    session = made(models / "tokens_i64.onnx", input_dtype="int32", output_dtype="float32")
    features, label = session.run(None, {"ids": ids.astype(np.int32)})
    want = plain(models / "tokens_i64.onnx", {"ids": ids})
    assert (features.dtype, label.dtype) == (np.float32, np.float32)
    assert np.array_equal(features, want[0])
    assert np.array_equal(label, want[1])
    assert [o.type for o in session.get_outputs()] == ["tensor(float)", "tensor(float)"]
    session = made(models / "bool_mask.onnx", input_dtype={"mask": "uint8"})
    x, mask = random.standard_normal((1, 16), np.float32), np.arange(16).reshape(1, 16) % 3
    (want,) = plain(models / "bool_mask.onnx", {"x": x, "mask": mask.astype(bool)})
    assert np.array_equal(session.run(None, {"x": x, "mask": mask.astype(np.uint8)})[0], want)


def test_raw_outputs(models):
    x = random.standard_normal((1, 3, 32, 32), np.float32)
    session = made(models / "conv_i8.onnx", output_dtype="native")
    assert session.get_outputs()[0].type == "tensor(int8)"
    how = session.quantization["y"]
    (got,), (want,) = session.run(None, {"x": x}), plain(models / "conv_i8.onnx", {"x": x})
    assert got.dtype == np.int8
    exact = np.clip(want / np.float32(how.scale) + how.zero_point, -128, 127)
    assert abs(got - exact).max() <= 0.501  # a value in the middle may be rounded either way
    (got,) = made(models / "conv_f16.onnx", output_dtype="native").run(None, {"x": x})
    assert np.array_equal(got, plain(models / "conv_f16.onnx", {"x": x})[0].astype(np.float16))
    assert session.get_inputs()[0].type == "tensor(float)"
    session.set_providers([CPU])
    assert not session.quantization
    _, label = made(models / "tokens_i64.onnx", output_dtype="native").run(None, {"ids": np.zeros((1, 16), np.int64)})
    assert label.dtype == np.int64


def test_raw_outputs_that_the_compiled_model_lacks(models, tmp_path):
    """As on the NPU: a second name of an output is as raw as the first, a constant has the ONNX's dtype."""
    model = onnx.load(models / "conv_i8.onnx")
    model.graph.node.append(helper.make_node("Identity", ["y"], ["again"]))
    model.graph.node.append(helper.make_node("Identity", ["numbers"], ["constant"]))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([1.5, 300], np.float32), "numbers"))
    again = model.graph.output.add()
    again.CopyFrom(model.graph.output[0])
    again.name = "again"
    model.graph.output.append(value("constant", [2]))
    onnx.save(model, tmp_path / "m.onnx")
    shutil.copy(models / "conv_i8.rk3588.rknn", tmp_path / "m.rk3588.rknn")
    x = random.standard_normal((1, 3, 32, 32), np.float32)
    session = made(tmp_path / "m.onnx", output_dtype="native")
    y, second, constant = session.run(None, {"x": x})
    assert y.dtype == second.dtype == np.int8
    assert np.array_equal(y, second)
    assert (constant.tolist(), constant.dtype) == ([1.5, 300], np.float32)
    assert session.quantization["y"] == session.quantization["again"]
    other = model.graph.output.add()
    other.CopyFrom(value("more", [1, 3, 32, 32]))
    model.graph.node.append(helper.make_node("Relu", ["x"], ["more"]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(OptionError, match="of output '.*' no compiled model tells the type.*lacks the output 'more'"):
        ort_rknn.InferenceSession(tmp_path / "m.onnx", provider_options={"output_dtype": "native"})


# Where mean and std come from ---------------------------------------------------------------------------------------


@pytest.fixture
def alone(image, tmp_path):
    """The ONNX without its compiled model."""
    return shutil.copy(image, tmp_path / "m.onnx")


def test_no_compiled_model_has_the_mean(alone):
    with pytest.raises(OptionError, match=r"input 'image' is float, and no compiled model tells the mean.*none lies"):
        ort_rknn.InferenceSession(alone, provider_options=AS_PIXELS)
    with open(alone, "rb") as file, pytest.raises(OptionError, match="a model in memory has none beside it"):
        ort_rknn.InferenceSession(file.read(), provider_options=AS_PIXELS)
    made(alone, layout="nhwc")


def test_a_damaged_one_proves_nothing(alone, image, tmp_path):
    whole = image.with_name("image_u8.rk3588.rknn").read_bytes()
    (tmp_path / "m.rknn").write_bytes(whole[:1000])
    with pytest.raises(OptionError, match=r"no compiled model tells the mean and std.*m\.rknn"):
        ort_rknn.InferenceSession(alone, provider_options=AS_PIXELS)


@pytest.mark.parametrize("name", ["m.rknn", "m-rk3566.rknn", "m_rk3588.rknn"])
def test_a_twin_by_any_name(alone, image, tmp_path, name):
    shutil.copy(image.with_name("image_u8.rk3588.rknn"), tmp_path / name)
    (got,) = made(alone, **AS_PIXELS).run(None, {"image": PIXELS})
    assert np.array_equal(got, plain(image, {"image": as_floats(PIXELS)})[0])


@pytest.mark.parametrize("given", ["m.onnx", "m.rk3588_ctx.onnx"])
def test_the_part_that_reads_the_input(image, tmp_path, given):
    whole = onnx.load(image)
    whole.graph.node.append(helper.make_node("Relu", ["logits"], ["positive"]))
    whole.graph.output[0].name = "positive"
    onnx.save(whole, tmp_path / "m.onnx")
    parts = tmp_path / "m.rk3588_parts"
    parts.mkdir()
    shutil.copy(image.with_name("image_u8.rk3588.rknn"), parts / "part0.rknn")
    node = {"embed_mode": 0, "ep_cache_context": "m.rk3588_parts/part0.rknn", "onnx_model_filename": "m.onnx"}
    node |= {"main_context": 1, "source": OURS, "hardware_architecture": "rk3588"}
    in_parts = onnx.load(image)
    del in_parts.graph.node[:], in_parts.graph.initializer[:]
    in_parts.graph.node.append(helper.make_node("EPContext", ["image"], ["logits"], domain="com.microsoft", **node))
    in_parts.graph.node.append(whole.graph.node[-1])
    in_parts.graph.value_info.append(onnx.load(image).graph.output[0])
    in_parts.graph.output[0].name = "positive"
    in_parts.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(in_parts, tmp_path / "m.rk3588_ctx.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # the model in parts does not warn without a device
        session = ort_rknn.InferenceSession(tmp_path / given, provider_options=AS_PIXELS)
    assert session.get_providers() == [CPU]
    assert "as part0.rknn says" in session.explain()
    (want,) = plain(tmp_path / "m.onnx", {"image": as_floats(PIXELS)})
    assert np.array_equal(session.run(None, {"image": PIXELS})[0], want)
    shutil.rmtree(parts)
    with pytest.raises(OptionError, match="no compiled model tells the mean"):
        ort_rknn.InferenceSession(tmp_path / given, provider_options=AS_PIXELS)


def test_a_named_compiled_model_for_a_model_in_memory(image):
    rknn = str(image.with_name("image_u8.rk3588.rknn"))
    (got,) = made(image.read_bytes(), rknn_model=rknn, **AS_PIXELS).run(None, {"image": PIXELS})
    assert np.array_equal(got, plain(image, {"image": as_floats(PIXELS)})[0])


def test_two_that_differ(alone, image, tmp_path):
    rknn = image.with_name("image_u8.rk3588.rknn").read_bytes()
    (tmp_path / "m.rk3588.rknn").write_bytes(rknn)
    (tmp_path / "m.rk3576.rknn").write_bytes(rknn)
    made(alone, **AS_PIXELS)
    other = rknn.replace(b"123.675", b"100.675")
    assert other != rknn
    (tmp_path / "m.rk3576.rknn").write_bytes(other)
    with pytest.raises(OptionError, match=r"m\.rk3588\.rknn and m\.rk3576\.rknn differ in its mean"):
        ort_rknn.InferenceSession(alone, provider_options=AS_PIXELS)
    session = made(alone, rknn_model=str(tmp_path / "m.rk3576.rknn"), **AS_PIXELS)
    assert "mean [100.675" in session.explain()


def test_a_compiled_model_whose_onnx_takes_its_place(image):
    session = made(image.with_name("image_u8.rk3588.rknn"), **AS_PIXELS)
    (want,) = plain(image, {"image": as_floats(PIXELS)})
    assert np.array_equal(session.run(None, {"image": PIXELS})[0], want)
    assert session._model_path.endswith(".rknn")


def test_where_no_provider_can_be_registered(image, monkeypatch):
    """As on macOS and Windows."""
    from ort_rknn._ep import support

    monkeypatch.setattr(support, "why_unavailable", lambda: "Linux only")
    session = made(image, **AS_PIXELS)
    assert np.array_equal(session.run(None, {"image": PIXELS})[0], plain(image, {"image": as_floats(PIXELS)})[0])


def test_where_the_twin_is_for_another_soc(image, monkeypatch, npu, tmp_path):
    """There is an NPU, but the twin does not fit it."""
    shutil.copy(image, tmp_path / "m.onnx")
    shutil.copy(image.with_name("mean_std.rk3562.rknn"), tmp_path / "m.rknn")
    rknn = image.with_name("image_u8.rk3588.rknn").read_bytes()
    (tmp_path / "m.rknn").write_bytes(rknn.replace(b"rk3588", b"rk3576"))
    session = made(tmp_path / "m.onnx", **AS_PIXELS)
    assert session.get_providers() == [CPU]
    assert "rk3576" in session.explain()
    assert np.array_equal(session.run(None, {"image": PIXELS})[0], plain(image, {"image": as_floats(PIXELS)})[0])


# What cannot be kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        ("conv_f16", {"layout": {"nope": "nhwc"}}, "layout names an input 'nope'; the model has x"),
        ("conv_f16", {"input_dtype": {"nope": "uint8"}}, "input_dtype names an input 'nope'; the model has x"),
        ("two_io", {"layout": {"b": "nhwc"}}, "input 'b' has 2 axes; only 4-D inputs have a layout"),
    ],
)
def test_what_the_npu_refuses_is_refused(models, model, options, text):
    with pytest.raises(OptionError, match=text):
        ort_rknn.InferenceSession(models / f"{model}.onnx", provider_options=options)


def value(name, dims, elem=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, elem, dims)


def saved(path, node, x, y, *, opset=13, initializers=()):
    graph = helper.make_graph([node], "g", [x], [y], initializers)
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


def test_kinds_and_opsets_that_are_not_converted(tmp_path):
    path = saved(tmp_path / "s.onnx", helper.make_node("SequenceConstruct", ["x"], ["y"]), value("x", [1]),
                 helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [1]))  # fmt: skip
    with pytest.raises(OptionError, match=r"output 'y' is seq\(tensor\(float\)\), which is not converted"):
        ort_rknn.InferenceSession(path, provider_options={"output_dtype": "float32"})
    text = value("x", [1], TensorProto.STRING)
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    path = saved(tmp_path / "q.onnx", helper.make_node("SequenceLength", ["x"], ["y"]), sequence,
                 value("y", [], TensorProto.INT64))  # fmt: skip
    assert made(path, layout="nhwc").get_inputs()[0].type == "seq(tensor(float))"
    with pytest.raises(OptionError, match=r"input 'x' is seq\(tensor\(float\)\), which has no layout"):
        ort_rknn.InferenceSession(path, provider_options={"layout": {"x": "nhwc"}})
    path = saved(tmp_path / "t.onnx", helper.make_node("Identity", ["x"], ["y"]), text,
                 value("y", [1], TensorProto.STRING))  # fmt: skip
    with pytest.raises(OptionError, match=r"input 'x' is tensor\(string\), which is not converted"):
        ort_rknn.InferenceSession(path, provider_options={"input_dtype": "uint8"})
    path = saved(tmp_path / "o.onnx", helper.make_node("Relu", ["x"], ["y"]), value("x", [1]), value("y", [1]), opset=6)
    with pytest.raises(OptionError, match=r"o\.onnx uses opset 6, and this needs 7 or later"):
        ort_rknn.InferenceSession(path, provider_options={"input_dtype": "float16"})


def test_nodes_that_hold_compiled_models(models, tmp_path):
    """The original has the form that the options ask for."""
    (tmp_path / "m.onnx").write_bytes((models / "conv_f16.onnx").read_bytes())
    names = value("x", [1, 3, 32, 32]), value("y", [1, 8, 16, 16])
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", source=OURS, main_context=1,
                            embed_mode=0, ep_cache_context="m.rknn")  # fmt: skip
    graph = helper.make_graph([node], "g", names[:1], names[1:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=imports), tmp_path / "m_ctx.onnx")
    assert made(tmp_path / "m_ctx.onnx").get_providers() == [CPU]
    assert made(tmp_path / "m_ctx.onnx", layout="nhwc").get_inputs()[0].shape == [1, 32, 32, 3]


def test_an_input_that_is_an_output(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", [1])], [value("y", [1]), value("x", [1])]
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]), path)
    with pytest.raises(OptionError, match="'x' is an input and an output at once"):
        ort_rknn.InferenceSession(path, provider_options={"input_dtype": "float16"})


def test_models_that_are_not_read(tmp_path, image):
    """onnxruntime's own message if onnxruntime cannot read them either."""
    (tmp_path / "m.onnx").write_bytes(image.read_bytes()[:100])
    with pytest.raises(state.InvalidProtobuf):
        ort_rknn.InferenceSession(tmp_path / "m.onnx", provider_options=AS_PIXELS)
    with pytest.raises(state.NoSuchFile):
        ort_rknn.InferenceSession(tmp_path / "none.onnx", provider_options=AS_PIXELS)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(image, options, providers=[CPU])
    with pytest.raises(OptionError, match="'layout' cannot be kept on the CPU"):
        ort_rknn.InferenceSession(tmp_path / "m.ort", provider_options={"layout": "nhwc"})


def test_the_rank_of_an_input_is_not_known(tmp_path, image):
    path = saved(tmp_path / "m.onnx", helper.make_node("Relu", ["x"], ["y"]), value("x", None), value("y", None))
    with pytest.raises(OptionError, match="input 'x' has no rank in the ONNX, and no compiled model tells it"):
        ort_rknn.InferenceSession(path, provider_options={"layout": "nhwc"})
    shutil.copy(image.with_name("conv_f16.rk3588.rknn"), tmp_path / "m.rk3588.rknn")
    (got,) = made(path, layout="nhwc", input_dtype="uint8").run(None, {"x": PIXELS})
    assert np.array_equal(got, PIXELS.transpose(0, 3, 1, 2).astype(np.float32))


# The rest of onnxruntime's session ----------------------------------------------------------------------------------


def test_other_dtypes_of_the_onnx(tmp_path, image):
    shutil.copy(image.with_name("conv_f16.rk3588.rknn"), tmp_path / "m.rk3588.rknn")  # its input is x
    rknn = image.with_name("image_u8.rk3588.rknn").read_bytes()
    for elem, dtype in ((TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)):
        node = helper.make_node("Identity", ["image"], ["logits"])
        names = value("image", [1, 3, "h", "w"], elem), value("logits", [1, 3, "h", "w"], elem)
        path = saved(tmp_path / f"{elem}.onnx", node, *names)
        (tmp_path / f"{elem}.rknn").write_bytes(rknn)
        session = made(path, **AS_PIXELS)
        assert session.get_inputs()[0].shape == [1, "h", "w", 3]
        (got,) = session.run(None, {"image": PIXELS})
        assert np.array_equal(got, as_floats(PIXELS).astype(dtype))
        (got,) = made(path, input_dtype="float32", output_dtype="float32").run(None, {"image": as_floats(PIXELS)})
        assert np.array_equal(got, as_floats(PIXELS).astype(dtype).astype(np.float32))


def big(tmp_path, **how):
    """y = x @ w, w 16 x 16 in an external file."""
    w = numpy_helper.from_array(random.standard_normal((16, 16), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x", [1, 16])], [value("y", [1, 16])], [w]
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    folder = tmp_path / "weights here"
    folder.mkdir()
    onnx.save_model(
        model, folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0, convert_attribute=True
    )
    return folder / "m.onnx"


def test_weights_in_another_file(tmp_path, monkeypatch):
    path = big(tmp_path)
    x = random.standard_normal((1, 16), np.float32).astype(np.float16)
    (want,) = plain(path, {"x": x.astype(np.float32)})
    user = onnxruntime.SessionOptions()
    user.intra_op_num_threads = 1
    session = made(path, user, input_dtype="float16")
    assert np.array_equal(session.run(None, {"x": x})[0], want)
    key = "session.model_external_initializers_file_folder_path"
    with pytest.raises(RuntimeError):  # the user's own options are left alone
        user.get_session_config_entry(key)
    assert session.get_session_options().intra_op_num_threads == 1
    monkeypatch.chdir(path.parent)
    assert np.array_equal(made("m.onnx", input_dtype="float16").run(None, {"x": x})[0], want)
    user.add_session_config_entry(key, str(path.parent))
    session = made(path.read_bytes(), user, input_dtype="float16")
    assert np.array_equal(session.run(None, {"x": x})[0], want)
    with pytest.warns(FallbackWarning):
        session.set_providers([(OURS, {"input_dtype": "float16"})])
    assert np.array_equal(session.run(None, {"x": x})[0], want)


def test_weights_behind_links(tmp_path):
    """As a hub's cache has them: links to files of other names, in another folder."""
    path = big(tmp_path)
    x = random.standard_normal((1, 16), np.float32).astype(np.float16)
    (want,) = plain(path, {"x": x.astype(np.float32)})
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots"
    snapshot.mkdir()
    for name, blob in (("m.onnx", "aaa"), ("m.bin", "bbb")):
        path.with_name(name).rename(tmp_path / "blobs" / blob)
        (snapshot / name).symlink_to(f"../blobs/{blob}")
    assert np.array_equal(plain(snapshot / "m.onnx", {"x": x.astype(np.float32)})[0], want)
    assert np.array_equal(made(snapshot / "m.onnx", input_dtype="float16").run(None, {"x": x})[0], want)


def test_weights_elsewhere_are_refused_as_by_onnxruntime(tmp_path):
    path = big(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    path.with_name("m.bin").rename(tmp_path / "elsewhere" / "m.bin")
    path.with_name("m.bin").symlink_to("../elsewhere/m.bin")
    try:
        onnxruntime.InferenceSession(path, providers=[CPU])
    except Exception as error:
        with pytest.raises(type(error)):
            ort_rknn.InferenceSession(path, provider_options={"input_dtype": "float16"})
    else:  # releases before it looked
        made(path, input_dtype="float16")


def test_other_ways_to_run(image):
    session = made(image, **AS_PIXELS)
    (want,) = plain(image, {"image": as_floats(PIXELS)})
    binding = session.io_binding()
    binding.bind_cpu_input("image", PIXELS)
    binding.bind_output("logits")
    session.run_with_iobinding(binding)
    assert np.array_equal(binding.copy_outputs_to_cpu()[0], want)
    import threading

    done, got = threading.Event(), []
    session.run_async(None, {"image": PIXELS}, lambda out, data, error: (got.append((out, error)), done.set()), None)
    assert done.wait(30)
    assert not got[0][1]
    assert np.array_equal(got[0][0][0], want)
    assert np.array_equal(next(iter(session.map([{"image": PIXELS}])))[0], want)


def test_metadata_and_providers(image):
    session, theirs = made(image, **AS_PIXELS), onnxruntime.InferenceSession(image, providers=[CPU])
    ours, meta = session.get_modelmeta(), theirs.get_modelmeta()
    for name in ("custom_metadata_map", "description", "domain", "graph_description", "graph_name", "producer_name"):
        assert getattr(ours, name) == getattr(meta, name)
    assert ours.version == meta.version
    assert session._model_path == str(image)
    assert session._model_bytes is None
    with pytest.warns(FallbackWarning):
        session.set_providers([OURS])
    assert session.get_inputs()[0].type == "tensor(float)"
    assert "Transpose" not in session.explain()
    with pytest.warns(FallbackWarning):
        session.set_providers([(OURS, AS_PIXELS)])
    assert session.get_inputs()[0].shape == [1, 24, 24, 3]


def test_profile_and_optimized_model(image, tmp_path):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "p")
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    session = made(image, options, **AS_PIXELS)
    (want,) = session.run(None, {"image": PIXELS})
    with open(session.end_profiling()) as file:
        assert any(event.get("cat") == "Node" for event in json.load(file))
    assert len(list(tmp_path.glob("p*"))) == 1
    assert np.array_equal(plain(tmp_path / "o.onnx", {"image": PIXELS})[0], want)


def test_switched_off(image, monkeypatch):
    """Plain onnxruntime: the options are ignored, and the session has the ONNX's signature."""
    monkeypatch.setenv("ORT_RKNN_DISABLE", "1")
    session = ort_rknn.InferenceSession(image, provider_options=AS_PIXELS)
    assert session.get_inputs()[0].type == "tensor(float)"
    assert "ORT_RKNN_DISABLE=1" in session.explain()
