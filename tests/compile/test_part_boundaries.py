"""What crosses between parts and the CPU is declared, also if inference does not know it."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.models_in_parts import value, weights, write_in_parts

import ort_rknn
from ort_rknn._compile.fixed_axes import fix_built_in_axes
from ort_rknn._compile.observe import observe
from ort_rknn._compile.partition import partition
from ort_rknn._compile.write import CompiledPart, context_model

X = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)


def around_a_loop():
    """Conv, a Loop that adds an outer tensor, Conv: shape inference knows no shape after the Loop."""
    body = helper.make_graph(
        [helper.make_node("Add", ["held", "a"], ["more"]), helper.make_node("Identity", ["on"], ["still"])],
        "body",
        [value("i", [], TensorProto.INT64), value("on", [], TensorProto.BOOL), value("held", [1, 4, 8, 8])],
        [value("still", [], TensorProto.BOOL), value("more", [1, 4, 8, 8])],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1] * 4),
        helper.make_node("Loop", ["times", "yes", "a"], ["b"], name="loop", body=body),
        helper.make_node("Conv", ["b", "w2"], ["y"], name="last", pads=[1] * 4),
    ]
    constants = [
        weights("w1", (4, 3, 3, 3), 1),
        weights("w2", (2, 4, 3, 3), 2),
        numpy_helper.from_array(np.int64(3), "times"),
        numpy_helper.from_array(np.bool_(True), "yes"),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", [1, 3, 8, 8])], [value("y", [1, 2, 8, 8])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("free", [False, True])
def test_both_sides_of_every_part_are_declared(free):
    model = around_a_loop()
    observed = observe(model, ".", [{"x": X}])
    made = partition(model, observed, {1: "its inner graphs run on the CPU"})
    parts = [CompiledPart(part, f"part{i}", f"parts/{i}.rknn") for i, part in enumerate(made.parts)]
    out = context_model(model, parts, observed, onnx_name="m.onnx", soc="rk3588", toolkit="2.5.0", free=free)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in out.graph.value_info}
    assert ranks == {"a": 4, "b": 4}


@pytest.mark.parametrize("dims", [[1, 3, 8, 8], ["N", 3, "H", 8]])
def test_outputs_have_the_shapes_that_a_session_of_the_onnx_gives_them(dims):
    """Inference fills in what an exporter leaves out, but does not go through a compiled part."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["unnamed"]),
        helper.make_node("Det", ["a"], ["d"]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("Add", ["a", "one"], ["f"]),
        helper.make_node("Conv", ["f", "w2"], ["y"], pads=[1] * 4),
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in ("y", "unnamed", "d", "s", "a")]
    free = isinstance(dims[0], str)
    if free:
        outputs[0].CopyFrom(value("y", ["N", 2, "rows", None]))
    constants = [weights("w1", (4, 3, 3, 3), 1), weights("w2", (2, 4, 3, 3), 2)]
    constants.append(numpy_helper.from_array(np.float32(1), "one"))
    graph = helper.make_graph(nodes, "g", [value("x", dims)], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    observed = observe(model, ".", [{"x": X}])
    made = partition(model, observed, {2: "the NPU has no such operator"})
    parts = [CompiledPart(part, f"part{i}", f"parts/{i}.rknn") for i, part in enumerate(made.parts)]
    out = context_model(model, parts, observed, onnx_name="m.onnx", soc="rk3588", toolkit="2.5.0", free=free)
    assert len(parts) == 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    declared = {v.name: [getattr(d, d.WhichOneof("value") or "", None) for d in v.type.tensor_type.shape.dim]
                for v in out.graph.output}  # fmt: skip
    assert declared == {v.name: v.shape for v in session.get_outputs()}


def test_a_part_behind_a_loop_computes_the_same(tmp_path):
    shapes = {"x": (1, 3, 8, 8), "a": (1, 4, 8, 8), "b": (1, 4, 8, 8), "y": (1, 2, 8, 8)}
    parts = (("part0", ["x"], ["a"], ["first"]), ("part1", ["b"], ["y"], ["last"]))
    path = write_in_parts(tmp_path, around_a_loop(), parts, shapes)
    options = {"device": "virtual:rk3588"}
    session = ort_rknn.InferenceSession(path, providers=["RKNNExecutionProvider"], provider_options=[options])
    assert session.get_providers()[0] == "RKNNExecutionProvider", session.explain()
    got = session.run(None, {"x": X})[0]
    session.close()
    want = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": X})[0]
    np.testing.assert_allclose(got, want, atol=0.05, rtol=0.01)


def test_an_onnx_that_onnxruntime_does_not_take_is_an_error_that_says_so():
    from ort_rknn._compile.prepare import PrepareError

    wrong = around_a_loop()
    wrong.graph.node[0].input[1] = "times"
    with pytest.raises(PrepareError, match="onnxruntime rejects the ONNX"):
        observe(wrong, ".", [{"x": X}])
    with pytest.raises(PrepareError, match="does not run the ONNX"):
        observe(around_a_loop(), ".", [{"x": X[:, :2]}])


def test_texts_and_sequences_are_outputs_of_a_reference():
    from ort_rknn._compile.measure import Reference

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("GlobalMaxPool", ["a"], ["p"]),
        helper.make_node("ArgMax", ["p"], ["k"], axis=1, keepdims=0),
        helper.make_node("LabelEncoder", ["k"], ["t"], domain="ai.onnx.ml", keys_int64s=[0], values_strings=["cat"]),
        helper.make_node("SplitToSequence", ["a"], ["s"], axis=1),
    ]
    outputs = [onnx.ValueInfoProto(name="t"), onnx.ValueInfoProto(name="s")]
    graph = helper.make_graph(nodes, "g", [value("x", [1, 3, 8, 8])], outputs, [weights("w", (2, 3, 3, 3), 1)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    reference = Reference(model, ".", observe(model, ".", [{"x": X}]))
    feed = {"x": X, "a": reference.run({"x": X}, ["a"])[0]}
    texts, pieces = reference.between(["x", "a"], ["t", "s"])(feed)
    assert texts.shape == (1, 1, 1) and isinstance(texts[0, 0, 0], str)
    assert len(pieces) == 2


def of_lengths(how):
    """A part that computes with lengths of x, which it does not read; a Neg before it keeps it from doing so."""
    index = numpy_helper.from_array(np.int64({"batch": 0, "length": 1}.get(how, 1)), "index")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Neg", ["mean"], ["q"]),
        helper.make_node("Shape", ["q" if how == "own" else "x"], ["dims"]),
        helper.make_node("Gather", ["dims", "index"], ["length"]),
        helper.make_node("Cast", ["length"], ["factor"], to=1),
        helper.make_node("MatMul", ["q", "w"], ["m"]),
        helper.make_node("Mul", ["m", "factor"], ["y"]),
    ]
    if how == "all":
        nodes[3] = helper.make_node("ReduceProd", ["dims"], ["length"], keepdims=0)
    ends = [value("x", ["n", "t", 8])], [value("y", ["n", 5])]
    graph = helper.make_graph(nodes, "g", *ends, [weights("w", (8, 5), 1), index])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("how", "batch", "expected"),
    [
        ("length", True, ["n", 6, 8]),
        ("length", False, ["n", 6, 8]),
        ("batch", True, ["n", "t", 8]),
        ("batch", False, [2, "t", 8]),
        ("all", True, ["n", 6, 8]),
        ("all", False, [2, 6, 8]),
        ("own", False, ["n", "t", 8]),
    ],
)
def test_lengths_that_a_part_computes_with_are_no_longer_free(how, batch, expected):
    """Else a call with another length would get the numbers of the compiled one."""
    model = of_lengths(how)
    observed = observe(model, ".", [{"x": np.ones((2, 6, 8), np.float32)}])
    made = partition(model, observed, {0: "a reason", 1: "a reason"}, batch=batch)
    (part,) = made.parts
    out = context_model(
        model, [CompiledPart(part, "part0", "p")], observed,
        onnx_name="m.onnx", soc="rk3588", toolkit="2.5.0", free=True,
    )  # fmt: skip
    fix_built_in_axes(out, model.graph, made.parts, observed, batch)
    assert [node.op_type for node in out.graph.node] == ["ReduceMean", "Neg", "EPContext"]
    dims = out.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == expected
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == ["n", "t", 8]
