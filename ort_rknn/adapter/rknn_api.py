"""The structures and constants of the librknnrt C interface that adapters and faces use, on 64-bit Linux.

Sizes and offsets are those of runtime 2.3.2, seen to agree with 2.5.0 where tried; a test checks them. Fields keep the
interface's own names.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Final

from .._tensors import INPUT_DTYPES, Layout, Quantization, Shape
from .contract import AdapterError, TensorInfo

MAX_DIMS: Final = 16
MAX_NAME: Final = 256
MAX_SHAPES: Final = 512
MAX_STRING: Final = 1024

QUERY_IN_OUT_NUM: Final = 0
QUERY_INPUT_ATTR: Final = 1
QUERY_OUTPUT_ATTR: Final = 2
QUERY_PERF_DETAIL: Final = 3
QUERY_SDK_VERSION: Final = 5
QUERY_CUSTOM_STRING: Final = 7
QUERY_NATIVE_INPUT_ATTR: Final = 8
QUERY_NATIVE_OUTPUT_ATTR: Final = 9
QUERY_NATIVE_NHWC_INPUT_ATTR: Final = 10
QUERY_NATIVE_NHWC_OUTPUT_ATTR: Final = 11
QUERY_INPUT_DYNAMIC_RANGE: Final = 13
QUERY_CURRENT_INPUT_ATTR: Final = 14
QUERY_CURRENT_OUTPUT_ATTR: Final = 15

SYNC_TO_DEVICE: Final = 1
SYNC_FROM_DEVICE: Final = 2

QUANTIZED_DFP: Final = 1
"""Dynamic fixed point: ``real = stored * 2 ** -fl``."""
QUANTIZED_AFFINE: Final = 2
"""``real = (stored - zp) * scale``."""

#: Indexed by ``rknn_tensor_type``; a caller may pass the first ten.
DTYPES: Final = (*INPUT_DTYPES, "int4", "bfloat16")
DTYPE_CODES: Final[Mapping[str, int]] = {dtype: code for code, dtype in enumerate(DTYPES)}

#: By ``rknn_tensor_format``.
LAYOUTS: Final[tuple[Layout, ...]] = ("NCHW", "NHWC", "NC1HWC2", "UNDEFINED")
LAYOUT_CODES: Final[Mapping[Layout, int]] = {layout: code for code, layout in enumerate(LAYOUTS)}

_QUANTIZABLE: Final = ("int4", "int8", "uint8", "int16", "uint16")


def layout_of(fmt: int) -> Layout:
    """The layout of an ``rknn_tensor_format``; UNDEFINED for an unknown one."""
    return LAYOUTS[fmt] if 0 <= fmt < len(LAYOUTS) else "UNDEFINED"


def as_shape(dims: ctypes.Array[ctypes.c_uint32], n_dims: int) -> Shape:
    """The dimensions in use. Raises AdapterError for more than a tensor can have."""
    if n_dims > MAX_DIMS:
        raise AdapterError(f"the runtime reports a tensor of {n_dims} dimensions, which is impossible")
    return tuple(dims[:n_dims])


class InputOutputNum(ctypes.Structure):
    """``rknn_input_output_num``."""

    _fields_ = (("n_input", ctypes.c_uint32), ("n_output", ctypes.c_uint32))
    n_input: int
    n_output: int


class TensorAttr(ctypes.Structure):
    """``rknn_tensor_attr``: ``index`` is set before a query, the rest is the answer."""

    _fields_ = (
        ("index", ctypes.c_uint32),
        ("n_dims", ctypes.c_uint32),
        ("dims", ctypes.c_uint32 * MAX_DIMS),
        ("name", ctypes.c_char * MAX_NAME),
        ("n_elems", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("fmt", ctypes.c_int32),
        ("type", ctypes.c_int32),
        ("qnt_type", ctypes.c_int32),
        ("fl", ctypes.c_int8),
        ("zp", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("w_stride", ctypes.c_uint32),
        ("size_with_stride", ctypes.c_uint32),
        ("pass_through", ctypes.c_uint8),
        ("h_stride", ctypes.c_uint32),
    )
    index: int
    n_dims: int
    dims: ctypes.Array[ctypes.c_uint32]
    name: bytes
    n_elems: int
    size: int
    fmt: int
    type: int
    qnt_type: int
    fl: int
    zp: int
    scale: float
    w_stride: int
    size_with_stride: int
    pass_through: int
    h_stride: int

    @property
    def shape(self) -> Shape:
        """The dimensions in use. Raises AdapterError for more than a tensor can have."""
        return as_shape(self.dims, self.n_dims)

    @property
    def dtype(self) -> str | None:
        """The compiled type; None if it is unknown here."""
        return DTYPES[self.type] if 0 <= self.type < len(DTYPES) else None

    @property
    def layout(self) -> Layout:
        """The axis order."""
        return layout_of(self.fmt)

    @property
    def quantization(self) -> Quantization | None:
        """None for a tensor that is not quantized; the runtime reports affine for every tensor."""
        whole = self.dtype in _QUANTIZABLE
        if self.qnt_type == QUANTIZED_DFP:
            return Quantization(2.0**-self.fl, 0) if whole else None
        if self.qnt_type == QUANTIZED_AFFINE and (whole or (self.zp, self.scale) != (0, 1.0)):
            return Quantization(self.scale, self.zp)
        return None


class InputRange(ctypes.Structure):
    """``rknn_input_range``: the shapes that one input of a dynamic model may have."""

    _fields_ = (
        ("index", ctypes.c_uint32),
        ("shape_number", ctypes.c_uint32),
        ("fmt", ctypes.c_int32),
        ("name", ctypes.c_char * MAX_NAME),
        ("dyn_range", (ctypes.c_uint32 * MAX_DIMS) * MAX_SHAPES),
        ("n_dims", ctypes.c_uint32),
    )
    index: int
    shape_number: int
    fmt: int
    name: bytes
    dyn_range: ctypes.Array[ctypes.Array[ctypes.c_uint32]]
    n_dims: int


class PerfDetail(ctypes.Structure):
    """``rknn_perf_detail``: text owned by the runtime, and its length."""

    _fields_ = (("perf_data", ctypes.c_void_p), ("data_len", ctypes.c_uint64))
    perf_data: int | None
    data_len: int


class SdkVersion(ctypes.Structure):
    """``rknn_sdk_version``."""

    _fields_ = (("api_version", ctypes.c_char * 256), ("drv_version", ctypes.c_char * 256))
    api_version: bytes
    drv_version: bytes


class CustomString(ctypes.Structure):
    """``rknn_custom_string``."""

    _fields_ = (("string", ctypes.c_char * MAX_STRING),)
    string: bytes


class Input(ctypes.Structure):
    """``rknn_input``."""

    _fields_ = (
        ("index", ctypes.c_uint32),
        ("buf", ctypes.c_void_p),
        ("size", ctypes.c_uint32),
        ("pass_through", ctypes.c_uint8),
        ("type", ctypes.c_int32),
        ("fmt", ctypes.c_int32),
    )
    index: int
    buf: int | None
    size: int
    pass_through: int
    type: int
    fmt: int


class Output(ctypes.Structure):
    """``rknn_output``."""

    _fields_ = (
        ("want_float", ctypes.c_uint8),
        ("is_prealloc", ctypes.c_uint8),
        ("index", ctypes.c_uint32),
        ("buf", ctypes.c_void_p),
        ("size", ctypes.c_uint32),
    )
    want_float: int
    is_prealloc: int
    index: int
    buf: int | None
    size: int


class TensorMem(ctypes.Structure):
    """``rknn_tensor_mem``."""

    _fields_ = (
        ("virt_addr", ctypes.c_void_p),
        ("phys_addr", ctypes.c_uint64),
        ("fd", ctypes.c_int32),
        ("offset", ctypes.c_int32),
        ("size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("priv_data", ctypes.c_void_p),
    )
    virt_addr: int | None


class InitExtend(ctypes.Structure):
    """``rknn_init_extend``, always zero here.

    136 bytes in the interface of 2.3.2 and 144 as passed by rknn-toolkit-lite2 2.5.0, so there is padding for later
    versions.
    """

    _fields_ = (
        ("ctx", ctypes.c_uint64),
        ("real_model_offset", ctypes.c_int32),
        ("real_model_size", ctypes.c_uint32),
        ("model_buffer_fd", ctypes.c_int32),
        ("model_buffer_flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint8 * 112),
        ("slack", ctypes.c_uint8 * 120),
    )


class RunExtend(ctypes.Structure):
    """``rknn_run_extend``. ``timeout_ms`` limits the run, in milliseconds."""

    _fields_ = (
        ("frame_id", ctypes.c_uint64),
        ("non_block", ctypes.c_int32),
        ("timeout_ms", ctypes.c_int32),
        ("fence_fd", ctypes.c_int32),
    )
    frame_id: int
    non_block: int
    timeout_ms: int
    fence_fd: int


def tensor_info(attribute: TensorAttr) -> TensorInfo:
    """An input or output as described by the runtime. Raises AdapterError for an unknown type or rank."""
    name = attribute.name.decode("utf-8", "replace")
    dtype = attribute.dtype
    if dtype is None:
        raise AdapterError(f"tensor {name!r} has type {attribute.type}, which this adapter does not know")
    return TensorInfo(name, attribute.shape, dtype, attribute.layout, attribute.quantization)
