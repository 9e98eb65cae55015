"""Internals of the vendor's objects that programs use: ``RKNNLite.rknn_runtime`` and ``rknnlite.api.rknn_runtime``.

Names, layouts and codes are those of the runtime's C interface, as used by public programs. On the CPU, and with an
adapter that has no such library, the numbers come from the compiled file, and :attr:`RKNNRuntime.lib` supports little.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from ort_rknn.adapter import RKNN_ERRORS, TensorInfo
from ort_rknn.adapter import rknn_api as abi

if TYPE_CHECKING:
    from ._loading import RunnableModel

__all__ = ["RKNNOutput", "RKNNPerfRun", "RKNNRuntime", "RKNNTensorAttr"]

log: Final = logging.getLogger("ort_rknn.rknnlite")

_BITS: Final = {"float32": 32, "int32": 32, "uint32": 32, "int64": 64, "int8": 8, "uint8": 8, "bool": 8, "int4": 4}
_CODES: Final = {name: code for code, name in RKNN_ERRORS.items()}


def _vendors(name: str) -> str:
    """The vendor's Python name for a field of the C interface."""
    return "stride_with_stride" if name == "size_with_stride" else name


class RKNNTensorAttr(ctypes.Structure):
    """``rknn_tensor_attr``. ``dims`` has 16 entries, of which ``n_dims`` count; a 4-D input's are NHWC."""

    _fields_ = tuple((_vendors(name), kind) for name, kind in abi.TensorAttr._fields_)


class RKNNOutput(ctypes.Structure):
    """``rknn_output``."""

    _fields_ = abi.Output._fields_


class RKNNPerfRun(ctypes.Structure):
    """``rknn_perf_run``: microseconds."""

    _fields_ = (("run_duration", ctypes.c_int64),)


class RKNNRuntime:
    """``RKNNLite.rknn_runtime`` between ``init_runtime`` and ``release``."""

    async_mode = False
    graph_is_built = True

    def __init__(self, loaded: RunnableModel, core_mask: int, set_core_mask: Callable[[int], int]) -> None:
        self._reload = set_core_mask
        self.run_us = 0
        """Of the last run."""
        self.follow(loaded, core_mask)

    def follow(self, loaded: RunnableModel, core_mask: int) -> None:
        """Represent another context from now on."""
        self._loaded = loaded
        self.core_mask = core_mask
        native = loaded.native
        self.context: int = native[1] if native is not None else 0
        """The ``rknn_context``; 0 if there is none."""
        self.lib: Any = _library(native[0]) if native is not None else _NoLibrary(loaded)
        """The runtime's library, with the argument types of its functions declared."""

    @property
    def target_soc(self) -> str:
        """ "RK3588"; on the CPU the SoC that the model was compiled for."""
        return self._loaded.soc.upper()

    @property
    def is_dynamic_shape(self) -> bool:
        return self._loaded.dynamic

    def get_in_out_num(self) -> list[int]:
        """How many inputs and outputs the model has."""
        return [len(self._loaded.tensors_in), len(self._loaded.tensors_out)]

    def get_tensor_attr(self, index: int, is_output: bool = False) -> RKNNTensorAttr:
        """An input or output. Raises IndexError."""
        tensors = self._loaded.tensors_out if is_output else self._loaded.tensors_in
        if not 0 <= index < len(tensors):
            raise IndexError(f"the model has {len(tensors)} {'outputs' if is_output else 'inputs'}, {index} is none")
        attr = _attr_of(index, tensors[index])
        if self._loaded.native is not None:
            asked = RKNNTensorAttr(index=index)
            command = abi.QUERY_OUTPUT_ATTR if is_output else abi.QUERY_INPUT_ATTR
            if self.lib.rknn_query(self.context, command, ctypes.byref(asked), ctypes.sizeof(asked)) == 0:
                return asked
        return attr

    def get_inputs(self) -> list[RKNNTensorAttr]:
        """All inputs."""
        return [self.get_tensor_attr(index) for index in range(len(self._loaded.tensors_in))]

    def get_outputs(self) -> list[RKNNTensorAttr]:
        """All outputs."""
        return [self.get_tensor_attr(index, True) for index in range(len(self._loaded.tensors_out))]

    def get_output_shape(self, index: int) -> list[int]:
        """The shape of an output. Raises IndexError."""
        attr = self.get_tensor_attr(index, True)
        return [int(size) for size in attr.dims[: attr.n_dims]]

    def get_sdk_version(self) -> tuple[str, str, str]:
        """A text for people, and the versions of runtime and driver."""
        versions = self._loaded.versions
        api, driver = versions.get("runtime", "unknown"), versions.get("driver", "unknown")
        return f"API: {api}\nDRV: {driver}", api, driver

    def get_run_perf(self) -> RKNNPerfRun:
        """The duration of the last run as measured here, including conversions of its inputs and outputs."""
        return RKNNPerfRun(run_duration=self.run_us)

    def set_core_mask(self, core_mask: int) -> int:
        """Move the context to other cores: 0, or -1. Waits for an active run."""
        return self._reload(core_mask)


