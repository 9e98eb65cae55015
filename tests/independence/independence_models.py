"""Small models for the tests of independence."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ort_rknn._planning.independence import Independence, independence_of

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def value(name, dims, elem_type=FLOAT):
    return helper.make_tensor_value_info(name, elem_type, dims)


def model(nodes, inputs, outputs, constants=(), opset=17, ir_version=8, **graph_parts) -> bytes:
    """A model as bytes. ``inputs``: dims by name, or value infos; ``outputs``: names; ``constants``: arrays by name."""
    inputs = [value(*item) if isinstance(item, tuple) else item for item in dict_items(inputs)]
    outputs = [value(item, None) if isinstance(item, str) else item for item in outputs]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(constants).items()]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, tensors)
    parts = {"opset_imports": [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]}
    return helper.make_model(graph, ir_version=ir_version, **parts, **graph_parts).SerializeToString()


def dict_items(inputs):
    return list(inputs.items()) if isinstance(inputs, dict) else list(inputs)


def node(op_type, inputs, outputs, name="", **attributes) -> onnx.NodeProto:
    """``inputs`` and ``outputs`` as names parted by spaces; "-" is an input that is left out."""
    names = ["" if item == "-" else item for item in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), name=name, **attributes)


def judged(*args, **kwargs) -> Independence:
    return independence_of(model(*args, **kwargs))
