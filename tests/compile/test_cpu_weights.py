"""Where a model in parts stores the weights of its CPU nodes."""

import os

import numpy as np
import onnx
from onnx import helper, numpy_helper
from support.models_in_parts import value

from ort_rknn._compile.place import _own_weights


def test_external_weights_with_several_names_are_taken_in(tmp_path):
    """The toolkit's folder has hard links to files of weights, and the package onnx reads none with several names."""
    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph(
        [product], "g", [value("x", [1, 3])], [value("y", [1, 4])], [numpy_helper.from_array(weights, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    os.link(tmp_path / "m.data", tmp_path / "another")
    bare = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert _own_weights(bare, os.fspath(tmp_path), tmp_path) is None
    (tensor,) = bare.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), weights)
    assert not tensor.external_data
