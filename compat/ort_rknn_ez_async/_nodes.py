"""Names, types and shapes of a model's inputs and outputs; a model's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ort_rknn._executor.native_layout import NativeLayout
from ort_rknn.adapter import DTYPE_OF_TYPE, Layout, Quantization, Shape

_TYPE_OF_DTYPE: Mapping[str, str] = {dtype: text for text, dtype in DTYPE_OF_TYPE.items()}
#: The dtypes that values can have; others are "unknown", as in that library.
NUMPY_DTYPES = (
    "float32",
    "float16",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "bool",
)


def type_text(dtype: str) -> str:
    """``tensor(float16)`` for "float16"."""
    return _TYPE_OF_DTYPE[dtype] if dtype in (*NUMPY_DTYPES, "float64") else "tensor(unknown)"


class NodeArg:
    """An input or output: ``name``, ``shape`` (a list of ints), ``type`` ("tensor(float)"), ``layout`` (of ``shape``:
    "NCHW", "NHWC", "UNDEFINED") and ``strides`` (always [])."""

    __slots__ = ("layout", "name", "shape", "strides", "type")

    def __init__(self, name: str, shape: list[int | str | None], type_: str, layout: str) -> None:
        self.name = name
        self.shape = shape
        self.type = type_
        self.layout = layout
        self.strides: list[int] = []

    def __repr__(self) -> str:
        return f"NodeArg(name={self.name!r}, type={self.type!r}, shape={self.shape}, layout={self.layout!r})"


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """``custom_metadata_map`` contains the converter's custom string as "rknn_custom_string", if there is one."""

    custom_metadata_map: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output, in all of its forms."""

    name: str
    shape: tuple[int | str | None, ...]
    """As ``run`` accepts or returns it."""
    layout: Layout
    """Of ``shape``."""
    dtype: str
    """The dtype that ``run`` accepts without loss, or returns."""
    native_dtype: str
    """The compiled type: "float16", "int8" ..."""
    native_shape: tuple[int | str | None, ...]
    """As in device values: NHWC if it has four axes and a layout."""
    native_layout: Layout
    quantization: Quantization | None
    stored: NativeLayout | None = None
    """Its form in memory shared with the NPU; None: device values are in host memory, in the native layout."""
    room: int = 0
    """The size of such a value in bytes that the runtime requires."""

    def node(self) -> NodeArg:
        """For ``get_inputs()``."""
        return NodeArg(self.name, list(self.shape), type_text(self.dtype), self.layout)

    def native_node(self) -> NodeArg:
        """For ``get_native_inputs()``."""
        return NodeArg(self.name, list(self.native_shape), type_text(self.native_dtype), self.native_layout)


def plain_dtype(native: str, quantization: Quantization | None) -> str:
    """A dtype that can be fed without loss if only the compiled type is known: never a quantized or short float
    type."""
    if quantization is not None or native.startswith(("float", "bfloat")) or native not in NUMPY_DTYPES:
        return "float32"
    return native


def exchanged(shape: Shape) -> Shape:
    """An NCHW shape as NHWC."""
    n, c, h, w = shape
    return (n, h, w, c)
