"""Options that change the form of inputs and outputs, on models in parts."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from support.models_in_parts import SHAPES, TWO_PARTS, three_steps, value, weights, write_in_parts
from support.virtual_sessions import emptied_rk3588

import ort_rknn as ort

VIRTUAL = {"device": "virtual:rk3588"}
NPU, CPU = "RKNNExecutionProvider", "CPUExecutionProvider"
NEAR = {"rtol": 4e-3, "atol": 4e-3}


device = pytest.fixture(emptied_rk3588, autouse=True)


def session(path, **options):
    made = ort.InferenceSession(path, provider_options={**VIRTUAL, **options})
    assert made.get_providers() == [NPU, CPU], made.explain()
    return made


def expected(path, x):
    return onnxruntime.InferenceSession(path, providers=[CPU]).run(None, {"x": x})


@pytest.mark.parametrize("embed", [False, True])
@pytest.mark.parametrize("given", ["model.onnx", "the context model", "bytes"])
def test_a_cameras_frame_goes_in(tmp_path, embed, given):
    if given == "bytes" and not embed:
        return  # a file beside a model in memory is refused elsewhere
    path = write_in_parts(tmp_path, three_steps(), embed=embed)
    frame = np.random.default_rng(4).integers(0, 255, (1, 8, 8, 3), dtype=np.uint8)
    wanted = expected(path, frame.transpose(0, 3, 1, 2).astype(np.float32))
    context = tmp_path / "m.rk3588_ctx.onnx"
    model = {"model.onnx": path, "the context model": context, "bytes": context.read_bytes()}[given]
    with session(model, layout="nhwc", input_dtype="uint8") as made:
        (x,) = made.get_inputs()
        assert (x.type, x.shape) == ("tensor(uint8)", [1, 8, 8, 3])
        got = made.run(None, {"x": frame})
        assert [g.shape for g in got] == [w.shape for w in wanted]
        if given != "bytes":
            for g, w in zip(got, wanted):
                np.testing.assert_allclose(g, w, rtol=2e-2, atol=0.5)
        with pytest.raises(Exception, match="uint8"):
            made.run(None, {"x": frame.astype(np.float32)})
        assert made.get_modelmeta().custom_metadata_map["names"] == "a,b"


@pytest.mark.parametrize("options", [{"layout": {"x": "nhwc"}}, {"input_dtype": {"x": "float16"}}])
def test_by_name(tmp_path, options):
    path = write_in_parts(tmp_path, three_steps())
    with session(path, **options) as made:
        x = (
            np.random.default_rng(4)
            .standard_normal(made.get_inputs()[0].shape)
            .astype(np.float16 if "input_dtype" in options else np.float32)
        )
        onnx_x = x.transpose(0, 3, 1, 2) if "layout" in options else x
        for g, w in zip(made.run(None, {"x": x}), expected(path, onnx_x.astype(np.float32))):
            np.testing.assert_allclose(g, w, **NEAR)


def read_by_both():
    """The model's input is read by a part and by a node on the CPU."""
    model = three_steps()
    model.graph.node.append(helper.make_node("Abs", ["x"], ["a"], name="absolute"))
    model.graph.output.append(value("a", [1, 3, 8, 8]))
    return model


@pytest.mark.parametrize("options", [{"layout": "nhwc"}, {"input_dtype": "uint8"}, {"layout": {"x": "nhwc"}}])
def test_what_the_cpu_reads_too_stays_as_it_is(tmp_path, options):
    path = write_in_parts(tmp_path, read_by_both())
    with pytest.raises(
        ort.OptionError, match=r"'x' of m\.rk3588_ctx\.onnx is read by node 'absolute' \(Abs\) on the CPU"
    ):
        session(path, **options)
    session(path, input_dtype="float32", layout="nchw").close()