def _attr_of(index: int, tensor: TensorInfo) -> RKNNTensorAttr:
    elements = math.prod(tensor.shape)
    size = -(-elements * _BITS.get(tensor.dtype, 16) // 8)
    attr = RKNNTensorAttr(
        index=index,
        n_dims=len(tensor.shape),
        name=tensor.name.encode()[:255],
        n_elems=elements,
        size=size,
        stride_with_stride=size,
        fmt=abi.LAYOUT_CODES[tensor.layout],
        type=abi.DTYPE_CODES.get(tensor.dtype, abi.DTYPE_CODES["float16"]),
        qnt_type=abi.QUANTIZED_AFFINE,  # as the runtime says of every tensor: scale 1, zero point 0 where not quantized
        scale=1.0,
    )
    for axis, length in enumerate(tensor.shape[:16]):
        attr.dims[axis] = length
    if len(tensor.shape) == 4 and tensor.layout == "NHWC":
        attr.h_stride, attr.w_stride = tensor.shape[1], tensor.shape[2]
    if tensor.quantization is not None:
        attr.scale, attr.zp = tensor.quantization.scale, tensor.quantization.zero_point
    return attr


_U32, _U64, _POINTER = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
_ARGUMENTS: Final[dict[str, Sequence[Any]]] = {
    "rknn_query": (_U64, ctypes.c_int32, _POINTER, _U32),
    "rknn_inputs_set": (_U64, _U32, _POINTER),
    "rknn_run": (_U64, _POINTER),
    "rknn_outputs_get": (_U64, _U32, _POINTER, _POINTER),
    "rknn_outputs_release": (_U64, _U32, _POINTER),
    "rknn_set_core_mask": (_U64, ctypes.c_int32),
}


def _library(path: str) -> ctypes.CDLL:
    """Open the library again, so that its function objects are ours, whatever the program does with them. Without
    declared types, ctypes would pass integers as C int, which truncates a context to half."""
    library = ctypes.CDLL(path)
    for name, types in _ARGUMENTS.items():
        function = library[name]
        function.argtypes, function.restype = types, ctypes.c_int
        setattr(library, name, function)
    return library


class _NoLibrary:
    """Replaces a missing library: functions return an error code and log the reason."""

    def __init__(self, loaded: RunnableModel) -> None:
        self._loaded = loaded

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("rknn_"):
            raise AttributeError(name)

        def call(*_: Any) -> int:
            log.warning("%s of rknn_runtime.lib has no NPU to ask: %s", name, self._loaded.describe())
            return _CODES["RKNN_ERR_DEVICE_UNAVAILABLE"]

        return call

    def rknn_query(self, _context: Any, command: int, answer: Any, size: int) -> int:
        """Supports only the custom string, which is in the file."""
        if command != abi.QUERY_CUSTOM_STRING:
            return self.__getattr__("rknn_query")()
        text = self._loaded.custom_string.encode()
        if len(text) >= size:
            return _CODES["RKNN_ERR_PARAM_INVALID"]
        ctypes.memmove(ctypes.cast(answer, ctypes.c_void_p), text + b"\0", len(text) + 1)
        return 0
