"""Builds the small ONNX models of the tests. Deterministic: the files are always byte-identical.

    python make_onnx.py [FOLDER]

Needs numpy and `onnx` only. The default FOLDER is the script's. `convert.py` makes the compiled twins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 13
IR_VERSION = 8

Shape = Sequence[int | str]


class Net:
    """A graph being built. Methods add one node and return the name of its output."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Shape, dtype: int = TensorProto.FLOAT, doc: str = "") -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape), doc))
        return name

    def output(self, name: str, shape: Shape, dtype: int = TensorProto.FLOAT, doc: str = "") -> None:
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape), doc))

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, shape: Sequence[int], scale: float) -> str:
        return self.constant(name, (self._random.standard_normal(shape) * scale).astype(np.float32))

    def op(self, kind: str, inputs: Sequence[str], out: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, list(inputs), [out], name=f"{kind}_{out}", **attributes))
        return out

    def conv(self, x: str, out: str, channels: tuple[int, int], stride: int = 1, relu: bool = True) -> str:
        """A 3x3 convolution, padded by one, `channels` (in, out), then by default a ReLU."""
        c_in, c_out = channels
        w = self.weight(f"{out}.weight", (c_out, c_in, 3, 3), (2 / (9 * c_in)) ** 0.5)
        b = self.weight(f"{out}.bias", (c_out,), 0.1)
        y = self.op(
            "Conv",
            [x, w, b],
            f"{out}.sum" if relu else out,
            kernel_shape=[3, 3],
            pads=[1, 1, 1, 1],
            strides=[stride, stride],
        )
        return self.op("Relu", [y], out) if relu else y

    def dense(self, x: str, out: str, size: tuple[int, int]) -> str:
        """A Gemm from [1, size[0]] to [1, size[1]]."""
        w = self.weight(f"{out}.weight", size, (1 / size[0]) ** 0.5)
        b = self.weight(f"{out}.bias", (size[1],), 0.1)
        return self.op("Gemm", [x, w, b], out)

    def model(self, **fields: Any) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, self._constants)
        settings: dict[str, Any] = {"producer_name": "ort-rknn tests", **fields}
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, **settings
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def conv_f16() -> onnx.ModelProto:
    net = Net("conv_f16", 1)
    x = net.input("x", [1, 3, 32, 32])
    x = net.conv(x, "c1", (3, 16), stride=2)
    x = net.conv(x, "c2", (16, 16))
    net.conv(x, "y", (16, 8), relu=False)
    net.output("y", [1, 8, 16, 16])
    return net.model()


def conv_i8() -> onnx.ModelProto:
    """20 output channels: not a multiple of the NPU's 16-channel blocks."""
    net = Net("conv_i8", 2)
    x = net.input("x", [1, 3, 32, 32])
    x = net.conv(x, "c1", (3, 16), stride=2)
    x = net.conv(x, "c2", (16, 24), stride=2)
    net.conv(x, "y", (24, 20), relu=False)
    net.output("y", [1, 20, 8, 8])
    return net.model()


def image_u8() -> onnx.ModelProto:
    """Takes a normalized image; the compiled twin takes the bytes and applies mean and std."""
    net = Net("image_u8", 3)
    x = net.input("image", [1, 3, 24, 24], doc="RGB, normalised, NCHW")
    x = net.conv(x, "c1", (3, 16), stride=2)
    x = net.conv(x, "c2", (16, 32), stride=2)
    x = net.op("GlobalAveragePool", [x], "pooled")
    x = net.op("Flatten", [x], "flat")
    net.dense(x, "logits", (32, 10))
    net.output("logits", [1, 10], doc="one score per class")
    model = net.model(
        producer_name="ort-rknn image maker",
        producer_version="7.1",
        domain="test.ort_rknn",
        model_version=7,
        doc_string="A classifier of ten classes, untrained. Größe: 24 × 24.",
    )
    model.graph.doc_string = "conv, conv, mean, dense"
    words = ["apple", "Äpfel", "りんご", "pomme", "it's", "plum", "pear", "fig", "lime", "kiwi"]
    names = str(dict(enumerate(words)))
    helper.set_model_props(model, {"names": names, "author": "Zoë 山田", "stride": "4", "empty": ""})
    return model


def two_io() -> onnx.ModelProto:
    net = Net("two_io", 4)
    a = net.input("a", [1, 3, 16, 16])
    b = net.input("b", [1, 16])
    net.conv(a, "map", (3, 8))
    pooled = net.op("Flatten", [net.op("GlobalAveragePool", ["map"], "pooled")], "flat")
    net.op("Add", [net.dense(pooled, "from_a", (8, 6)), net.dense(b, "from_b", (16, 6))], "vector")
    net.output("map", [1, 8, 16, 16])
    net.output("vector", [1, 6])
    return net.model()


