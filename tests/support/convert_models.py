"""Models for the vendor's converter."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
node = helper.make_node


class Maker:
    """Small models with random weights of a fixed seed."""

    def __init__(self):
        self.random = np.random.default_rng(0)
        self.weights = {}
        self.nodes = []

    def conv(self, source, out, channels, inputs, kernel=3, stride=1):
        shape = (channels, inputs, kernel, kernel)
        self.weights[f"{out}_w"] = (self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        pads = [kernel // 2] * 4
        self.nodes.append(node("Conv", [source, f"{out}_w"], [out], pads=pads, strides=[stride] * 2, name=out))

    def add(self, operator, inputs, outputs, **attributes):
        self.nodes.append(node(operator, inputs, outputs, name=outputs[0] + "_n", **attributes))

    def constant(self, name, value):
        self.weights[name] = np.asarray(value)

    def save(self, path, inputs, outputs):
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(*each) for each in inputs],
            [helper.make_tensor_value_info(*each) for each in outputs],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path
