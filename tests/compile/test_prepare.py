"""Rewriting a model for the toolkit: it computes the same, and the user's file is unchanged."""

import hashlib

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ort_rknn._compile.opset import OpsetError
from ort_rknn._compile.prepare import NEWEST_OPSET, PrepareError, prepare

F = TensorProto.FLOAT


def value(name, *shape, dtype=F):
    return helper.make_tensor_value_info(name, dtype, shape)


def save(path, nodes, inputs, outputs, *, opset=17, ir=8, initializers=(), **kwargs):
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in initializers])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, **kwargs)
    onnx.save(model, path)
    return str(path)


def run(path, feed):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.fixture
def scratch(tmp_path):
    folder = tmp_path / "scratch"
    folder.mkdir()
    return str(folder)


X = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
node = helper.make_node


def test_a_model_that_needs_no_rewriting_is_used_unchanged(tmp_path, scratch):
    path = save(tmp_path / "m.onnx", [node("Relu", ["x"], ["y"])], [value("x", 1, 3)], [value("y", 1, 3)])
    assert prepare(path, scratch).path == path


@pytest.mark.parametrize(
    ("opset", "nodes"),
    [
        (20, [node("Gelu", ["x"], ["y"], name="g")]),
        (20, [node("Gelu", ["x"], ["y"], approximate="tanh")]),
        (21, [node("Relu", ["x"], ["a"]), node("Cast", ["a"], ["y"], to=F)]),
        (22, [node("MaxPool", ["x"], ["a"], kernel_shape=[2, 2]), node("Sigmoid", ["a"], ["y"])]),
        (20, [node("ReduceMax", ["x"], ["y"], keepdims=1)]),
        (23, [node("Softmax", ["x"], ["a"], axis=1), node("Transpose", ["a"], ["y"], perm=[0, 2, 3, 1])]),
    ],
)
def test_an_opset_is_brought_down_and_computes_the_same(tmp_path, scratch, opset, nodes):
    path = save(
        tmp_path / "m.onnx", nodes, [value("x", 1, 3, 6, 6)], [onnx.ValueInfoProto(name="y")], opset=opset, ir=10
    )
    digest = hashlib.sha256((tmp_path / "m.onnx").read_bytes()).digest()
    made = prepare(path, scratch)
    assert made.signature.opsets[""] == NEWEST_OPSET
    assert any("opset" in note for note in made.notes)
    for got, want in zip(run(made.path, {"x": X}), run(path, {"x": X})):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert hashlib.sha256((tmp_path / "m.onnx").read_bytes()).digest() == digest


def test_grid_sample_keeps_its_mode(tmp_path, scratch):
    grid = np.random.default_rng(1).uniform(-1, 1, (1, 4, 4, 2)).astype(np.float32)
    for mode in ({}, {"mode": "linear"}, {"mode": "cubic"}, {"mode": "nearest"}):
        nodes = [node("GridSample", ["x", "grid"], ["y"], **mode)]
        path = save(
            tmp_path / "m.onnx", nodes, [value("x", 1, 3, 6, 6)], [onnx.ValueInfoProto(name="y")], opset=20, ir=10,
            initializers=[("grid", grid)],
        )  # fmt: skip
        np.testing.assert_allclose(run(prepare(path, scratch).path, {"x": X})[0], run(path, {"x": X})[0], rtol=1e-5)


def test_what_has_no_older_form_is_named(tmp_path, scratch):
    nodes = [node("ImageDecoder", ["x"], ["y"], name="decode")]
    path = save(
        tmp_path / "m.onnx", nodes, [value("x", 5, dtype=TensorProto.UINT8)], [onnx.ValueInfoProto(name="y")], opset=20,
        ir=10,
    )  # fmt: skip
    with pytest.raises(OpsetError, match=r"node 'decode' is a ImageDecoder of opset 20.*opset_version=19"):
        prepare(path, scratch)


def test_group_normalization_means_something_else(tmp_path, scratch):
    nodes = [node("GroupNormalization", ["x", "s", "s"], ["y"], num_groups=3, name="norm")]
    s = np.ones(3, np.float32)
    path = save(tmp_path / "m.onnx", nodes, [value("x", 1, 3, 6, 6)], [onnx.ValueInfoProto(name="y")], opset=21, ir=10,
                initializers=[("s", s)])  # fmt: skip
    with pytest.raises(OpsetError, match="GroupNormalization"):
        prepare(path, scratch)