def tokens_i64() -> onnx.ModelProto:
    """32 words, 8 features each. `label` is the strongest of 12 features of each token."""
    net = Net("tokens_i64", 5)
    ids = net.input("ids", [1, 16], TensorProto.INT64)
    x = net.op("Gather", [net.weight("embedding", (32, 8), 1.0), ids], "embedded", axis=0)
    x = net.op("Tanh", [net.op("MatMul", [x, net.weight("mix", (8, 8), 0.4)], "mixed")], "features")
    scores = net.op("MatMul", [x, net.weight("head", (8, 12), 0.5)], "scores")
    net.op("ArgMax", [scores], "label", axis=-1, keepdims=0)
    net.output("features", [1, 16, 8])
    net.output("label", [1, 16], TensorProto.INT64)
    return net.model()


def dynamic() -> onnx.ModelProto:
    net = Net("dynamic", 6)
    x = net.input("x", [1, 3, "h", "w"])
    x = net.conv(x, "c1", (3, 8))
    net.conv(x, "y", (8, 4), relu=False)
    net.output("y", [1, 4, "h", "w"])
    return net.model()


def _per_image(name: str, seed: int, batch: int | str) -> onnx.ModelProto:
    net = Net(name, seed)
    x = net.input("x", [batch, 3, 16, 16])
    x = net.conv(x, "c1", (3, 8), stride=2)
    x = net.op("GlobalAveragePool", [net.conv(x, "c2", (8, 16))], "pooled")
    x = net.op("Flatten", [x], "flat")
    net.dense(x, "y", (16, 5))
    net.output("y", [batch, 5])
    return net.model()


def batch4() -> onnx.ModelProto:
    return _per_image("batch4", 7, 4)


def free_batch() -> onnx.ModelProto:
    return _per_image("free_batch", 8, "N")


def scalarish() -> onnx.ModelProto:
    """A 1-D and a 3-D input; a 3-D, a 1-D and a 0-D output."""
    net = Net("scalarish", 9)
    v = net.input("v", [8])
    m = net.input("m", [1, 4, 8])
    net.op("Tanh", [net.op("Mul", [m, v], "scaled")], "grid")
    axes = net.constant("axes", np.array([0, 1], np.int64))
    net.op("ReduceSum", ["grid", axes], "line", keepdims=0)
    net.op("ReduceMean", ["grid"], "point", keepdims=0)
    net.output("grid", [1, 4, 8])
    net.output("line", [8])
    net.output("point", [])
    return net.model()


def bool_mask() -> onnx.ModelProto:
    net = Net("bool_mask", 10)
    x = net.input("x", [1, 16])
    mask = net.input("mask", [1, 16], TensorProto.BOOL)
    x = net.op("Where", [mask, x, net.weight("instead", (1, 16), 0.5)], "chosen")
    net.dense(x, "y", (16, 6))
    net.output("y", [1, 6])
    return net.model()


def nd() -> onnx.ModelProto:
    """A 3-D and a 5-D input."""
    net = Net("nd", 11)
    x = net.input("x", [1, 8, 4])
    v = net.input("v", [1, 2, 3, 4, 5])
    net.op("Tanh", [net.op("MatMul", [x, net.weight("mix", (4, 6), 0.5)], "mixed")], "y")
    net.op("Sigmoid", [net.op("Mul", [v, net.weight("gain", (1, 2, 1, 1, 1), 1.0)], "scaled")], "u")
    net.output("y", [1, 8, 6])
    net.output("u", [1, 2, 3, 4, 5])
    return net.model()


def mean_std() -> onnx.ModelProto:
    """Each input has its own mean and std in the compiled twin; `line` is not an image."""
    net = Net("mean_std", 12)
    for name, channels in (("rgb", 3), ("rgba", 4), ("gray", 1), ("six", 6)):
        x = net.input(name, [1, channels, 8, 8])
        net.conv(x, f"{name}_out", (channels, 4), relu=False)
        net.output(f"{name}_out", [1, 4, 8, 8])
    x = net.input("line", [1, 3, 8])
    net.op("Tanh", [net.op("Mul", [x, net.weight("gain", (1, 3, 1), 1.0)], "scaled")], "line_out")
    net.output("line_out", [1, 3, 8])
    return net.model()


def tail_f16() -> onnx.ModelProto:
    """Takes the output of conv_f16."""
    net = Net("tail_f16", 13)
    x = net.input("y", [1, 8, 16, 16])
    net.conv(x, "z", (8, 20), stride=2)
    net.output("z", [1, 20, 8, 8])
    return net.model()


def tail_i8() -> onnx.ModelProto:
    """Takes the output of conv_i8: 20 channels, which are two blocks of 16 with 12 unused ones."""
    net = Net("tail_i8", 14)
    x = net.input("y", [1, 20, 8, 8])
    net.conv(x, "z", (20, 12))
    net.output("z", [1, 12, 8, 8])
    return net.model()


MODELS: tuple[Callable[[], onnx.ModelProto], ...] = (
    conv_f16,
    conv_i8,
    image_u8,
    two_io,
    tokens_i64,
    dynamic,
    batch4,
    free_batch,
    scalarish,
    bool_mask,
    nd,
    mean_std,
    tail_f16,
    tail_i8,
)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for make in MODELS:
        (folder / f"{make.__name__}.onnx").write_bytes(make().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
