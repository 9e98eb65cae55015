"""The virtual NPU computes each part of a model in parts from the original ONNX."""

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from support.models_in_parts import TWO_PARTS, their_session, three_steps, value, weights, write_in_parts
from support.virtual_sessions import emptied_rk3588

import ort_rknn as ort
from ort_rknn.files import Disagreement, read_onnx
from ort_rknn.files.between import Original

VIRTUAL = {"device": "virtual:rk3588"}
NPU, CPU = "RKNNExecutionProvider", "CPUExecutionProvider"
X = np.random.default_rng(1).standard_normal((1, 3, 8, 8), dtype=np.float32)
#: float16 at every border of a part.
NEAR = {"rtol": 4e-3, "atol": 4e-3}


device = pytest.fixture(emptied_rk3588, autouse=True)


def same_numbers(path, feed, **options):
    expected = onnxruntime.InferenceSession(path, providers=[CPU]).run(None, feed)
    with ort.InferenceSession(path, provider_options={**VIRTUAL, **options}) as made:
        assert made.get_providers() == [NPU, CPU], made.explain()
        for got, want in zip(made.run(None, feed), expected, strict=True):
            assert got.shape == want.shape and got.dtype == want.dtype
            np.testing.assert_allclose(got, want, **NEAR)


@pytest.mark.parametrize("embed", [False, True])
def test_two_parts(tmp_path, embed):
    same_numbers(write_in_parts(tmp_path, three_steps(), embed=embed), {"x": X})


@pytest.mark.parametrize("how", ["raw", "float_data", "external", "function", "link"])
def test_wherever_the_weights_lie(tmp_path, how):
    model = three_steps()
    if how == "float_data":
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values.ravel().tolist())
    elif how == "function":
        model.ir_version = 8
        body = [helper.make_node("Conv", ["a", "w"], ["b"], pads=[1, 1, 1, 1])]
        imports = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("mine", "conv", ["a", "w"], ["b"], body, imports))
        model.opset_import.append(helper.make_opsetid("mine", 1))
        model.graph.node[0].CopyFrom(helper.make_node("conv", ["x", "w1"], ["c1"], name="first", domain="mine"))
    if how == "link":
        (tmp_path / "blobs").mkdir()
    path = write_in_parts(tmp_path, model)
    if how == "external":
        onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=16)
        for name in ("m.rk3588_ctx.onnx",):
            (tmp_path / name).unlink()
        external = onnx.load(path, load_external_data=False)
        write_in_parts(tmp_path, external)
        assert read_onnx(path).external_data == ("w.bin",)
    if how == "link":
        blob = tmp_path / "blobs" / "aaaa"
        path.rename(blob)
        path.symlink_to(blob)
    same_numbers(path, {"x": X})


def test_weights_are_not_in_the_part(tmp_path):
    model = three_steps()
    big = np.random.default_rng(3).standard_normal((4, 3, 3, 3)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.tile(big, (64, 1, 1, 1)), "w1"))
    path = tmp_path / "big.onnx"
    onnx.save(model, path)
    original = Original(str(path))
    try:
        part = original.between([_value("x", 1)], [_value("c1", 1)])
    finally:
        original.close()
    assert len(part) < 1000
    assert read_onnx(part).external_data == ("big.onnx",)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    session = onnxruntime.InferenceSession(part, options, providers=[CPU])
    whole = onnx.load(path)
    whole.graph.output.append(value("c1", [1, 256, 8, 8]))
    del whole.graph.node[1:], whole.graph.output[:2]
    expected = onnxruntime.InferenceSession(whole.SerializeToString(), providers=[CPU]).run(None, {"x": X})[0]
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], expected)


class _value:
    def __init__(self, name, elem_type, dims=None):
        self.name, self.elem_type, self.dims = name, elem_type, dims