def two_inputs():
    """A second input, which only the CPU reads, and one that only the second part reads."""
    model = three_steps()
    model.graph.input.extend([value("bias", [1, 4, 8, 8]), value("extra", [1, 2, 8, 8])])
    model.graph.node[1].CopyFrom(helper.make_node("Add", ["c1", "bias"], ["q"], name="neg"))
    model.graph.node.append(helper.make_node("Mul", ["y", "extra"], ["z"], name="scale"))
    model.graph.output.append(value("z", [1, 2, 8, 8]))
    return model


LAST = ("part1", ["q", "extra"], ["y", "z"], ["second", "scale"])


def test_inputs_are_distinguished(tmp_path):
    shapes = {**SHAPES, "extra": (1, 2, 8, 8), "z": (1, 2, 8, 8)}
    path = write_in_parts(tmp_path, two_inputs(), (TWO_PARTS[0], LAST), shapes)
    with pytest.raises(ort.OptionError, match="'bias' .*node 'neg'"):
        session(path, layout="nhwc")
    with pytest.raises(ort.OptionError, match=r"names an input 'c1'; the model has x, bias, extra"):
        session(path, layout={"c1": "nhwc"})
    rng = np.random.default_rng(8)
    feed = {"bias": rng.standard_normal((1, 4, 8, 8), np.float32)}
    x = rng.standard_normal((1, 3, 8, 8), np.float32)
    extra = rng.integers(0, 4, (1, 2, 8, 8), dtype=np.uint8)
    wanted = onnxruntime.InferenceSession(path, providers=[CPU]).run(
        None, {"x": x, "extra": extra.astype("f4"), **feed}
    )
    with session(path, layout={"x": "nhwc"}, input_dtype={"extra": "uint8"}) as made:
        got = made.run(None, {"x": np.ascontiguousarray(x.transpose(0, 2, 3, 1)), "extra": extra, **feed})
        for g, w in zip(got, wanted, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-2, atol=2e-2)


def half():
    """float16 outputs: y by a part alone, c1 read by the CPU as well, h by the CPU."""
    half = helper.TensorProto.FLOAT16
    nodes = [
        helper.make_node("Cast", ["x"], ["c1"], name="first", to=half),
        helper.make_node("Neg", ["c1"], ["h"], name="neg"),
        helper.make_node("Abs", ["h"], ["y"], name="second"),
    ]
    outputs = [value(n, [1, 4], half) for n in ("y", "c1", "h")]
    graph = helper.make_graph(nodes, "g", [value("x", [1, 4])], outputs, [weights("unused", (1,), 1)])
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


PARTS = (("a", ["x"], ["c1"], ["first"]), ("b", ["h"], ["y"], ["second"]))


@pytest.mark.parametrize(
    "outputs, asked, text",
    [
        (["y", "h"], "float32", r"'h' of m\.rk3588_ctx\.onnx is made by node 'neg' \(Neg\) on the CPU"),
        (["y", "c1"], "float32", r"'c1' of m\.rk3588_ctx\.onnx is also read by node 'neg' \(Neg\)"),
        (["y"], "float32", None),
        (["y"], "native", None),
    ],
)
def test_outputs(tmp_path, outputs, asked, text):
    model = half()
    kept = [v for v in model.graph.output if v.name in outputs]
    hidden = [v for v in model.graph.output if v.name not in outputs]
    model.graph.value_info.extend(hidden)
    del model.graph.output[:]
    model.graph.output.extend(kept)
    path = write_in_parts(tmp_path, model, PARTS, dict.fromkeys(("x", "c1", "h", "y"), (1, 4)))
    context = onnx.load(tmp_path / "m.rk3588_ctx.onnx")
    for v in context.graph.value_info:
        v.type.tensor_type.elem_type = helper.TensorProto.FLOAT16
    onnx.save(context, tmp_path / "m.rk3588_ctx.onnx")
    if text is not None:
        with pytest.raises(ort.OptionError, match=text):
            session(path, output_dtype=asked)
        return
    with session(path, output_dtype=asked) as made:
        (y,) = made.run(None, {"x": np.array([[1, -2, 3, -4]], np.float32)})
        assert made.get_outputs()[0].type == ("tensor(float)" if asked == "float32" else "tensor(float16)")
        np.testing.assert_array_equal(y, [[1, 2, 3, 4]])
        assert y.dtype == (np.float32 if asked == "float32" else np.float16)


