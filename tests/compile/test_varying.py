"""Tensors whose shape depends on data cross into no part: a compiled model has the shapes of one example."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ort_rknn._compile.fate import refused_by_table
from ort_rknn._compile.observe import observe, random_feeds
from ort_rknn._compile.partition import partition
from ort_rknn._compile.varying import refused_by_shape, shaped_by_data

node = helper.make_node
FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
SHAPES = {"x": (1, 3, 8, 8), "n": (1,)}
VALUES = {
    "w": np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32),
    "zero": np.array([0]),
    "two": np.array([2]),
    "one": np.array(1),
    "all": np.array([1, 3, 8, 8]),
    "times": np.array(2),
    "yes": np.array(True),
    "half": np.float32(0.5),
}


def model_of(*nodes):
    graph = helper.make_graph(
        [node("Conv", ["x", "w"], ["p"], pads=[1] * 4), node("Relu", ["p"], ["r"]), *nodes],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, SHAPES["x"]), helper.make_tensor_value_info("n", INT, [1])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in VALUES.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def seen(model):
    return observe(model, ".", [random_feeds(model, SHAPES)])


def graph_of(nodes, inputs, outputs):
    def values(pairs):
        return [helper.make_tensor_value_info(name, kind, None if kind == FLOAT else []) for name, kind in pairs]

    return helper.make_graph(nodes, "b", values(inputs), values(outputs))


def loop(times, go, kept=("on",), grows=False):
    carried = node("Concat", ["h", "h"], ["h2"], axis=1) if grows else node("Add", ["h", "half"], ["h2"])
    body = graph_of(
        [carried, node("Identity", ["h"], ["o"]), node("Identity" if kept[0] == "on" else "Not", list(kept), ["on2"])],
        [("i", INT), ("on", BOOL), ("h", FLOAT)],
        [("on2", BOOL), ("h2", FLOAT), ("o", FLOAT)],
    )
    return node("Loop", [times, go, "r"], ["carried", "y"], body=body)


def choice(flag):
    def branch(name, *nodes):
        return graph_of(nodes, [], [(name, FLOAT)])

    half = branch("t", node("Slice", ["r", "zero", "two", "two"], ["t"]))
    return node("If", [flag], ["y"], then_branch=half, else_branch=branch("e", node("Identity", ["r"], ["e"])))


def finding(flag):
    """As :func:`choice`, with a branch that makes a tensor whose length is found in the data."""
    nodes = [node("NonZero", ["r"], ["i"]), node("Cast", ["i"], ["t"], to=FLOAT)]
    then, other = graph_of(nodes, [], [("t", FLOAT)]), graph_of([node("Identity", ["r"], ["e"])], [], [("e", FLOAT)])
    return node("If", [flag], ["y"], then_branch=then, else_branch=other)


def condition():
    return [node("ReduceMax", ["r"], ["m"], keepdims=0), node("Greater", ["m", "half"], ["positive"])]


@pytest.mark.parametrize(
    ("nodes", "varying"),
    [
        ([node("NonZero", ["r"], ["i"]), node("Cast", ["i"], ["y"], to=FLOAT)], {"i", "y"}),
        ([node("Gather", ["r", "n"], ["y"], axis=3)], set()),
        ([node("Slice", ["r", "zero", "n"], ["y"])], {"y"}),
        ([node("Slice", ["r", "zero", "two"], ["y"])], set()),
        ([node("Tile", ["n", "n"], ["t"]), node("ReduceSum", ["t"], ["y"], keepdims=0)], {"t"}),
        ([node("Shape", ["r"], ["s"]), node("Expand", ["half", "s"], ["y"])], set()),
        ([node("Reshape", ["r", "all"], ["y"])], set()),
        ([node("ConstantOfShape", ["n"], ["y"])], {"y"}),
        ([loop("times", "yes")], set()),
        ([loop("n0", "yes")], {"y"}),
        ([loop("n0", "yes", grows=True)], {"y", "carried"}),
        ([loop("times", "yes", kept=("positive",))], {"y"}),
        ([choice("yes")], set()),
        ([choice("positive")], {"y"}),
        ([finding("yes")], {"y"}),
    ],
)
def test_what_varies_with_the_data(nodes, varying):
    scalar = node("Squeeze", ["n"], ["n0"])
    model = model_of(scalar, *condition(), *nodes)
    assert shaped_by_data(model, seen(model)) == varying


def test_shapes_of_one_example_are_not_believed():
    model = model_of(node("NonZero", ["r"], ["i"]), node("Cast", ["i"], ["y"], to=FLOAT))
    model.graph.value_info.append(helper.make_tensor_value_info("i", INT, [4, 77]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [4, 77]))
    assert shaped_by_data(model, seen(model)) == {"i", "y"}


def test_no_part_reads_or_makes_such_a_tensor():
    nodes = [
        node("NonZero", ["r"], ["i"], name="count"),
        node("Cast", ["i"], ["f"], to=FLOAT),
        node("ReduceMean", ["f"], ["k"], keepdims=0),
        node("Add", ["r", "k"], ["q"]),
        node("Conv", ["q", "w"], ["y"], pads=[1] * 4),
    ]
    model = model_of(*nodes)
    observed = seen(model)
    refused = {**refused_by_shape(model, observed), **refused_by_table(model)}
    assert (
        refused[3] == "the length of 'i' depends on the data" and refused[4] == "the length of 'f' depends on the data"
    )
    made = partition(model, observed, refused)
    assert [(part.inputs, part.outputs) for part in made.parts] == [(["x"], ["r"]), (["r", "k"], ["y"])]