def rate_model(tmp_path):
    """An If on the rate, as speech models have it; the branches read a tensor from outside and use one name twice."""
    then = helper.make_graph(
        [node("Mul", ["a", "two"], ["t"]), node("Add", ["t", "a"], ["out"])],
        "then", [], [onnx.ValueInfoProto(name="out")],
        [numpy_helper.from_array(np.array(2, np.float32), "two")],
    )  # fmt: skip
    other = helper.make_graph([node("Neg", ["a"], ["t"])], "else", [], [onnx.ValueInfoProto(name="t")])
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Equal", ["sr", "rate"], ["fast"]),
        node("If", ["fast"], ["y"], then_branch=then, else_branch=other, name="branch"),
    ]
    return save(
        tmp_path / "vad.onnx", nodes, [value("x", 1, 3, 6, 6), value("sr", dtype=TensorProto.INT64)],
        [value("y", 1, 3, 6, 6)], initializers=[("rate", np.array(16000))],
    )  # fmt: skip


@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_frozen_input_and_the_if_behind_it_are_gone(tmp_path, scratch, rate):
    path = rate_model(tmp_path)
    made = prepare(path, scratch, freeze={"sr": rate})
    assert [v.name for v in made.signature.inputs] == ["x"]
    kinds = {n.op_type for n in onnx.load(made.path).graph.node}
    assert not kinds & {"If", "Equal"}
    want = run(path, {"x": X, "sr": np.array(rate)})
    np.testing.assert_array_equal(run(made.path, {"x": X})[0], want[0])


@pytest.mark.parametrize(
    ("frozen", "words"), [({"no": 1}, "no input 'no'"), ({"sr": [1, 2]}, "shape"), ({"sr": 1.5}, "int64")]
)
def test_values_that_do_not_fit(tmp_path, scratch, frozen, words):
    with pytest.raises(PrepareError, match=words):
        prepare(rate_model(tmp_path), scratch, freeze=frozen)


def test_external_data_are_linked_not_held(tmp_path, scratch):
    w = np.arange(300, dtype=np.float32).reshape(3, 100)
    path = save(tmp_path / "m.onnx", [node("MatMul", ["x", "w"], ["a"]), node("Gelu", ["a"], ["y"])],
                [value("x", 2, 3)], [value("y", 2, 100)], opset=20, ir=10, initializers=[("w", w)])  # fmt: skip
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.bin", size_threshold=16)
    made = prepare(path, scratch)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(run(made.path, {"x": x})[0], run(path, {"x": x})[0], rtol=1e-5)


def test_functions_are_inlined(tmp_path, scratch):
    twice = helper.make_function("own", "Twice", ["p"], ["q"], [node("Add", ["p", "p"], ["q"])],
                                 [helper.make_opsetid("", 20)])  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["y"], domain="own")], "g", [value("x", 2)], [value("y", 2)]
    )
    model = helper.make_model(graph, functions=[twice], ir_version=10,
                              opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("own", 1)])  # fmt: skip
    onnx.save(model, tmp_path / "m.onnx")
    made = prepare(str(tmp_path / "m.onnx"), scratch)
    assert [n.op_type for n in onnx.load(made.path).graph.node] == ["Add"]


def test_functions_are_written_out(tmp_path, scratch):
    opset = helper.make_opsetid("", 17)
    swish = [node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["b"])]
    function = helper.make_function("mine", "Swish", ["a"], ["b"], swish, [opset])
    graph = helper.make_graph(
        [node("Swish", ["x"], ["y"], domain="mine")], "g", [value("x", 1, 3, 6, 6)], [value("y", 1, 3, 6, 6)]
    )
    model = helper.make_model(graph, opset_imports=[opset, helper.make_opsetid("mine", 1)], functions=[function])
    model.ir_version = 8
    onnx.save(model, tmp_path / "m.onnx")
    made = prepare(str(tmp_path / "m.onnx"), scratch).path
    assert {n.op_type for n in onnx.load(made).graph.node} == {"Sigmoid", "Mul"}
    np.testing.assert_allclose(run(made, {"x": X})[0], run(str(tmp_path / "m.onnx"), {"x": X})[0], rtol=1e-6)


def test_attributes_that_the_toolkit_misses_are_spelled(tmp_path, scratch):
    norm = node("LayerNormalization", ["x", "w"], ["y"])
    path = save(
        tmp_path / "m.onnx",
        [norm],
        [value("x", 1, 3, 6, 6)],
        [value("y", 1, 3, 6, 6)],
        initializers=[("w", np.ones(6, np.float32))],
    )
    made = prepare(path, scratch).path
    given = {a.name: helper.get_attribute_value(a) for a in onnx.load(made).graph.node[0].attribute}
    assert given == {"axis": -1, "epsilon": pytest.approx(1e-5), "stash_type": 1}
    np.testing.assert_array_equal(run(made, {"x": X})[0], run(path, {"x": X})[0])
