"""Shapes that were not compiled: an error, the ONNX twin on the CPU, or padding."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from ort_rknn.capi.onnxruntime_pybind11_state import InvalidArgument

import ort_rknn as ort
from ort_rknn_virtual._standin import stand_in
from ort_rknn_virtual.control import virtual_npu

MODELS = Path(__file__).parent / "models"
VIRTUAL = {"device": "virtual:rk3588"}


def feed(*shape):
    return {"x": np.random.default_rng(1).standard_normal(shape, dtype=np.float32)}


def plain(name="dynamic.onnx"):
    return onnxruntime.InferenceSession(MODELS / name)


def test_on_the_cpu_counted_and_visible():
    options = {**VIRTUAL, "on_missing_shape": "cpu"}
    with ort.InferenceSession(MODELS / "dynamic.onnx", provider_options=options) as session:
        assert session.get_outputs()[0].shape == plain().get_outputs()[0].shape
        for shape in ((1, 3, 32, 32), (1, 3, 20, 12), (1, 3, 40, 48), (1, 3, 20, 12)):
            got, want = session.run(None, feed(*shape))[0], plain().run(None, feed(*shape))[0]
            assert got.shape == want.shape
            exact = shape != (1, 3, 32, 32)
            assert np.array_equal(got, want) == exact
            assert np.abs(got - want).max() < 1e-2
        assert "3 calls of shapes that were not compiled ran on the ONNX twin" in session.explain()
        assert sum(c["runs"] for c in session._npu.executor.counters().values()) == 1


def test_a_static_twin_of_a_dynamic_onnx(tmp_path):
    """Few real models have fixed shapes as shipped: one compiled shape serves the common case."""
    shutil.copy(MODELS / "free_batch.onnx", tmp_path / "m.onnx")
    shutil.copy(MODELS / "free_batch.rk3588.rknn", tmp_path / "m.rk3588.rknn")
    options = {**VIRTUAL, "on_missing_shape": "cpu"}
    with ort.InferenceSession(tmp_path / "m.onnx", provider_options=options) as session:
        assert session.get_inputs()[0].shape == ["N", 3, 16, 16]
        x = feed(5, 3, 16, 16)
        assert np.abs(session.run(None, x)[0] - plain("free_batch.onnx").run(None, x)[0]).max() < 1e-2
        assert "0 calls" in session.explain()


def test_an_output_without_the_batch(tmp_path):
    """Results of runs could not be put together: the compiled batch runs, others are refused with the reason."""
    model = onnx.load(MODELS / "free_batch.onnx")
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "m.onnx")
    shutil.copy(MODELS / "free_batch.rk3588.rknn", tmp_path / "m.rk3588.rknn")
    (name,) = [o.name for o in model.graph.output]
    with ort.InferenceSession(tmp_path / "m.onnx", provider_options=VIRTUAL, enable_fallback=0) as session:
        session.run(None, feed(1, 3, 16, 16))
        with pytest.raises(InvalidArgument, match=f"output '{name}' is .* without a free first axis.*on_missing_shape"):
            session.run(None, feed(2, 3, 16, 16))
        assert f"never cut into runs along the first axis, because output '{name}'" in session.explain()
    with pytest.raises(ort.OptionError, match=f"split_batch=True: output '{name}'"):
        ort.InferenceSession(tmp_path / "m.onnx", provider_options={**VIRTUAL, "split_batch": True})
    with ort.InferenceSession(tmp_path / "m.onnx", provider_options={**VIRTUAL, "on_missing_shape": "cpu"}) as session:
        session.run(None, feed(1, 3, 16, 16))
        assert sum(c["runs"] for c in session._npu.executor.counters().values()) == 1


def test_the_cpu_twin_takes_pixels_as_the_npu_does():
    options = {**VIRTUAL, "on_missing_shape": "cpu", "layout": "nhwc"}
    with ort.InferenceSession(MODELS / "dynamic.onnx", provider_options=options) as session:
        x = feed(1, 3, 20, 12)["x"]
        got = session.run(None, {"x": x.transpose(0, 2, 3, 1).copy()})[0]
        assert np.array_equal(got, plain().run(None, {"x": x})[0])


def test_the_cpu_needs_the_onnx(tmp_path):
    shutil.copy(MODELS / "dynamic.rk3588.rknn", tmp_path / "only.rknn")
    with pytest.raises(ort.OptionError, match="needs the ONNX twin"):
        ort.InferenceSession(tmp_path / "only.rknn", provider_options={**VIRTUAL, "on_missing_shape": "cpu"})
    with pytest.raises(ort.OptionError, match="exclude each other"):
        ort.InferenceSession(
            MODELS / "dynamic.onnx", provider_options={**VIRTUAL, "on_missing_shape": "cpu", "output_dtype": "native"}
        )


def test_padding_up_to_the_next_set():
    options = {**VIRTUAL, "on_missing_shape": "pad", "pad_axes": [2, 3]}
    npu = virtual_npu("rk3588")
    npu.reset()
    with ort.InferenceSession(MODELS / "dynamic.onnx", provider_options=options) as session:
        x = feed(1, 3, 14, 20)["x"]
        (got,) = session.run(None, {"x": x})
        padded = np.zeros((1, 3, 16, 24), np.float32)
        padded[:, :, :14, :20] = x
        want = plain().run(None, {"x": padded})[0][:, :, :14, :20]
        assert got.shape == (1, 4, 14, 20)
        assert np.abs(got - want).max() < 1e-2
        # Nothing of an earlier, larger feed is left in the padding.
        session.run(None, {"x": np.full((1, 3, 16, 24), 9, np.float32)})
        assert np.array_equal(session.run(None, {"x": x})[0], got)
        assert "2 calls of shapes that were not compiled were padded" in session.explain()
        with pytest.raises(InvalidArgument, match="no shape set was compiled.*No set is larger in the axes of pad"):
            session.run(None, feed(1, 3, 33, 8))


def padded(tmp_path, nodes, output, sets, constants=(), onnx_beside=True):
    """A dynamic model of pictures, and a twin that was compiled for ``sets``: input and output shapes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    sides = [("x", "float32", sets[0][0])], [("y", "float32", sets[0][1])]
    twin = stand_in(*sides, "rk3588", shape_sets=[([x], [y]) for x, y in sets])
    (tmp_path / "m.rknn").write_bytes(twin)
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / ("m.onnx" if onnx_beside else "m.rknn")


