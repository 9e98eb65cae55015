"""Small float32 ONNX models, without the package ``onnx``."""

from __future__ import annotations

from collections.abc import Sequence

from ort_rknn.files import _onnx_proto as proto
from ort_rknn.files import _onnx_write as onnx
from ort_rknn.files._onnx_write import float_tensor
from ort_rknn.files._wire import text_field

__all__ = ["float_tensor", "identity", "model", "node", "value"]

_OPSET = 13


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Sequence[int]) -> bytes:
    """A NodeProto with one output; attributes are lists of integers."""
    written = [onnx.ints_attribute(name, values) for name, values in attributes.items()]
    return onnx.node(kind, inputs, [output], name=f"{kind}_{output}", attributes=written)


def value(name: str, shape: Sequence[int]) -> bytes:
    """A ValueInfoProto."""
    return onnx.named_tensor(name, proto.FLOAT, shape)


def model(
    name: str,
    nodes: Sequence[bytes],
    *,
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    initializers: Sequence[bytes] = (),
) -> bytes:
    """A ModelProto of opset 13, from what the functions above return."""
    graph = onnx.graph(nodes, inputs=inputs, outputs=outputs, name=name, initializers=initializers)
    return onnx.model(graph, {"": _OPSET}, fields=text_field(proto.MODEL_PRODUCER_NAME, "ort_rknn"))


def identity(shape: Sequence[int]) -> bytes:
    """A model that returns its input: x to y."""
    return model("identity", [node("Identity", ["x"], "y")], inputs=[value("x", shape)], outputs=[value("y", shape)])