def through_shapes(free):
    """The second part reshapes by the shape of the model's input, which it does not read otherwise."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Neg", ["c1"], ["q"], name="neg"),
        helper.make_node("Shape", ["x"], ["dims"], name="dims", start=0, end=1),
        helper.make_node("Concat", ["dims", "rest"], ["to"], name="to", axis=0),
        helper.make_node("Reshape", ["q", "to"], ["r"], name="reshape"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    rest = numpy_helper.from_array(np.array([4, 64], np.int64), "rest")
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", ["n" if free else 1, 3, 8, 8])],
        [value("y", ["n" if free else 1, 4, 5])],
        [weights("w1", (4, 3, 3, 3), 1), weights("w2", (64, 5), 2), rest],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("free", [False, True])
def test_shapes_of_what_a_part_does_not_read(tmp_path, free):
    parts = (TWO_PARTS[0], ("part1", ["q"], ["y"], ["dims", "to", "reshape", "second"]))
    shapes = {"x": (1, 3, 8, 8), "c1": (1, 4, 8, 8), "q": (1, 4, 8, 8), "y": (1, 4, 5)}
    same_numbers(write_in_parts(tmp_path, through_shapes(free), parts, shapes, free=free), {"x": X})


THREE = np.random.default_rng(8).standard_normal((3, 3, 8, 8)).astype(np.float32)


def test_a_batch_that_a_part_reshapes_by_though_it_does_not_read_it(tmp_path):
    parts = (TWO_PARTS[0], ("part1", ["q"], ["y"], ["dims", "to", "reshape", "second"]))
    shapes = {"x": (1, 3, 8, 8), "c1": (1, 4, 8, 8), "q": (1, 4, 8, 8), "y": (1, 4, 5)}
    same_numbers(write_in_parts(tmp_path, through_shapes(True), parts, shapes, free=True), {"x": THREE})


@pytest.mark.parametrize("folded", [1, 2])
def test_a_part_that_computes_with_the_number_of_samples_is_not_run_sample_by_sample(tmp_path, folded):
    """The compiled model computes with 1. ``folded``: rows of the part's input for each sample."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c1", "rows"], ["n1"], name="rows"),
        helper.make_node("Neg", ["n1"], ["q"], name="neg"),
        helper.make_node("Shape", ["x"], ["dims"], name="dims", start=0, end=1),
        helper.make_node("Cast", ["dims"], ["count"], name="count", to=1),
        helper.make_node("MatMul", ["q", "w2"], ["m"], name="second"),
        helper.make_node("Mul", ["m", "count"], ["y"], name="last"),
    ]
    rows = numpy_helper.from_array(np.array([-1, 256 // folded], np.int64), "rows")
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", ["n", 3, 8, 8])],
        [value("y", ["m", 5])],
        [weights("w1", (4, 3, 3, 3), 1), weights("w2", (256 // folded, 5), 2), rows],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    parts = (TWO_PARTS[0], ("part1", ["q"], ["y"], ["dims", "count", "second", "last"]))
    shapes = {"x": (1, 3, 8, 8), "c1": (1, 4, 8, 8), "q": (folded, 256 // folded), "y": (folded, 5)}
    path = write_in_parts(tmp_path, model, parts, shapes, free=True)
    same_numbers(path, {"x": X})
    with (
        ort.InferenceSession(path, provider_options=VIRTUAL) as session,
        pytest.raises(InvalidArgument, match="not cut into runs"),
    ):
        session.run(None, {"x": THREE})


def test_lengths_that_only_the_model_in_parts_has_fixed(tmp_path):
    """Its part computes with one of them, and does not read the input."""
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], name="first"),
        helper.make_node("ReduceMean", ["n"], ["q"], name="mean", axes=[1], keepdims=0),
        helper.make_node("Shape", ["x"], ["dims"], name="dims", start=1, end=2),
        helper.make_node("Cast", ["dims"], ["count"], name="count", to=1),
        helper.make_node("MatMul", ["q", "w"], ["m"], name="second"),
        helper.make_node("Mul", ["m", "count"], ["y"], name="last"),
    ]
    ends = [value("x", ["n", "t", 8])], [value("y", ["n", 5])]
    graph = helper.make_graph(nodes, "g", *ends, [weights("w", (8, 5), 2)])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    parts = (("part0", ["q"], ["y"], ["dims", "count", "second", "last"]),)
    path = write_in_parts(tmp_path, model, parts, {"q": (1, 8), "y": (1, 5)}, free=True)
    made = onnx.load(tmp_path / "m.rk3588_ctx.onnx")
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 6
    onnx.save(made, tmp_path / "m.rk3588_ctx.onnx")
    for samples in (1, 3):
        same_numbers(path, {"x": np.random.default_rng(2).standard_normal((samples, 6, 8)).astype(np.float32)})
    with (
        ort.InferenceSession(path, provider_options=VIRTUAL) as session,
        pytest.raises(InvalidArgument, match="Got: 7"),
    ):
        session.run(None, {"x": np.ones((1, 7, 8), np.float32)})


def test_values_that_are_not_among_a_parts_inputs(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(three_steps(), path)
    original = Original(str(path))
    try:
        for inputs, outputs, text in (
            ([], ["c1"], "needs the model's input 'x'"),
            (["x"], ["none"], "no tensor 'none'"),
        ):
            with pytest.raises(Disagreement, match=text):
                original.between([_value(n, 1) for n in inputs], [_value(n, 1) for n in outputs])
    finally:
        original.close()


def test_one_node_for_the_whole(tmp_path, models):
    import shutil

    from ort_rknn.files import ep_context_model

    for name in ("two_io.onnx", "two_io.rk3588.rknn"):
        shutil.copy(models / name, tmp_path)
    read = read_onnx(tmp_path / "two_io.onnx")
    content = ep_context_model(
        model=read, inputs=read.inputs, outputs=read.outputs, source=NPU, cache_context=b"two_io.rk3588.rknn",
        node_name="all", embed_mode=0, attributes={"onnx_model_filename": "two_io.onnx"},
    )  # fmt: skip
    (tmp_path / "x.onnx").write_bytes(content)
    feed = {
        v.name: np.random.default_rng(5).standard_normal(list(v.dims), np.float32).astype(v.dtype) for v in read.inputs
    }
    expected = onnxruntime.InferenceSession(tmp_path / "two_io.onnx", providers=[CPU]).run(None, feed)
    with ort.InferenceSession(tmp_path / "x.onnx", provider_options=VIRTUAL) as made:
        for got, want in zip(made.run(None, feed), expected, strict=True):
            np.testing.assert_allclose(got, want, **NEAR)


@pytest.mark.parametrize("name", ["../m.onnx", "/etc/hostname", "sub/m.onnx"])
def test_a_name_that_leads_elsewhere_is_not_followed(tmp_path, caplog, name):
    path = write_in_parts(tmp_path, three_steps())
    made = onnx.load(tmp_path / "m.rk3588_ctx.onnx")
    for node in made.graph.node:
        for attribute in node.attribute:
            if attribute.name == "onnx_model_filename":
                attribute.s = name.encode()
    onnx.save(made, tmp_path / "other.onnx")
    path.unlink()
    caplog.set_level(logging.WARNING, "ort_rknn")
    with ort.InferenceSession(tmp_path / "other.onnx", provider_options=VIRTUAL) as session:
        assert session.run(None, {"x": X})[0].shape == (1, 2, 8, 8)
    assert "is not the name of a file beside the model" in caplog.text


def test_an_original_that_changed_is_not_computed_with(tmp_path, caplog):
    path = write_in_parts(tmp_path, three_steps())
    model = three_steps()
    model.graph.doc_string = "another one"
    onnx.save(model, path)
    caplog.set_level(logging.WARNING, "ort_rknn")
    with ort.InferenceSession(tmp_path / "m.rk3588_ctx.onnx", provider_options=VIRTUAL) as session:
        session.run(None, {"x": X})
    assert "part0 (part0.rknn): the ONNX that it was compiled from is not used: it has changed" in caplog.text


def test_the_unmodified_onnxruntime_gets_the_numbers_too(tmp_path):
    path = write_in_parts(tmp_path, three_steps())
    ort.register(device=VIRTUAL["device"])
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    made = their_session(tmp_path / "m.rk3588_ctx.onnx", quiet)
    expected = onnxruntime.InferenceSession(path, providers=[CPU]).run(None, {"x": X})
    for got, want in zip(made.run(None, {"x": X}), expected, strict=True):
        np.testing.assert_allclose(got, want, **NEAR)


@pytest.mark.parametrize("n", [1, 5])
def test_batches_are_cut_part_by_part(tmp_path, n):
    """Free axes stay free between parts: the graph of each proves that its samples are independent."""
    model = three_steps("n")
    del model.graph.output[1], model.graph.node[2]
    x = np.random.default_rng(2).standard_normal((n, 3, 8, 8), dtype=np.float32)
    same_numbers(write_in_parts(tmp_path, model, free=True), {"x": x})


@pytest.mark.parametrize("policy", ["error", "cpu"])
def test_shapes_that_were_not_compiled(tmp_path, policy):
    model = three_steps()
    for v in (*model.graph.input, *model.graph.output[:1]):
        for axis in (2, 3):
            v.type.tensor_type.shape.dim[axis].ClearField("dim_value")
            v.type.tensor_type.shape.dim[axis].dim_param = f"hw{axis}"
    path = write_in_parts(tmp_path, model, free=True)
    x = np.random.default_rng(2).standard_normal((1, 3, 6, 5), dtype=np.float32)
    if policy == "cpu":
        same_numbers(path, {"x": x}, on_missing_shape="cpu")
    else:
        made = ort.InferenceSession(path, provider_options=VIRTUAL)
        with made, pytest.raises(Exception, match=r"part0.*shape"):
            made.run(None, {"x": x})


def test_a_graph_inside_a_node_keeps_what_it_reads(tmp_path):
    """A part with an If whose branches read tensors from outside."""
    then = helper.make_graph([helper.make_node("Add", ["c1", "w"], ["t"])], "t", [], [value("t", None)])
    other = helper.make_graph([helper.make_node("Sub", ["c1", "w"], ["e"])], "e", [], [value("e", None)])
    nodes = [
        helper.make_node("Neg", ["x"], ["c1"], name="neg"),
        helper.make_node("If", ["yes"], ["y"], name="if", then_branch=then, else_branch=other),
    ]
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    graph = helper.make_graph(nodes, "g", [value("x", [1, 4])], [value("y", [1, 4])], [yes, weights("w", (1, 4), 9)])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path = write_in_parts(tmp_path, model, (("p", ["c1"], ["y"], ["if"]),), {"c1": (1, 4), "y": (1, 4)})
    same_numbers(path, {"x": np.ones((1, 4), np.float32)})
