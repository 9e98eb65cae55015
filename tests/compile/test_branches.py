"""An ``If`` that the compiled shapes decide is replaced by the branch that it takes."""

import os

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import ort_rknn
from ort_rknn._cli.main import main
from ort_rknn._compile.branches import take_branches
from ort_rknn._compile.prepare import prepare
from ort_rknn._compile.shapes import compiled_shapes

node = helper.make_node
SHAPES = {"x": (1, 3, 32, 32)}


def branch(*nodes, kind=TensorProto.FLOAT):
    return helper.make_graph(nodes, "b", [], [helper.make_tensor_value_info(nodes[-1].output[0], kind, None)])


def choice(condition, out, then, other):
    return node("If", [condition], [out], then_branch=then, else_branch=other)


def saved(folder, nodes, *, weights=None, inputs=(), dims=(1, 3, 32, "W"), **external):
    values = {"two": np.float32(2), "axis": np.array(3), "ten": np.array(10), **(weights or {})}
    graph = helper.make_graph(
        [
            node("Shape", ["x"], ["s"]),
            node("Gather", ["s", "axis"], ["d"]),
            node("Greater", ["d", "ten"], ["wide"]),
            *nodes,
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, dims), *inputs],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    path = folder / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, **external)
    return str(path)


def taken(path, folder, *sets):
    prepared = prepare(path, str(folder), lower=False)
    return take_branches(prepared, compiled_shapes(prepared.signature, sets or [SHAPES]), str(folder / "branches"))


def same(path, other, **feed):
    feed = {"x": np.random.default_rng(0).standard_normal(SHAPES["x"]).astype(np.float32), **feed}
    cpu = ["CPUExecutionProvider"]
    want, got = (onnxruntime.InferenceSession(each, providers=cpu).run(None, feed)[0] for each in (path, other))
    np.testing.assert_array_equal(got, want)


def kinds(path):
    return [each.op_type for each in onnx.load(path, load_external_data=False).graph.node]


PLUS, TIMES = branch(node("Add", ["x", "two"], ["p"])), branch(node("Mul", ["x", "two"], ["q"]))


@pytest.mark.parametrize(("width", "kind"), [(32, "Add"), (8, "Mul")])
def test_the_compiled_shape_decides(width, kind, tmp_path):
    path = saved(tmp_path, [choice("wide", "y", PLUS, TIMES)])
    made = taken(path, tmp_path, {"x": (1, 3, 32, width)})
    assert kinds(made.path) == [kind]
    assert [value.dims for value in made.signature.inputs] == [(1, 3, 32, "W")]
    assert made.notes == (
        f"If 'y' takes its {'then' if kind == 'Add' else 'else'}_branch at the compiled shapes: only that is compiled",
    )
    if width == 32:
        same(path, made.path)


def test_branches_in_branches_without_names(tmp_path):
    inner = choice("narrow", "n", branch(node("Add", ["q", "two"], ["p"])), branch(node("Sub", ["q", "two"], ["p2"])))
    nodes = [
        node("Not", ["wide"], ["narrow"]),
        choice("wide", "a", branch(node("Mul", ["x", "two"], ["q"]), inner), PLUS),
        choice("wide", "b", branch(node("Neg", ["a"], ["q"]), node("Exp", ["q"], ["r"])), PLUS),
        choice("wide", "y", branch(node("Identity", ["b"], ["q"])), PLUS),
    ]
    path = saved(tmp_path, nodes)
    made = taken(path, tmp_path)
    assert kinds(made.path) == ["Mul", "Sub", "Neg", "Exp", "Identity"]
    same(path, made.path)


def test_a_condition_behind_another_branch(tmp_path):
    less = branch(node("Less", ["d", "ten"], ["l"]), kind=TensorProto.BOOL)
    nodes = [choice("wide", "again", less, less), choice("again", "y", PLUS, TIMES)]
    path = saved(tmp_path, nodes)
    assert kinds(taken(path, tmp_path).path) == ["Mul"]
    same(path, taken(path, tmp_path).path)


@pytest.mark.parametrize("fed", [False, True])
def test_a_constant_decides_unless_it_can_be_fed(fed, tmp_path):
    given = [helper.make_tensor_value_info("flag", TensorProto.BOOL, [])] if fed else []
    path = saved(tmp_path, [choice("flag", "y", PLUS, TIMES)], weights={"flag": np.array(True)}, inputs=given)
    made = taken(path, tmp_path)
    assert (made.path == path) == fed
    if not fed:
        assert kinds(made.path) == ["Add"]


