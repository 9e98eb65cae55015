"""Values: arrays that a session's inputs and outputs can be bound to."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ort_rknn._executor.buffers import map_buffer, size_of, table
from ort_rknn._tensors import DTYPE_OF_ELEMENT

from ._device_values import pack, unpack
from ._forms import HasTensors, device_array, device_shape, is_stored, to_logical_layout, to_native_dtype
from ._nodes import NUMPY_DTYPES, Tensor, type_text

Array = NDArray[np.generic]
_FORMATS = {"NCHW": 0, "NHWC": 1, "NC1HWC2": 2, "UNDEFINED": 3}
_FLAGS_THAT_HOLD = (None, "default", "cacheable")
_OTHER_FLAGS = ("non_cacheable", "non-cacheable", "uncached", "try_sram", "sram")


class OrtValue:
    """A tensor in memory. Device "cpu": a numpy array, shared. Device "rknpu2": memory of one input or output of a
    session, in its compiled dtype and the NPU's storage format: NHWC, or blocks of channels with
    ``zero_copy_layout="native"``. On the CPU, and if the device cannot allocate memory, it is host memory.

    Created by the static methods only. Not thread-safe.
    """

    __slots__ = ("_array", "_io_kind", "_on_device", "_session", "_tensor")

    _array: Array
    _io_kind: str
    _on_device: bool
    _session: HasTensors | None
    _tensor: Tensor | None

    def __init__(self) -> None:
        raise TypeError("OrtValue: No constructor defined! Use OrtValue.ortvalue_from_numpy() and its siblings")

    @classmethod
    def _make(
        cls, array: Array, tensor: Tensor | None = None, session: Any = None, io_kind: str = "", on_device: bool = False
    ) -> OrtValue:
        value = object.__new__(cls)
        value._array = array  # device values: in the native layout
        value._tensor = tensor
        value._session = session
        value._io_kind = io_kind
        value._on_device = on_device
        return value

    @staticmethod
    def ortvalue_from_numpy(
        arr: Any,
        device_type: str = "cpu",
        device_id: int = 0,
        *,
        name: str | None = None,
        session: HasTensors | None = None,
        io_kind: str | None = None,
        layout: str = "onnx",
        sync: bool = True,
    ) -> OrtValue:
        """A value with the array's content. "cpu" shares its memory; "rknpu2" copies and needs name, session and
        io_kind ("input", "output").

        Real numbers for a quantized tensor are quantized with its scale and zero point. Raises RuntimeError for a
        different shape, and for a dtype whose integers the tensor's dtype cannot represent.
        """
        array = np.asarray(arr)
        _check_layout(layout)
        if _device(device_type, device_id, session, name, io_kind) == "cpu":
            _check_dtype(array.dtype.name)
            return OrtValue._make(array if array.flags.c_contiguous else np.ascontiguousarray(array))
        assert session is not None and name is not None and io_kind is not None
        tensor = tensor_of(session, name, io_kind)
        _check_shape(tensor, io_kind, array.shape)
        stored = to_native_dtype(array, tensor)
        return OrtValue._make(device_array(stored, tensor, session), tensor, session, io_kind, on_device=True)

    @staticmethod
    def ortvalue_from_shape_and_type(
        shape: Sequence[int],
        element_type: Any,
        device_type: str = "cpu",
        device_id: int = 0,
        *,
        name: str | None = None,
        session: HasTensors | None = None,
        io_kind: str | None = None,
        layout: str = "native",
        mem_flags: Any = "cacheable",
    ) -> OrtValue:
        """A value of zeros. ``element_type``: anything ``np.dtype()`` accepts, or ONNX's number.

        With a session, ``shape`` and ``element_type`` must be the tensor's own (``get_inputs()[i].shape``,
        ``get_native_inputs()[i].type``; uint8 is also accepted for a quantized image input).
        """
        dtype = _element_type(element_type)
        dims = tuple(int(d) for d in shape)
        _check_layout(layout)
        check_flags(mem_flags)
        if _device(device_type, device_id, session, name, io_kind, standalone=True) == "cpu":
            return OrtValue._make(np.zeros(dims, dtype))
        if session is None:
            return OrtValue._make(np.zeros(dims, dtype), on_device=True)
        assert name is not None and io_kind is not None
        tensor = tensor_of(session, name, io_kind)
        check_bound(tensor, io_kind, dims, dtype)
        array = device_array(np.zeros(dims, dtype), tensor, session)
        return OrtValue._make(array, tensor, session, io_kind, on_device=True)

    @staticmethod
    def ortvalue_from_dmabuf(
        fd: int,
        shape: Sequence[int],
        element_type: Any,
        *,
        size: int,
        offset: int = 0,
        virt_addr: int | None = None,
        session: HasTensors | None = None,
        name: str | None = None,
        io_kind: str | None = None,
        layout: str = "native",
    ) -> OrtValue:
        """A value over an existing dma-buf, ``offset`` bytes from its start. ``fd`` is duplicated and mapped here:
        ``virt_addr`` is not needed.

        ``size``: size of the value in bytes. With a session, ``shape`` and ``element_type`` are as in
        :meth:`ortvalue_from_shape_and_type`, and the layout is the one described by ``memory_info()`` and
        ``get_native_inputs()``. Raises RuntimeError for a descriptor that cannot be mapped, and for a buffer that is
        too small.
        """
        dtype = _element_type(element_type)
        dims = tuple(int(d) for d in shape)
        _check_layout(layout)
        _device("rknpu2", 0, session, name, io_kind, standalone=True)
        tensor = None
        if session is not None:
            assert name is not None and io_kind is not None
            tensor = tensor_of(session, name, io_kind)
            check_bound(tensor, io_kind, dims, dtype)
            dims = device_shape(tensor, dims, dtype)
        need = math.prod(dims) * np.dtype(dtype).itemsize
        try:
            there = size_of(fd)
            if offset < 0 or not need <= size <= there - offset:
                raise RuntimeError(
                    f"OrtValue buffer is too small for bound tensor: {need} bytes are needed, and the buffer has "
                    f"{min(size, there - offset)} at offset {offset}"
                )
            whole: Any = map_buffer(os.dup(fd), there)
        except OSError as error:
            raise RuntimeError(f"the dma-buf {fd} cannot be used: {error}") from error
        array: Array = np.ndarray(dims, dtype, whole, offset)
        return OrtValue._make(array, tensor, session, io_kind or "", on_device=True)

    def numpy(self) -> Array:
        """A copy, in the shape and axis order of ``run`` and the value's own dtype."""
        copy: Array = self._logical().copy()
        return copy

    def update_inplace(self, np_arr: Any) -> None:
        """Overwrite the content. Raises RuntimeError for a different shape or dtype."""
        array = np.asarray(np_arr)
        wanted = self._logical()
        if array.shape != wanted.shape:
            raise RuntimeError(
                f"update_inplace source shape mismatch: expected {list(wanted.shape)}, got {list(array.shape)}"
            )
        if array.dtype != wanted.dtype:
            raise RuntimeError(
                f"update_inplace source element type mismatch: expected {wanted.dtype.name}, got {array.dtype.name}"
            )
        if not self._array.flags.writeable:
            raise RuntimeError("update_inplace: the value shares a read-only array")
        if is_stored(self._array, self._tensor):
            self._array[...] = pack(array, self._tensor)  # type: ignore[arg-type]
        else:
            np.copyto(wanted, array)  # a view of our own memory

    def _logical(self) -> Array:
        """In the axis order of ``run``: a view, or a copy of what the NPU stores."""
        if self._tensor is None:
            return self._array
        if is_stored(self._array, self._tensor):
            return unpack(self._array, self._tensor)
        return to_logical_layout(self._array, self._tensor)

    def data_ptr(self) -> int:
        """The address of the memory; for a device value, in its native layout."""
        address: int = self._array.__array_interface__["data"][0]
        return address

    def device_name(self) -> str:
        return "rknpu2" if self._on_device else "cpu"

    device_type = device_name

    def device_id(self) -> int:
        return 0

    def shape(self) -> list[int]:
        return list(self._logical().shape)

    def element_type(self) -> str:
        """As ONNX spells it: "tensor(float16)"."""
        return type_text(self._array.dtype.name)

    data_type = element_type

    def is_tensor(self) -> bool:
        return True

    def has_value(self) -> bool:
        return True

    def sync_to_device(self) -> None:
        """Nothing to do: host memory."""

    def sync_from_device(self) -> None:
        """Nothing to do: host memory."""

    def memory_info(self) -> dict[str, Any]:
        """Where the memory is, and its form. Sizes are in bytes; ``fd`` is -1 if it is not a dma-buf."""
        info: dict[str, Any] = {"device_type": self.device_name(), "device_id": 0}
        if not self._on_device:
            return info
        layout = self._tensor.native_layout if self._tensor is not None else "UNDEFINED"
        size = self._array.nbytes
        entry = table.find(self.data_ptr(), size)
        fd, offset = (-1, 0) if entry is None else (entry.buffer.fd, self.data_ptr() - entry.buffer.address)
        info |= {"size": size, "fd": fd, "offset": offset, "virt_addr": self.data_ptr(), "import_count": 0}
        info |= {"dmabuf_backed": entry is not None, "attr_size": size, "size_with_stride": size}
        info |= {"w_stride": self._array.shape[2] if layout == "NHWC" else 0, "h_stride": 0, "fmt": _FORMATS[layout]}
        info |= {"pass_through": False, "aligned_size": size, "core_id": -1, "layout": "", "strides": []}
        return info

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)


