"""The share of a model's multiplications that the report calls int8."""

from types import SimpleNamespace

import pytest
from onnx import helper

from ort_rknn._compile.layers import LayerRow
from ort_rknn._compile.work import quantized_share

SHAPES = {"x": (1, 16, 32), "h": (1, 16, 64), "r": (1, 16, 64), "y": (1, 16, 4), "w": (32, 64), "v": (64, 4)}


def share(*layers, nodes=None):
    """Of two matrix products, the first with eight times the work of the second."""
    nodes = nodes or [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="last"),
    ]
    rows = tuple(LayerRow(name.partition(":")[0], dtype, "NPU", name, 1) for name, dtype in layers)
    part = SimpleNamespace(nodes=range(len(nodes)))
    built = SimpleNamespace(part=part, built=SimpleNamespace(log=SimpleNamespace(layers=rows)))
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    return quantized_share(SimpleNamespace(model=model, observed=SimpleNamespace(shapes=SHAPES), built=(built,)))


def test_layers_that_the_toolkit_derives_are_those_of_the_node():
    written = [("Reshape:mask_rs", "INT64"), ("Conv:h#2", "INT8"), ("Conv:y_rs_mm#1", "INT8")]
    assert share(*written) == 1
    assert share(*written[:2], ("Conv:y_rs_mm#1", "FLOAT16")) == pytest.approx(8 / 9)
    assert share(("Conv:h#2", "FLOAT16"), ("Conv:last_rs_mm_tp_rs", "INT8")) == pytest.approx(1 / 9)


def test_a_node_without_a_layer_counts_as_float_unless_all_with_weights_are_int8():
    assert share(("Conv:other", "INT8"), ("Reshape:h", "FLOAT16")) == 1
    assert share(("Conv:other", "INT8"), ("Conv:another", "FLOAT16")) == 0
    assert share() == 0


def test_a_model_without_such_work_has_nothing_in_float():
    assert share(("Relu:r", "INT8"), nodes=[helper.make_node("Relu", ["h"], ["r"])]) == 1