def test_several_sets_of_shapes_keep_both_branches(tmp_path):
    path = saved(tmp_path, [choice("wide", "y", PLUS, TIMES)])
    assert taken(path, tmp_path, {"x": (1, 3, 32, 32)}, {"x": (1, 3, 32, 8)}).path == path


FREE = ("N", 3, 32, 32)
SQUEEZED = branch(node("Squeeze", ["x", "first"], ["sq"]), node("Unsqueeze", ["sq", "first"], ["p"]))
MIXED = branch(node("CumSum", ["x", "zero"], ["p"]))


def test_a_free_batch_takes_a_branch_that_it_does_not_decide(tmp_path):
    made = taken(saved(tmp_path, [choice("wide", "y", PLUS, TIMES)], dims=FREE), tmp_path)
    assert kinds(made.path) == ["Add"] and made.independent
    assert made.signature.inputs[0].dims == FREE


@pytest.mark.parametrize("then", [SQUEEZED, PLUS])
def test_a_batch_that_decides_keeps_both_branches(then, tmp_path):
    alone = [node("Gather", ["s", "zero"], ["n"]), node("Equal", ["n", "one"], ["alone"])]
    weights = {"zero": np.array(0), "one": np.array(1), "first": np.array([0])}
    path = saved(tmp_path, [*alone, choice("alone", "y", then, TIMES)], dims=FREE, weights=weights)
    assert taken(path, tmp_path).path == path


@pytest.mark.parametrize("most", [3, 10, 1000])
def test_a_batch_that_decides_only_when_it_is_large_keeps_both_branches(most, tmp_path):
    many = [node("Gather", ["s", "zero"], ["n"]), node("Greater", ["n", "most"], ["many"])]
    path = saved(
        tmp_path,
        [*many, choice("many", "y", PLUS, TIMES)],
        dims=FREE,
        weights={"zero": np.array(0), "most": np.array(most)},
    )
    assert taken(path, tmp_path).path == path


def test_samples_that_depend_on_each_other_keep_both_branches(tmp_path):
    path = saved(tmp_path, [choice("wide", "y", MIXED, TIMES)], dims=FREE, weights={"zero": np.array(0)})
    assert taken(path, tmp_path).path == path


def test_data_decide_at_run_time(tmp_path):
    nodes = [node("ReduceSum", ["x"], ["m"], keepdims=0), node("Greater", ["m", "two"], ["f"])]
    path = saved(tmp_path, [*nodes, choice("f", "y", PLUS, TIMES)])
    assert taken(path, tmp_path).path == path


def test_weights_in_a_file_of_their_own_are_linked(tmp_path):
    weights = {"w": np.random.default_rng(1).standard_normal((8, 3, 3, 3)).astype(np.float32)}
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
        choice("wide", "y", branch(node("Relu", ["c"], ["r"])), TIMES),
    ]
    path = saved(tmp_path, nodes, weights=weights, save_as_external_data=True, location="m.data", size_threshold=100)
    made = taken(path, tmp_path)
    assert kinds(made.path) == ["Conv", "Relu"] and os.listdir(os.path.dirname(made.path))
    same(path, made.path)


def test_such_a_model_is_compiled_as_a_whole_and_runs(toolkit, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_TOOLKIT_ANY", "conv_f16.rk3588.rknn")
    weights = {"w": np.random.default_rng(1).standard_normal((8, 3, 3, 3)).astype(np.float32)}
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4, strides=[2, 2]),
        choice("wide", "y", branch(node("Relu", ["c"], ["r"])), branch(node("Neg", ["c"], ["n"]))),
    ]
    path = saved(tmp_path, nodes, weights=weights)
    argv = ["convert", path, "--target", "rk3588", "--shape", "x=1,3,32,32", "--toolkit", toolkit.python]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "m.rk3588.rknn" in said and "takes its then_branch" in said
    session = ort_rknn.InferenceSession(path, provider_options={"device": "virtual:rk3588"})
    assert session.get_providers()[0] == "RKNNExecutionProvider"
    x = np.random.default_rng(0).standard_normal(SHAPES["x"]).astype(np.float32)
    want = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, atol=0.02, rtol=0.02)
