"""Device values of a session on the NPU: the form of its inputs and outputs in memory shared with the NPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from ort_rknn._executor.allocation import allocate
from ort_rknn._executor.calls import Call, nbytes
from ort_rknn._executor.native_layout import NativeLayout
from ort_rknn.adapter import AdapterError, CallForm, Model, NativeForm, PortForm, Shape, TensorInfo
from ort_rknn.adapter.plugins import Found

from ._feeds import Array
from ._nodes import NUMPY_DTYPES, Tensor, exchanged


class DeviceValues:
    """A session's device values. Raises RuntimeError if ``zero_copy_layout="native"`` is not possible; NHWC values are
    host memory then."""

    def __init__(self, model: Model, found: Found, zero_copy_layout: str) -> None:
        self._found = found
        self.native = zero_copy_layout == "native"
        self._forms = self._asked(model)
        self._calls: dict[tuple[bool, ...], Call] = {}

    def _asked(self, model: Model) -> tuple[Sequence[NativeForm], Sequence[NativeForm]] | None:
        why = f"the adapter {self._found.adapter.name} does not report them"
        if hasattr(model, "native_forms"):
            try:
                return model.native_forms(nhwc=not self.native)  # type: ignore[no-any-return]
            except AdapterError as error:
                why = str(error)
        if self.native:
            raise RuntimeError(f"zero_copy_layout='native' needs the NPU's own layouts: {why}")
        return None

    def stored(
        self, is_input: bool, index: int, info: TensorInfo, onnx_shape: Shape
    ) -> tuple[NativeLayout | None, int]:
        """The form of one of them, and the size in bytes that the runtime requires; None if numpy lacks its dtype, or
        the form is unknown."""
        if self._forms is None or info.dtype not in NUMPY_DTYPES:
            return None, 0
        form = self._forms[0 if is_input else 1][index]
        shape = form.shape if form.layout in ("NC1HWC2", "NHWC") else onnx_shape
        return NativeLayout(form.layout, info.dtype, shape, onnx_shape), form.nbytes

    def memory(self, size: int) -> Array | None:
        """New memory shared with the NPU; None if the device cannot allocate any."""
        try:
            return allocate(self._found, size)
        except (Fail, OSError):
            return None

    def call(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], pixels: tuple[bool, ...]) -> Call:
        """The call for stored inputs and outputs. ``pixels``: inputs that are uint8 NHWC instead."""
        made = self._calls.get(pixels)
        if made is None:
            given = tuple(_pixels(t) if p else _as_stored(t, is_input=True) for t, p in zip(inputs, pixels))
            gives = tuple(_as_stored(t, is_input=False) for t in outputs)
            fed, got = tuple(port.shape for port in given), tuple(port.shape for port in gives)
            sizes = tuple(port.nbytes for port in given), tuple(port.nbytes for port in gives)
            form = CallForm(given, gives)
            made = Call(form, fed, got, got, 1, *sizes, direct=True, padded=False)
            self._calls[pixels] = made
        return made


def _as_stored(tensor: Tensor, *, is_input: bool) -> PortForm:
    how = tensor.stored
    assert how is not None
    return PortForm(how.dtype, how.layout, how.shape, nbytes(how.shape, how.dtype), is_input, native=True)


def _pixels(tensor: Tensor) -> PortForm:
    how = tensor.stored
    assert how is not None
    shape = exchanged(how.onnx_shape) if len(how.onnx_shape) == 4 else how.onnx_shape
    return PortForm("uint8", "NHWC" if len(shape) == 4 else "UNDEFINED", shape, nbytes(shape, "uint8"))


def pack(array: Array, tensor: Tensor) -> Array:
    """The array, in the axis order of ``run``, converted to the form in which ``tensor`` is stored."""
    how = tensor.stored
    assert how is not None
    turned = array.transpose(0, 3, 1, 2) if array.ndim == 4 and tensor.layout == "NHWC" else array
    packed: Array = how.pack(turned.reshape(how.onnx_shape))
    return packed


def unpack(stored: Array, tensor: Tensor) -> Array:
    """The inverse of :func:`pack`."""
    how = tensor.stored
    assert how is not None
    array = how.unpack(stored)
    turned: Array = array.transpose(0, 2, 3, 1) if array.ndim == 4 and tensor.layout == "NHWC" else array
    return np.ascontiguousarray(turned).reshape(turned.shape)
