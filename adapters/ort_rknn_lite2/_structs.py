"""The few structures with which this adapter queries the runtime itself, on 64-bit Linux.

Sizes and offsets are those of runtime 2.3.2, seen to agree with 2.5.0. Fields keep the interface's own names.
"""

from __future__ import annotations

import ctypes
from typing import Final

from ort_rknn.adapter import Layout

QUERY_IN_OUT_NUM: Final = 0
QUERY_INPUT_ATTR: Final = 1
QUERY_OUTPUT_ATTR: Final = 2
QUERY_SDK_VERSION: Final = 5
QUERY_INPUT_DYNAMIC_RANGE: Final = 13
QUERY_CURRENT_OUTPUT_ATTR: Final = 15

MAX_DIMS: Final = 16
MAX_SHAPES: Final = 512

#: Indexed by ``rknn_tensor_type``; an input may have one of the first ten.
DTYPES: Final = (
    *("float32", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "bool"),
    *("int4", "bfloat16"),
)
#: By ``rknn_tensor_format``.
LAYOUTS: Final[tuple[Layout, ...]] = ("NCHW", "NHWC", "NC1HWC2", "UNDEFINED")


class TensorAttr(ctypes.Structure):
    """``rknn_tensor_attr``."""

    _fields_ = (
        *(("index", ctypes.c_uint32), ("n_dims", ctypes.c_uint32), ("dims", ctypes.c_uint32 * MAX_DIMS)),
        *(("name", ctypes.c_char * 256), ("n_elems", ctypes.c_uint32), ("size", ctypes.c_uint32)),
        *(("fmt", ctypes.c_int32), ("type", ctypes.c_int32), ("qnt_type", ctypes.c_int32), ("fl", ctypes.c_int8)),
        *(("zp", ctypes.c_int32), ("scale", ctypes.c_float), ("w_stride", ctypes.c_uint32)),
        *(("size_with_stride", ctypes.c_uint32), ("pass_through", ctypes.c_uint8), ("h_stride", ctypes.c_uint32)),
    )
    n_dims: int
    dims: ctypes.Array[ctypes.c_uint32]
    name: bytes
    fmt: int
    type: int
    qnt_type: int
    fl: int
    zp: int
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions in use."""
        return tuple(self.dims[: self.n_dims])


class InputRange(ctypes.Structure):
    """``rknn_input_range``: the shapes that one input of a dynamic model may have."""

    _fields_ = (
        *(("index", ctypes.c_uint32), ("shape_number", ctypes.c_uint32), ("fmt", ctypes.c_int32)),
        *(("name", ctypes.c_char * 256), ("dyn_range", (ctypes.c_uint32 * MAX_DIMS) * MAX_SHAPES)),
        ("n_dims", ctypes.c_uint32),
    )
    shape_number: int
    fmt: int
    dyn_range: ctypes.Array[ctypes.Array[ctypes.c_uint32]]
    n_dims: int
