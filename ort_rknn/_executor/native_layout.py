"""Inputs and outputs in the NPU's own storage format, as requested by ``layout="native"`` and
``output_layout="native"``.

One model's output can then be another's input without any rearranging in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .._errors import FAIL, OptionError, ort_error
from .._options import Options
from .._tensors import DTYPES, Layout, Shape, onnx_order
from ..adapter.contract import AdapterError, Model, NativeForm, RknnError, TensorInfo
from ..adapter.optional import ReportsNativeForms
from .ports import Port, pick
from .signature import Signature

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class NativeLayout:
    """How the NPU stores an input or output, with conversions in both directions."""

    layout: Layout
    """"NC1HWC2": blocks of C2 channels, the last of which may be padded. "NHWC": rows may be padded. Others: as in the
    ONNX."""
    dtype: str
    """The compiled dtype, for quantized tensors that of the stored integers: "float16", "int8" ..."""
    shape: Shape
    """[N, C1, H, W, C2], or [N, H, W, C] where W includes the padding pixels of a row."""
    onnx_shape: Shape
    """The same tensor in the ONNX's axis order: [N, C, H, W]."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes per axis of ``shape``, which is contiguous."""
        itemsize = DTYPES[self.dtype][1]
        return tuple(itemsize * math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))

    def pack(self, array: ArrayLike) -> NDArray[Any]:
        """A new array in the NPU's format, from one in the ONNX's axis order. Padding of blocks and rows is 0.

        Values are kept: those of a quantized tensor are stored integers. Raises ValueError for another shape or dtype.
        """
        given = self._checked(array, self.onnx_shape)
        if self.layout == "NC1HWC2":
            n, c1, h, w, c2 = self.shape
            whole = np.zeros((n, c1 * c2, h, w), self.dtype)
            whole[:, : given.shape[1]] = given
            return np.ascontiguousarray(whole.reshape(n, c1, c2, h, w).transpose(0, 1, 3, 4, 2))
        stored: NDArray[Any] = np.zeros(self.shape, self.dtype)
        if self.layout == "NHWC":
            stored[:, :, : given.shape[3]] = given.transpose(0, 2, 3, 1)
        else:
            stored[...] = given.reshape(self.shape)
        return stored

    def unpack(self, array: ArrayLike) -> NDArray[Any]:
        """A new array in the ONNX's axis order, from one in the NPU's format. Raises ValueError as :meth:`pack`."""
        stored = self._checked(array, self.shape)
        if self.layout == "NC1HWC2":
            n, c1, h, w, c2 = self.shape
            stored = stored.transpose(0, 1, 4, 2, 3).reshape(n, c1 * c2, h, w)[:, : self.onnx_shape[1]]
        elif self.layout == "NHWC":
            stored = stored[:, :, : self.onnx_shape[3]].transpose(0, 3, 1, 2)
        return np.array(stored, order="C").reshape(self.onnx_shape)

    def _checked(self, array: ArrayLike, shape: Shape) -> NDArray[Any]:
        given = np.asarray(array)
        if given.dtype != self.dtype or given.shape != shape:
            raise ValueError(f"expected {self.dtype} {list(shape)}, got {given.dtype} {list(given.shape)}")
        return given


def native_layouts(signature: Signature) -> dict[str, NativeLayout]:
    """The layouts of the inputs and outputs in the NPU's format, by name."""
    found = {}
    for is_input, ports in ((True, signature.inputs), (False, signature.outputs)):
        for port in ports:
            if port.native is not None:
                onnx_shape = onnx_order(port.info.shape, port.info.layout) if is_input else port.info.shape
                shape = port.native.shape
                found[port.name] = NativeLayout(port.native.layout, port.dtype, shape, onnx_shape)
    return found