# Checks and conversions -------------------------------------------------------------------------------------------


def tensor_of(session: HasTensors, name: str, io_kind: str) -> Tensor:
    """A session's input or output. Raises RuntimeError for an unknown name."""
    known = session._tensors(io_kind)
    for tensor in known:
        if tensor.name == name:
            return tensor
    raise RuntimeError(f"Unknown {io_kind} name: {name}; the model has {', '.join(t.name for t in known)}")


def check_bound(tensor: Tensor, io_kind: str, shape: tuple[int, ...], dtype: str) -> None:
    """Raise RuntimeError if a value does not fit a tensor. A quantized input also accepts uint8 pixels."""
    _check_shape(tensor, io_kind, shape)
    pixels = io_kind == "input" and tensor.quantization is not None and dtype == "uint8"
    if dtype != tensor.native_dtype and not pixels:
        raise RuntimeError(
            f"OrtValue for {io_kind} '{tensor.name}' element type mismatch: expected {tensor.native_dtype}, got {dtype}"
        )


def _check_shape(tensor: Tensor, io_kind: str, shape: tuple[int, ...]) -> None:
    if len(shape) != len(tensor.shape) or any(isinstance(d, int) and d != n for d, n in zip(tensor.shape, shape)):
        raise RuntimeError(
            f"OrtValue for {io_kind} '{tensor.name}' shape mismatch: expected {list(tensor.shape)}, got {list(shape)}"
        )


