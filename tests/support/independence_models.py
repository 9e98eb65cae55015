"""Small models for the tests of independence."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ort_rknn._independence import Independence, independence_of

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
    """``inputs`` and ``outputs``: names separated by spaces; "-" is an omitted input."""
    names = ["" if item == "-" else item for item in inputs.split()]
    return helper.make_node(op_type, names, outputs.split(), name=name, **attributes)


def judged(*args, **kwargs) -> Independence:
    return independence_of(model(*args, **kwargs))


class Judged:
    """A model with the output "y", and the verdict on it."""

    def __init__(self, nodes, inputs, constants, opset=17) -> None:
        self.content = model(nodes, inputs, ["y"], constants, opset=opset)
        self.found = independence_of(self.content)

    def must_be_proved(self) -> None:
        """Proved, and true: compare a run of the whole with runs of each sample."""
        assert self.found.proved, self.found.reason
        session = onnxruntime.InferenceSession(self.content, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(3)
        feeds = {}
        for item in session.get_inputs():
            shape = [4, *[dim if isinstance(dim, int) else 3 for dim in item.shape[1:]]]
            integers = item.type == "tensor(int64)"
            feeds[item.name] = rng.integers(0, 9, shape) if integers else rng.normal(size=shape).astype(np.float32)
        whole = session.run(None, feeds)[0]
        for at in (0, 2, 3):
            alone = session.run(None, {name: array[at : at + 1] for name, array in feeds.items()})[0]
            np.testing.assert_allclose(alone[0], whole[at], rtol=1e-4, atol=1e-5)
