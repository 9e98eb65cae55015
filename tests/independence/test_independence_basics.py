"""What a proof requires of a model, for any operators."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from support.independence_models import judged, model, node, value

from ort_rknn._independence import Independence, independence_of
from ort_rknn.files import OnnxFileError

W = np.ones((4, 3, 3, 3), np.float32)
PICTURES = {"x": ["N", 3, 8, 8]}


def test_a_convolution_is_proved(tmp_path):
    content = model([node("Conv", "x w", "c"), node("Relu", "c", "y")], PICTURES, ["y"], {"w": W})
    assert independence_of(content).proved
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert independence_of(path) == independence_of(str(path)) == independence_of(content)


def test_the_first_axis_must_be_free_in_every_input():
    found = judged([node("Add", "x z", "y")], {"x": ["N", 3], "z": [1, 3]}, ["y"])
    assert found == Independence(False, "input 'z' has a first axis of fixed length 1")


def test_an_unnamed_free_axis_is_one():
    assert judged([node("Relu", "x", "y")], {"x": [None, 3]}, ["y"]).proved


def test_another_axis_of_the_same_name_is_another_axis():
    """Paddle's exporter calls all free axes "?"."""
    assert judged([node("Relu", "x", "y")], {"x": ["?", "?"]}, ["y"]).proved
    assert not judged([node("Transpose", "x", "t"), node("Add", "x t", "y")], {"x": ["?", "?"]}, ["y"]).proved


@pytest.mark.parametrize("others", [3, 32, 33, 60])
def test_the_number_of_elements_depends_on_the_samples_however_many_axes_there_are(others):
    nodes = [node("Size", "x", "s"), node("Cast", "s", "f", to=1), node("Mul", "x f", "y")]
    assert not judged(nodes, {"x": ["N", *(f"a{k}" for k in range(others))]}, ["y"]).proved


def test_an_input_without_axes():
    assert not judged([node("Relu", "x", "y")], {"x": []}, ["y"]).proved
    assert not judged([node("Relu", "x", "y")], {"x": None}, ["y"]).proved


def test_a_constant_may_not_lie_along_the_samples():
    four = {"b": np.ones((4, 3), np.float32)}
    found = judged([node("Add", "x b", "y", name="plus")], {"x": ["N", 3]}, ["y"], four)
    assert not found.proved and found.reason.startswith("Add 'plus' combines the samples with a tensor that has 4")
    assert judged([node("Add", "x b", "y")], {"x": ["N", 3]}, ["y"], {"b": np.ones((1, 3), np.float32)}).proved
    assert judged([node("Add", "x b", "y")], {"x": ["N", 3]}, ["y"], {"b": np.ones(3, np.float32)}).proved


def test_samples_may_not_meet_each_other():
    # [N, 3] and [N]: numpy's rules put the second one's samples along the first one's axis 1.
    assert not judged([node("Add", "x z", "y")], {"x": ["N", 3], "z": ["N"]}, ["y"]).proved
    assert judged([node("Add", "x z", "y")], {"x": ["N", 3], "z": ["M", 3]}, ["y"]).proved


def test_an_output_needs_the_axis():
    found = judged([node("Relu", "x", "y"), node("Abs", "c", "z")], {"x": ["N", 3]}, ["y", "z"], {"c": np.ones(3)})
    assert found.reason == "output 'z' is the same for all samples: it has no axis for them"


def test_what_no_output_needs_does_not_matter():
    nodes = [node("Relu", "x", "y"), node("NonZero", "x", "z")]
    assert judged(nodes, {"x": ["N", 3]}, ["y"]).proved
    assert not judged(nodes, {"x": ["N", 3]}, ["y", "z"]).proved


@pytest.mark.parametrize(
    "nodes, start",
    [
        ([node("NewThing", "x", "y", name="n")], "NewThing 'n' is not a supported operator"),
        ([node("Relu", "x", "y", name="n", domain="my.ops")], "Relu 'n' is an operator of the domain 'my.ops'"),
        ([node("EPContext", "x", "y", domain="com.microsoft")], "EPContext (the node that produces 'y')"),
        ([node("RandomNormalLike", "x", "y", name="r")], "RandomNormalLike 'r' draws random numbers"),
        ([node("DynamicQuantizeLinear", "x", "y s z", name="q")], "DynamicQuantizeLinear 'q' takes its scale"),
        ([node("Relu", "nothing", "y", name="r")], "Relu 'r' reads 'nothing', which no node before it produces"),
        ([node("Relu", "x", "z")], "output 'y' is produced by no node"),
    ],
)  # fmt: skip
def test_the_reason_names_the_node(nodes, start):
    found = judged(nodes, {"x": ["N", 3]}, ["y"])
    assert not found.proved and found.reason.startswith(start), found.reason


def test_the_cause_is_named_not_what_follows_it():
    nodes = [node("Bernoulli", "x", "a", name="coin"), node("Relu", "a", "b"), node("Add", "b x", "y")]
    assert judged(nodes, {"x": ["N", 3]}, ["y"]).reason == "Bernoulli 'coin' draws random numbers"


def test_graphs_inside_are_not_followed():
    branch = helper.make_graph([node("Identity", "x", "b")], "b", [], [value("b", None)])
    nodes = [node("If", "c", "y", name="choice", then_branch=branch, else_branch=branch)]
    found = judged(nodes, {"x": ["N", 3]}, ["y"], {"c": np.array(True)})
    assert found.reason == "If 'choice' contains a graph, which is not examined"


def test_functions_are_not_followed():
    function = helper.make_function("", "Relu", ["a"], ["b"], [node("Neg", "a", "b")], [helper.make_opsetid("", 17)])
    assert not judged([node("Relu", "x", "y")], {"x": ["N", 3]}, ["y"], functions=[function]).proved
    other = helper.make_function("mine", "F", ["a"], ["b"], [node("Neg", "a", "b")], [helper.make_opsetid("", 17)])
    nodes = [node("F", "x", "y", domain="mine")]
    assert not judged(nodes, {"x": ["N", 3]}, ["y"], functions=[other]).proved


@pytest.mark.parametrize("opset", [6, 99])
def test_operators_of_other_times_are_not_followed(opset):
    assert f"version {opset} " in judged([node("Relu", "x", "y")], {"x": ["N", 3]}, ["y"], opset=opset).reason


def test_batch_normalization_in_training_mode_is_not_proved():
    names = {name: np.ones(3, np.float32) for name in "sbmv"}
    inference = node("BatchNormalization", "x s b m v", "y")
    training = node("BatchNormalization", "x s b m v", "y mean var", training_mode=1)
    assert judged([inference], PICTURES, ["y"], names).proved
    assert not judged([training], PICTURES, ["y"], names).proved


def test_indices_of_a_pool_count_through_all_samples():
    nodes = [node("MaxPool", "x", "y i", kernel_shape=[2, 2])]
    assert judged(nodes, PICTURES, ["y"]).proved
    assert not judged(nodes, PICTURES, ["i"]).proved


def test_weights_from_the_samples_are_not_proved():
    assert not judged([node("Conv", "x z", "y")], {"x": ["N", 3, 8, 8], "z": ["N", 3, 3, 3]}, ["y"]).proved


def test_damaged_models():
    with pytest.raises(OnnxFileError):
        independence_of(b"\x08\x07nonsense" * 20)
    content = model([node("Relu", "x", "y")], {"x": ["N", 3]}, ["y"])
    with pytest.raises(OnnxFileError, match="damaged"):
        independence_of(content[:-9])
    with pytest.raises(FileNotFoundError):
        independence_of("/nowhere/m.onnx")