def check_flags(mem_flags: Any) -> None:
    """Raise RuntimeError for flags that host memory does not support."""
    if mem_flags in _FLAGS_THAT_HOLD:
        return
    if mem_flags in _OTHER_FLAGS or isinstance(mem_flags, int):
        raise RuntimeError(f"mem_flags={mem_flags!r} is not supported: values live in ordinary, cacheable host memory")
    raise RuntimeError(f"invalid mem_flags: {mem_flags!r}; 'default' and 'cacheable' are accepted")


def _check_layout(layout: Any) -> None:
    if layout not in ("onnx", "native"):
        raise RuntimeError(f"layout={layout!r} is not supported; 'onnx' and 'native' are accepted, and mean the same")


def _check_dtype(name: str) -> None:
    if name not in (*NUMPY_DTYPES, "float64", "uint64"):
        raise RuntimeError(f"Unsupported numpy dtype for RKNN tensor: {name}")


def _element_type(element_type: Any) -> str:
    """numpy's name for anything that ``np.dtype()`` accepts, "tensor(float16)", or ONNX's number."""
    if isinstance(element_type, int) and not isinstance(element_type, bool):
        found = DTYPE_OF_ELEMENT.get(element_type)
        if found is None:
            raise RuntimeError(f"element_type {element_type} is no ONNX type that an NPU tensor can have")
        return found
    try:
        return str(np.dtype(element_type).name)
    except TypeError as error:
        raise TypeError(f"element_type {element_type!r} is not understood: {error}") from None


def _device(device_type: str, device_id: int, session: Any, name: Any, io_kind: Any, standalone: bool = False) -> str:
    """Return "cpu" or "rknpu2", after checking the arguments that go with the latter."""
    if device_type not in ("cpu", "rknpu2", "rknpu3"):
        raise RuntimeError(f"device_type must be 'cpu', 'rknpu2', or 'rknpu3'; got {device_type!r}")
    if device_type == "rknpu3":
        if session is None:
            raise RuntimeError(
                "standalone RKNPU3 OrtValue requires session, name, and io_kind; and RKNPU3 is not supported here"
            )
        raise RuntimeError("OrtValue device_type does not match session provider; expected 'rknpu2'")
    if device_id != 0:
        raise RuntimeError(f"RKNN supports device_id 0 only; got {device_id}")
    if device_type == "rknpu2" and not (standalone and session is None and name is None and io_kind is None):
        if session is None or name is None or io_kind is None:
            raise RuntimeError("an OrtValue on rknpu2 requires session, name and io_kind")
        if io_kind not in ("input", "output"):
            raise RuntimeError(f"io_kind must be 'input' or 'output'; got {io_kind!r}")
    return device_type


def refuse_pointer(what: str) -> NoReturn:
    """Raise the error for calls with a raw address."""
    raise RuntimeError(f"{what}: give an OrtValue instead")
