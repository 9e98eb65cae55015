"""The forms of a tensor: its dtype, axis order and memory as ``run`` has them, and as the NPU stores them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ort_rknn.adapter import Quantization

from ._device_values import pack
from ._nodes import NUMPY_DTYPES, Tensor

Array = NDArray[np.generic]


class HasTensors:
    """A session, as far as its values and bindings know it."""

    def _tensors(self, io_kind: str) -> Sequence[Tensor]:
        """Its inputs, or (for "output") its outputs."""
        raise NotImplementedError

    def _device_memory(self, size: int) -> Array | None:
        """``size`` bytes of NPU memory as a uint8 array; None if the session has none."""
        raise NotImplementedError


def to_native_dtype(array: Array, tensor: Tensor) -> Array:
    """The array in the compiled dtype: real numbers are quantized; uint8 pixels for a quantized input stay."""
    native = tensor.native_dtype
    if array.dtype.name == native:
        return array
    if native not in NUMPY_DTYPES:
        raise RuntimeError(f"{tensor.name!r} is compiled as {native}, which numpy lacks; feed run() with float32")
    if tensor.quantization is not None:
        if array.dtype == np.uint8:
            return array
        if array.dtype.kind == "f":
            return quantized(array, tensor.quantization, native)
    if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, native, "same_kind"):
        raise RuntimeError(
            f"{tensor.name!r} holds {native}; an array of {array.dtype.name} would lose its values. Convert it yourself"
        )
    return array.astype(native)


def quantized(array: Array, how: Quantization, native: str) -> Array:
    """Real numbers as stored integers, rounded and clipped to the type's range."""
    limits = np.iinfo(native)
    stored = np.rint(array.astype(np.float32) / np.float32(how.scale)) + how.zero_point
    held: Array = np.clip(stored, limits.min, limits.max).astype(native)
    return held


def real(array: Array, how: Quantization) -> Array:
    """Stored integers as real numbers. The runtime quantizes them back to the same integers."""
    result: Array = (array.astype(np.float32) - np.float32(how.zero_point)) * np.float32(how.scale)
    return result


def is_stored(array: Array, tensor: Tensor | None) -> bool:
    """Whether a device value's array is in the NPU's storage format; otherwise it is in the native layout."""
    return tensor is not None and tensor.stored is not None and array.dtype.name == tensor.native_dtype


def device_shape(tensor: Tensor, shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    """The shape of a device value's array, from the value's shape."""
    if tensor.stored is not None and dtype == tensor.native_dtype:
        stored: tuple[int, ...] = tensor.stored.shape
        return stored
    turn = len(shape) == 4 and tensor.layout == "NCHW"
    return (shape[0], shape[2], shape[3], shape[1]) if turn else shape


def device_array(array: Array, tensor: Tensor, session: HasTensors) -> Array:
    """A device value's array with the content of an array in the axis order of ``run``; in NPU memory, if the session
    has any."""
    content = pack(array, tensor) if is_stored(array, tensor) else to_native_layout(array, tensor)
    memory = session._device_memory(max(content.nbytes, tensor.room)) if content.nbytes else None
    if memory is None:
        return content
    made: Array = memory[: content.nbytes].view(content.dtype).reshape(content.shape)
    made[...] = content
    return made


def to_native_layout(array: Array, tensor: Tensor) -> Array:
    """A C-contiguous copy in the native layout."""
    turn = array.ndim == 4 and tensor.layout == "NCHW" and tensor.native_layout != "NCHW"
    return np.array(array.transpose(0, 2, 3, 1) if turn else array, order="C", copy=True)


def to_logical_layout(array: Array, tensor: Tensor) -> Array:
    """A view in the axis order of ``run``."""
    turn = array.ndim == 4 and tensor.layout == "NCHW" and tensor.native_layout != "NCHW"
    return array.transpose(0, 3, 1, 2) if turn else array