def test_native_is_what_is_stored(tmp_path):
    with session(write_in_parts(tmp_path, three_steps()), input_dtype="native") as made:
        assert made.get_inputs()[0].type == "tensor(float16)"
    model = three_steps()
    with pytest.raises(ort.OptionError, match="'s' .*made by node 'sum'"):
        session(write_in_parts(tmp_path, model), output_dtype="native")


def free_model():
    model = three_steps()
    del model.graph.output[1], model.graph.node[2]
    for v in (*model.graph.input, *model.graph.output):
        for axis in (2, 3):
            v.type.tensor_type.shape.dim[axis].ClearField("dim_value")
            v.type.tensor_type.shape.dim[axis].dim_param = f"hw{axis}"
    return model


@pytest.mark.parametrize("axes", [[2, 3], {"x": [2, 3]}, {"x": [2, 3], "q": [2, 3]}])
def test_padding_goes_from_part_to_part(tmp_path, axes):
    path = write_in_parts(tmp_path, free_model(), free=True)
    x = np.random.default_rng(2).standard_normal((1, 3, 6, 5), dtype=np.float32)
    with session(path, on_missing_shape="pad", pad_axes=axes) as made:
        (y,) = made.run(None, {"x": x})
        assert y.shape == (1, 2, 6, 5)
        np.testing.assert_allclose(y, expected(path, x)[0], **NEAR)


@pytest.mark.parametrize(
    "axes, text",
    [
        ({"none": [2]}, "names an input 'none'; the model has x"),
        ({"x": [4]}, "names axis 4, which input 'x' lacks: axes are 0 to 3"),
        ([7], "names axis 7, which no input has"),
    ],
)
def test_axes_that_are_not_there(tmp_path, axes, text):
    path = write_in_parts(tmp_path, free_model(), free=True)
    with pytest.raises(ort.OptionError, match=text):
        session(path, on_missing_shape="pad", pad_axes=axes)


def test_axes_of_what_no_part_reads(tmp_path):
    shapes = {**SHAPES, "extra": (1, 2, 8, 8), "z": (1, 2, 8, 8)}
    path = write_in_parts(tmp_path, two_inputs(), (TWO_PARTS[0], LAST), shapes)
    with pytest.raises(ort.OptionError, match="no part on the NPU reads input 'bias' .*node 'neg'"):
        session(path, on_missing_shape="pad", pad_axes={"bias": [2]})


def test_the_environments_wish_for_missing_shapes_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_ON_MISSING_SHAPE", "cpu")
    path = write_in_parts(tmp_path, free_model(), free=True)
    x = np.random.default_rng(2).standard_normal((1, 3, 6, 5), dtype=np.float32)
    with session(path) as made:
        np.testing.assert_allclose(made.run(None, {"x": x})[0], expected(path, x)[0], **NEAR)


def test_the_same_form_on_the_cpu(tmp_path, monkeypatch):
    path = write_in_parts(tmp_path, three_steps())
    frame = np.random.default_rng(4).standard_normal((1, 8, 8, 3), dtype=np.float32)
    (tmp_path / "m.rk3588_parts" / "part1.rknn").unlink()
    for model in (path, tmp_path / "m.rk3588_ctx.onnx"):
        with pytest.warns(ort.FallbackWarning):
            made = ort.InferenceSession(model, provider_options={**VIRTUAL, "layout": "nhwc"})
        assert made.get_inputs()[0].shape == [1, 8, 8, 3]
        np.testing.assert_allclose(
            made.run(None, {"x": frame})[0], expected(path, frame.transpose(0, 3, 1, 2))[0], rtol=1e-5, atol=1e-5
        )
