"""Writes small float32 ONNX models, without the package ``onnx``. Field numbers are those of onnx.proto (ONNX 1.23)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ort_rknn.files._wire import bytes_field, int_field, text_field

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FLOAT = 1  # TensorProto.DataType
_INTS = 7  # AttributeProto.AttributeType
_IR_VERSION, _OPSET = 8, 13


def node(kind: str, inputs: Sequence[str], output: str, **attributes: Sequence[int]) -> bytes:
    """A NodeProto with one output; attributes are lists of integers."""
    parts = [text_field(1, name) for name in inputs]
    parts += [text_field(2, output), text_field(3, f"{kind}_{output}"), text_field(4, kind)]
    for name, values in attributes.items():
        ints = b"".join(int_field(8, value) for value in values)
        parts.append(bytes_field(5, text_field(1, name) + ints + int_field(20, _INTS)))
    return b"".join(parts)


def weights(name: str, values: NDArray[np.float32]) -> bytes:
    """A TensorProto."""
    dims = b"".join(int_field(1, dim) for dim in values.shape)
    return dims + int_field(2, _FLOAT) + text_field(8, name) + bytes_field(9, values.astype("<f4").tobytes())


def value(name: str, shape: Sequence[int]) -> bytes:
    """A ValueInfoProto."""
    dims = b"".join(bytes_field(1, int_field(1, dim)) for dim in shape)
    tensor_type = int_field(1, _FLOAT) + bytes_field(2, dims)
    return text_field(1, name) + bytes_field(2, bytes_field(1, tensor_type))


def model(
    name: str,
    nodes: Sequence[bytes],
    *,
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    initializers: Sequence[bytes] = (),
) -> bytes:
    """A ModelProto of opset 13, from what the functions above return."""
    graph = b"".join(
        (
            *(bytes_field(1, part) for part in nodes),
            text_field(2, name),
            *(bytes_field(5, part) for part in initializers),
            *(bytes_field(11, part) for part in inputs),
            *(bytes_field(12, part) for part in outputs),
        )
    )
    opset = text_field(1, "") + int_field(2, _OPSET)
    return int_field(1, _IR_VERSION) + text_field(2, "ort_rknn") + bytes_field(7, graph) + bytes_field(8, opset)


def identity(shape: Sequence[int]) -> bytes:
    """A model that returns its input: x to y."""
    return model("identity", [node("Identity", ["x"], "y")], inputs=[value("x", shape)], outputs=[value("y", shape)])
