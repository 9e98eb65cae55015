"""Outputs that float16 cannot hold are computed on the CPU."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from support.models_in_parts import value, weights

from ort_rknn._compile.convert import ConvertOptions, convert
from ort_rknn._compile.overflow import overflowing_output


@pytest.fixture
def compiled_to_any(monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_TOOLKIT_ANY", "conv_f16.rk3588.rknn")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def scaled(folder, factor, dims=(1, 3, 64, 64), *, alone=False):
    """A Conv, and its result times ``factor``; and another Conv, unless ``alone``."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["p"], name="first", pads=[1] * 4),
        helper.make_node("Mul", ["p", "factor"], ["y"], name="scale"),
        helper.make_node("Conv", ["x", "w2"], ["z"], name="second", pads=[1] * 4),
    ]
    constants = [
        weights("w1", (32, 3, 3, 3), 1),
        weights("w2", (8, 3, 3, 3), 2),
        numpy_helper.from_array(np.float32(factor), "factor"),
    ]
    rows = dims[2]
    outputs = [value("y", [1, 32, rows, 64]), value("z", [1, 8, rows, 64])]
    if alone:
        del nodes[2], outputs[1]
    graph = helper.make_graph(nodes, "g", [value("x", list(dims))], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    return str(folder / "m.onnx")


def test_the_output_is_named(tmp_path):
    shapes = {"x": (1, 3, 64, 64)}
    assert overflowing_output(scaled(tmp_path, 1), shapes) is None
    assert overflowing_output(scaled(tmp_path, np.inf), shapes) is None, "infinite on the CPU too"
    said = overflowing_output(scaled(tmp_path, 1e6), shapes)
    assert said.startswith("output 'y' holds values up to ") and said.endswith(", more than float16 can")
    assert overflowing_output(scaled(tmp_path, 1e6), {"x": (1, 4, 64, 64)}) is None, "it does not run"


def test_it_is_computed_on_the_cpu(toolkit, tmp_path, compiled_to_any):
    (made,) = convert(scaled(tmp_path, 1e6), ConvertOptions(("rk3588",)), toolkit=toolkit).compiled
    assert not made.whole
    in_parts = onnx.load(tmp_path / "m.rk3588_ctx.onnx")
    (scale,) = (node for node in in_parts.graph.node if node.op_type == "Mul")
    assert list(scale.output) == ["y"]
    (fate,) = (fate for fate in made.fates if fate.operator == "Mul")
    assert fate.where == "CPU" and "'y' holds values up to" in fate.reason


def test_a_model_that_can_only_be_whole_gets_a_note(toolkit, tmp_path, compiled_to_any):
    sets = tuple({"x": (1, 3, rows, 64)} for rows in (64, 32))
    path = scaled(tmp_path, 1e6, (1, 3, "rows", 64), alone=True)
    report = convert(path, ConvertOptions(("rk3588",), shapes=sets), toolkit=toolkit)
    assert report.compiled[0].whole
    assert any("'y' holds values up to" in note and "infinite on the NPU" in note for note in report.notes)