def in_native_layouts(signature: Signature, model: Model, options: Options, label: str, *, stand_in: bool) -> Signature:
    """The signature, with the inputs and outputs that the options want in the NPU's format.

    Raises OptionError if that is not possible: with this adapter, for a model with several shapes, in another dtype.
    """
    names = [port.name for port in signature.inputs]
    asked = [name for name in names if pick(options.layout, name, "layout", names) == "native"]
    outputs = options.output_layout == "native"
    if not asked and not outputs:
        return signature
    key = options.native_layout
    what = f"provider option {key}='native' of {label}"
    _check(options, asked, names, key)
    of_inputs, of_outputs = _forms(model, what, stand_in)
    inputs = tuple(
        _native(port, of_inputs[port.index]) if port.name in asked and port.on_npu else port
        for port in signature.inputs
    )
    for port in inputs:
        _check_read_from_memory(port, what)
    made = tuple(
        _native(port, of_outputs[signature.model_index(port)]) if outputs and port.constant is None else port
        for port in signature.outputs
    )
    notes = [
        f"{side} {port.name!r}: as the NPU stores it, {port.dtype} {list(port.dims)} {port.layout}"
        for side, ports in (("input", inputs), ("output", made))
        for port in ports
        if port.native is not None
    ]
    compiled = [port.native.shape if port.native else shape for port, shape in zip(inputs, signature.sets[0])]
    return replace(
        signature,
        inputs=inputs,
        outputs=made,
        split=None,
        sets=(tuple(compiled),),
        notes=(*signature.notes, *notes),
    )


def _check(options: Options, asked: list[str], names: list[str], key: str) -> None:
    """Raise OptionError for options that do not combine with it."""
    for name in asked:
        dtype = pick(options.input_dtype, name, "input_dtype", names)
        if dtype not in (None, "native"):
            raise OptionError(
                f"provider options layout='native' and input_dtype={dtype!r} exclude each other: input {name!r} is "
                "taken as it is stored; leave input_dtype out"
            )
    for other, value in (("on_missing_shape", options.on_missing_shape), ("split_batch", options.split_batch)):
        if other in options.given and value not in ("error", "auto", False):
            raise OptionError(
                f"provider options {key}='native' and {other}={value!r} exclude each other: only the compiled shape "
                "is stored in such a way"
            )


def _check_read_from_memory(port: Port, what: str) -> None:
    """Raise OptionError for an input that would need conversion: either all tensors of a run are in the NPU's memory,
    or none."""
    as_stored = port.wire_dtype == port.info.dtype and (port.raw or port.info.quantization is None)
    four = len(port.info.shape) == 4
    fits = as_stored if not four else port.wire_layout == "NHWC" and (as_stored or port.wire_dtype == "uint8")
    if port.on_npu and port.native is None and not fits:
        form = f"{port.dtype} {port.layout}" if four else port.dtype
        pixels = ", or pixels (layout='nhwc', input_dtype='uint8')" if four else ""
        raise OptionError(
            f"{what}: its input {port.name!r} is {form}, which the runtime would have to convert, and then it does not "
            f"give tensors as they are stored. Feed it {port.info.dtype} as it is stored (layout='native'){pixels}"
        )


def _forms(model: Model, what: str, stand_in: bool) -> tuple[tuple[NativeForm, ...], tuple[NativeForm, ...]]:
    if stand_in:
        raise OptionError(f"{what}: it is a stand-in, which nobody compiled, so the NPU stores nothing of it")
    if not hasattr(model, "native_forms"):
        raise OptionError(
            f"{what}: its adapter does not report how the NPU stores tensors; use the adapter 'librknnrt'"
        )
    try:
        return cast(ReportsNativeForms, model).native_forms()
    except RknnError as error:
        raise ort_error(FAIL, f"{what}: {error}") from error
    except AdapterError as error:
        raise OptionError(f"{what}: {error}") from None


def _native(port: Port, form: NativeForm) -> Port:
    if form.layout not in ("NC1HWC2", "NHWC"):
        form = replace(form, shape=_shape_as_stored(port, port.info))
    return replace(port, dims=form.shape, layout=form.layout, wire_layout=form.layout, native=form)


def _shape_as_stored(port: Port, info: TensorInfo) -> Shape:
    """The shape of a tensor that is stored as in the ONNX; axes of length 1 may be placed differently in the compiled
    model."""
    fixed = tuple(dim for dim in port.dims if isinstance(dim, int))
    return fixed if len(fixed) == len(port.dims) and math.prod(fixed) == math.prod(info.shape) else info.shape