POOL = [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])]
FLAT = numpy_helper.from_array(np.array([-1, 3]), "flat")
#: name: (nodes, declared output, output for an input of h x w, constants)
EXTENTS = {
    "an axis with a name of its own": (POOL, [1, 1, "oh", "ow"], lambda h, w: (1, 1, h // 2, w // 2), ()),
    "axes without names": (POOL, [None] * 4, lambda h, w: (1, 1, h // 2, w // 2), ()),
    "an axis that is called as the input's and is not": (
        POOL,
        [1, 1, "h", "w"],
        lambda h, w: (1, 1, h // 2, w // 2),
        (),
    ),
    "axes that change places": (
        [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 3, 2])],
        [1, 1, "w", "h"],
        lambda h, w: (1, 1, w, h),
        (),
    ),
    "one number": (
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [],
        lambda h, w: (1,),
        (),
    ),
}


@pytest.mark.parametrize("name", EXTENTS)
def test_padded_outputs_have_the_extents_of_the_onnx(tmp_path, name):
    nodes, output, shape_of, constants = EXTENTS[name]
    sets = [((1, 1, s, s), shape_of(s, s)) for s in (12, 6)]
    path = padded(tmp_path, nodes, output, sets, constants)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    plain = onnxruntime.InferenceSession(path, quiet, providers=["CPUExecutionProvider"])
    options = {**VIRTUAL, "on_missing_shape": "pad", "pad_axes": [2, 3]}
    with ort.InferenceSession(path, provider_options=options, enable_fallback=0) as session:
        assert session.get_providers()[0] == "RKNNExecutionProvider"
        for h, w in ((4, 6), (6, 2), (8, 9), (12, 10), (4, 6)):
            x = feed(1, 1, h, w)
            got, want = session.run(None, x)[0], plain.run(None, x)[0]
            assert got.shape == want.shape
            assert np.abs(got - want).max() < 5e-2
        assert "5 calls of shapes that were not compiled were padded" in session.explain()


def test_padding_that_would_lie_between_the_rows_is_refused(tmp_path):
    """Rows and columns became one axis: the first rows for the padded picture are not those for the picture."""
    nodes = [helper.make_node("Reshape", ["x", "flat"], ["y"])]
    path = padded(tmp_path, nodes, ["n", 3], [((1, 1, s, s), (s * s // 3, 3)) for s in (12, 6)], (FLAT,))
    options = {**VIRTUAL, "on_missing_shape": "pad", "pad_axes": [2, 3]}
    with ort.InferenceSession(path, provider_options=options, enable_fallback=0) as session:
        assert session.run(None, feed(1, 1, 6, 6))[0].shape == (12, 3)
        for h, w in ((4, 6), (6, 3), (9, 8)):
            with pytest.raises(InvalidArgument, match="cannot be padded: its output 'y'.*inside its axis 0.*'cpu'"):
                session.run(None, feed(1, 1, h, w))


def test_extents_that_no_onnx_gives_are_reported(tmp_path, caplog):
    nodes, output, shape_of, _ = EXTENTS["axes without names"]
    path = padded(tmp_path, nodes, output, [((1, 1, s, s), shape_of(s, s)) for s in (12, 6)], onnx_beside=False)
    (tmp_path / "m.onnx").unlink()
    options = {**VIRTUAL, "on_missing_shape": "pad", "pad_axes": [2, 3]}
    with ort.InferenceSession(path, provider_options=options) as session:
        for _ in range(2):
            assert session.run(None, feed(1, 1, 4, 6))[0].shape == (1, 1, 3, 3)
    told = [r.message for r in caplog.records if "without the ONNX the output lengths" in r.message]
    assert len(told) == 1 and "onnx_model" in told[0]


def test_padding_only_the_axes_that_were_named():
    options = {**VIRTUAL, "on_missing_shape": "pad", "pad_axes": {"x": [3]}}
    with ort.InferenceSession(MODELS / "dynamic.onnx", provider_options=options) as session:
        assert session.run(None, feed(1, 3, 16, 17))[0].shape == (1, 4, 16, 17)
        with pytest.raises(InvalidArgument):
            session.run(None, feed(1, 3, 15, 24))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"on_missing_shape": "pad"}, "needs pad_axes"),
        ({"pad_axes": [2]}, "with on_missing_shape='pad' only"),
        ({"on_missing_shape": "pad", "pad_axes": []}, "expected axis numbers"),
        ({"on_missing_shape": "pad", "pad_axes": "x"}, "not valid JSON"),
        ({"on_missing_shape": "pad", "pad_axes": {"image": [2]}}, "names an input 'image'; the model has x"),
        ({"on_missing_shape": "pad", "pad_axes": {"x": [2, 4]}}, "axis 4, which input 'x' lacks: axes are 0 to 3"),
        ({"on_missing_shape": "pad", "pad_axes": [-1]}, "expected axis numbers"),
        ({"on_missing_shape": "pad", "pad_axes": [7]}, "axis 7, which no input has: axes are 0 to 3"),
        ({"on_missing_shape": "grow"}, "one of 'error', 'cpu', 'pad'"),
    ],
)
def test_bad_policies(options, text):
    with pytest.raises(ort.OptionError, match=text):
        ort.InferenceSession(MODELS / "dynamic.onnx", provider_options={**VIRTUAL, **options})


def test_the_cpu_twin_has_the_options_of_when_the_session_was_made(tmp_path):
    """The user may have set others for another session meanwhile."""
    path = tmp_path / "m.onnx"
    onnx.save_model(
        onnx.load(MODELS / "dynamic.onnx"), path, save_as_external_data=True, location="m.bin", size_threshold=0
    )
    folder = "session.model_external_initializers_file_folder_path"
    so = ort.SessionOptions()
    so.add_session_config_entry(folder, str(tmp_path))
    options = {**VIRTUAL, "on_missing_shape": "cpu", "rknn_model": str(MODELS / "dynamic.rk3588.rknn")}
    with ort.InferenceSession(path.read_bytes(), so, provider_options=options) as session:
        so.add_session_config_entry(folder, str(tmp_path / "elsewhere"))
        x = feed(1, 3, 20, 12)
        assert np.array_equal(session.run(None, x)[0], plain().run(None, x)[0])


def test_an_input_without_a_rank(tmp_path):
    """The compiled sets determine the rank; other lengths run on the CPU instead of being refused by the signature of
    one set."""
    model = onnx.load(MODELS / "dynamic.onnx")
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "m.onnx")
    shutil.copy(MODELS / "dynamic.rk3588.rknn", tmp_path / "m.rk3588.rknn")
    with ort.InferenceSession(tmp_path / "m.onnx", provider_options=VIRTUAL) as session:
        assert session.get_inputs()[0].shape == [1, 3, None, None]
        for shape in ((1, 3, 32, 32), (1, 3, 16, 24)):
            assert np.abs(session.run(None, feed(*shape))[0] - plain().run(None, feed(*shape))[0]).max() < 1e-2
    options = {**VIRTUAL, "on_missing_shape": "cpu"}
    with ort.InferenceSession(tmp_path / "m.onnx", provider_options=options) as session:
        x = feed(1, 3, 20, 12)
        assert np.array_equal(session.run(None, x)[0], plain().run(None, x)[0])


# Without an option of the session -------------------------------------------------------------------------------------


def test_the_environment_says_what_a_session_does_not(monkeypatch, caplog):
    caplog.set_level("INFO", "ort_rknn")
    monkeypatch.setenv("ORT_RKNN_ON_MISSING_SHAPE", "cpu")
    x = feed(1, 3, 20, 12)
    with ort.InferenceSession(MODELS / "dynamic.onnx", provider_options=VIRTUAL) as session:
        for _ in range(3):
            assert np.array_equal(session.run(None, x)[0], plain().run(None, x)[0])
        assert "3 calls of shapes that were not compiled ran on the ONNX twin" in session.explain()
        assert session.get_provider_options()["RKNNExecutionProvider"].get("on_missing_shape") is None
    (told,) = [r.getMessage() for r in caplog.records if "such calls run" in r.getMessage()]
    assert told.startswith("dynamic.rk3588.rknn: no shape set was compiled for x: [1, 3, 20, 12]")
    options = {**VIRTUAL, "on_missing_shape": "error"}
    refused = pytest.raises(InvalidArgument, match="no shape set was compiled")
    with ort.InferenceSession(MODELS / "dynamic.onnx", provider_options=options) as session, refused:
        session.run(None, x)


@pytest.mark.parametrize(
    ("value", "text"), [("pad", "pad needs pad_axes.*expected error or cpu"), ("CPU", "expected error or cpu")]
)
def test_a_bad_value_in_the_environment(monkeypatch, value, text):
    monkeypatch.setenv("ORT_RKNN_ON_MISSING_SHAPE", value)
    with pytest.raises(ort.OptionError, match=f"ORT_RKNN_ON_MISSING_SHAPE='{value}': {text}"):
        ort.InferenceSession(MODELS / "dynamic.onnx", provider_options=VIRTUAL)
    session = ort.InferenceSession(MODELS / "dynamic.onnx", providers=["CPUExecutionProvider"])
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_a_default_that_cannot_apply_is_ignored(monkeypatch, tmp_path):
    """Without an ONNX, with native outputs, or in a strict session, such calls are errors despite the default, and
    explain() says so."""
    monkeypatch.setenv("ORT_RKNN_ON_MISSING_SHAPE", "cpu")
    shutil.copy(MODELS / "dynamic.rk3588.rknn", tmp_path / "only.rknn")
    with ort.InferenceSession(tmp_path / "only.rknn", provider_options=VIRTUAL) as session:
        assert "are an error: there is no ONNX for the CPU" in session.explain()
        with pytest.raises(InvalidArgument, match="no shape set was compiled"):
            session.run(None, feed(1, 3, 20, 12))
    options = {**VIRTUAL, "output_dtype": "native"}
    with ort.InferenceSession(MODELS / "dynamic.onnx", provider_options=options) as session:
        assert "is an error, not run on the CPU: output_dtype='native'" in session.explain()
        with pytest.raises(InvalidArgument, match="no shape set was compiled"):
            session.run(None, feed(1, 3, 20, 12))
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    with ort.InferenceSession(MODELS / "dynamic.onnx", provider_options=VIRTUAL) as session:
        assert "is an error, not run on the CPU: ORT_RKNN_STRICT=1" in session.explain()
        with pytest.raises(InvalidArgument, match="no shape set was compiled"):
            session.run(None, feed(1, 3, 20, 12))


def test_fixed_dimensions_that_were_not_compiled_go_to_the_cpu_by_default(monkeypatch):
    """Since every call would run on the CPU, the session is onnxruntime's, with its own options, and says so."""
    monkeypatch.setenv("ORT_RKNN_ON_MISSING_SHAPE", "cpu")
    fixed = onnxruntime.SessionOptions()
    h, w = onnxruntime.InferenceSession(MODELS / "dynamic.onnx").get_inputs()[0].shape[2:]
    fixed.add_free_dimension_override_by_name(h, 20)
    fixed.add_free_dimension_override_by_name(w, 12)
    with pytest.warns(ort.FallbackWarning, match="free dimension overrides ask for"):
        session = ort.InferenceSession(MODELS / "dynamic.onnx", fixed, provider_options=VIRTUAL)
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_the_twin_computes_what_a_session_on_the_cpu_does(tmp_path):
    """Pixels of a shape that was not compiled: the same numbers as of a session that fell back."""
    model = onnx.load(MODELS / "mean_std.onnx")
    for value in (model.graph.input[0], model.graph.output[0]):
        assert value.name.startswith("rgb")
        for axis, name in ((2, "h"), (3, "w")):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    onnx.save(model, tmp_path / "m.onnx")
    shutil.copy(MODELS / "mean_std.rk3562.rknn", tmp_path / "m.rk3562.rknn")
    random = np.random.default_rng(0)
    images = {"rgb": (1, 5, 9, 3), "rgba": (1, 8, 8, 4), "gray": (1, 8, 8, 1), "six": (1, 8, 8, 6)}
    x = {name: random.integers(0, 256, shape, np.uint8) for name, shape in images.items()}
    x["line"] = random.standard_normal((1, 3, 8), np.float32)
    asked = {"input_dtype": dict.fromkeys(images, "uint8"), "layout": "nhwc"}
    options = {"device": "virtual:rk3562", **asked, "on_missing_shape": "cpu"}
    with ort.InferenceSession(tmp_path / "m.onnx", provider_options=options) as session:
        got = session.run(None, x)
        assert "1 calls of shapes that were not compiled ran on the ONNX twin" in session.explain()
    with pytest.warns(ort.FallbackWarning):
        session = ort.InferenceSession(tmp_path / "m.onnx", provider_options={**options, "device": "virtual:rk3566"})
    assert session.get_providers() == ["CPUExecutionProvider"]
    for a, b in zip(session.run(None, x), got, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("order", ["ab", "aab", "abb"])
def test_contexts_do_not_thrash_between_shapes(order):
    npu = virtual_npu("rk3588")
    npu.reset()
    options = {**VIRTUAL, "schedule": "0", "threads_per_core": 2}
    feeds = {"a": feed(1, 3, 32, 32), "b": feed(1, 3, 16, 16)}
    with ort.InferenceSession(MODELS / "dynamic.onnx", provider_options=options) as session:
        for name in order * 10:
            session.run(None, feeds[name])
        switches = [e for e in npu.events() if e.kind == "set_input_shapes"]
        assert 1 <= len(switches) <= 5, "two contexts, two shapes: each settles on one"
