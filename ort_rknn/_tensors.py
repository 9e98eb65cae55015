"""Tensors: shapes, axis order, quantization, and the one table of dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: A shape without free dimensions.
Shape = tuple[int, ...]
#: Axis order. UNDEFINED: not a 4-D tensor, or unknown.
Layout = Literal["NCHW", "NHWC", "NC1HWC2", "UNDEFINED"]
#: A dimension: its length, the name of a free one, or None.
Dim = int | str | None


@dataclass(frozen=True, slots=True)
class Quantization:
    """Affine quantization of a tensor: ``real = (stored - zero_point) * scale``."""

    scale: float
    zero_point: int


def cuts_integers(dtype: str | None, quantization: Quantization | None) -> bool:
    """Whether a quantized tensor cannot hold half of an 8-bit type's integers. A compiled model has such an input if
    its ONNX begins with DequantizeLinear: the scale is the result's, and the runtime applies it to the integers."""
    largest = {"uint8": 255, "int8": 127}.get(dtype or "")
    if largest is None or quantization is None:
        return False
    return (127 - quantization.zero_point) * quantization.scale < largest / 2


#: numpy dtype name -> (ONNX element type, bytes per element). The dtypes that a session on the NPU can have.
DTYPES: Mapping[str, tuple[int, int]] = {
    "float32": (1, 4),
    "uint8": (2, 1),
    "int8": (3, 1),
    "uint16": (4, 2),
    "int16": (5, 2),
    "int32": (6, 4),
    "int64": (7, 8),
    "bool": (9, 1),
    "float16": (10, 2),
    "float64": (11, 8),
    "uint32": (12, 4),
    "uint64": (13, 8),
}
DTYPE_OF_ELEMENT: Mapping[int, str] = {element: name for name, (element, _) in DTYPES.items()}
#: onnxruntime's text for a type, as in ``NodeArg.type`` -> numpy dtype name: "tensor(float)" -> "float32". Only
#: :data:`DTYPES`: no strings, no types that numpy lacks, no sequences.
DTYPE_OF_TYPE: Mapping[str, str] = {
    f"tensor({ {'float32': 'float', 'float64': 'double'}.get(name, name) })": name for name in DTYPES
}
#: The dtypes that ``rknn_inputs_set`` accepts, in the order of ``rknn_tensor_type``.
INPUT_DTYPES = ("float32", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "bool")


def onnx_order(shape: Shape, layout: Layout) -> Shape:
    """A runtime's shape in the ONNX's axis order."""
    if layout == "NHWC" and len(shape) == 4:
        n, h, w, c = shape
        return (n, c, h, w)
    return shape
