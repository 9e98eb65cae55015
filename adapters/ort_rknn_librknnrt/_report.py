"""The properties of a loaded model, queried from the runtime. The answers are bytes from a library and a file, so
everything is limited here."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from math import prod
from typing import Final

from ort_rknn.adapter import (
    NOT_DYNAMIC,
    AdapterError,
    Layout,
    NativeForm,
    RknnError,
    Shape,
    TensorInfo,
)
from ort_rknn.adapter import rknn_api as abi

from ._binding import Binding, Handle, log

_MAX_TENSORS: Final = 512
_MAX_TABLE: Final = 16 << 20
#: Queries, by whether they are about inputs.
_NATIVE: Final = {True: abi.QUERY_NATIVE_INPUT_ATTR, False: abi.QUERY_NATIVE_OUTPUT_ATTR}
_NATIVE_NHWC: Final = {True: abi.QUERY_NATIVE_NHWC_INPUT_ATTR, False: abi.QUERY_NATIVE_NHWC_OUTPUT_ATTR}
_OF_INPUTS: Final = (abi.QUERY_INPUT_ATTR, abi.QUERY_CURRENT_INPUT_ATTR, _NATIVE[True], _NATIVE_NHWC[True])


@dataclass(frozen=True, slots=True)
class RuntimeReport:
    """Everything that is queried once, after loading."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    shape_sets: tuple[tuple[Shape, ...], ...]
    """Per set one shape per input, in the ONNX's axis order."""
    shape_attributes: tuple[ctypes.Array[abi.TensorAttr], ...]
    """Per set the arguments of ``rknn_set_input_shapes``."""
    runtime: str
    driver: str
    custom_string: str


def read_report(binding: Binding, handle: Handle) -> RuntimeReport:
    """Query a context. Raises RknnError if a query fails, AdapterError if an answer is impossible."""
    version = abi.SdkVersion()
    _query(binding, handle, abi.QUERY_SDK_VERSION, version, "the version")
    number = abi.InputOutputNum()
    _query(binding, handle, abi.QUERY_IN_OUT_NUM, number, "the number of inputs and outputs")
    for count, what in ((number.n_input, "inputs"), (number.n_output, "outputs")):
        if not 0 < count <= _MAX_TENSORS:
            raise AdapterError(f"the runtime reports {count} {what}, which is impossible: the model is damaged")
    inputs = [read_attribute(binding, handle, abi.QUERY_INPUT_ATTR, index) for index in range(number.n_input)]
    outputs = [read_attribute(binding, handle, abi.QUERY_OUTPUT_ATTR, index) for index in range(number.n_output)]
    sets, attributes = _shape_sets(binding, handle, inputs)
    return RuntimeReport(
        inputs=tuple(map(abi.tensor_info, inputs)),
        outputs=tuple(map(abi.tensor_info, outputs)),
        shape_sets=sets,
        shape_attributes=attributes,
        runtime=_text(version.api_version),
        driver=_text(version.drv_version),
        custom_string=_custom_string(binding, handle),
    )


def read_layers(binding: Binding, handle: Handle) -> str:
    """The table of the layers of a context's last run. Raises RknnError if the runtime has none, AdapterError if its
    length is impossible."""
    detail = abi.PerfDetail()
    _query(binding, handle, abi.QUERY_PERF_DETAIL, detail, "the times of its layers")
    if not detail.perf_data or not 0 < detail.data_len <= _MAX_TABLE:
        raise AdapterError(f"the runtime gives {detail.data_len} bytes about its layers: no table")
    return _text(ctypes.string_at(detail.perf_data, detail.data_len))


def read_shapes(binding: Binding, handle: Handle, count: int) -> tuple[Shape, ...]:
    """The output shapes for a dynamic model's current shape set."""
    attributes = (read_attribute(binding, handle, abi.QUERY_CURRENT_OUTPUT_ATTR, index) for index in range(count))
    return tuple(attribute.shape for attribute in attributes)


def _query(binding: Binding, handle: Handle, command: int, answer: ctypes.Structure, what: str) -> None:
    code = binding.query(handle.value, command, ctypes.byref(answer), ctypes.sizeof(answer))
    if code:
        raise RknnError("rknn_query", code, f"The runtime does not report {what} of the loaded model.")


def read_attribute(binding: Binding, handle: Handle, command: int, index: int) -> abi.TensorAttr:
    """One ``rknn_tensor_attr``. Raises RknnError."""
    attribute = abi.TensorAttr(index=index)
    side = "input" if command in _OF_INPUTS else "output"
    _query(binding, handle, command, attribute, f"{side} {index}")
    return attribute


def read_native(
    binding: Binding, handle: Handle, is_input: bool, infos: tuple[TensorInfo, ...], *, nhwc: bool
) -> tuple[NativeForm, ...]:
    """How the NPU stores its inputs or outputs. Raises RknnError, AdapterError if an answer is impossible."""
    layout: Layout = "NHWC" if nhwc else "UNDEFINED"
    return tuple(
        _native(
            native_attribute(binding, handle, is_input, index, layout if len(info.shape) == 4 else "UNDEFINED"), info
        )
        for index, info in enumerate(infos)
    )


def native_attribute(binding: Binding, handle: Handle, is_input: bool, index: int, layout: Layout) -> abi.TensorAttr:
    """The form that the runtime stores; ``layout`` "NHWC": its NHWC form, if it would store blocks."""
    attribute = read_attribute(binding, handle, _NATIVE[is_input], index)
    if layout == "NHWC" and attribute.fmt != abi.LAYOUT_CODES["NHWC"]:
        attribute = read_attribute(binding, handle, _NATIVE_NHWC[is_input], index)
    return attribute


def _native(attribute: abi.TensorAttr, info: TensorInfo) -> NativeForm:
    layout = attribute.layout
    shape = attribute.shape
    if layout == "NHWC" and len(shape) == 4 and attribute.w_stride > shape[2]:
        shape = (*shape[:2], attribute.w_stride, shape[3])
    if layout == "NHWC" and attribute.h_stride > shape[1] and shape[0] > 1:
        raise AdapterError(f"tensor {info.name!r} is stored with gaps between its images")
    dtype = attribute.dtype
    blocks = layout == "NC1HWC2" and len(info.shape) == 4
    if dtype != info.dtype or blocks != (len(shape) == 5 != len(info.shape)) or prod(shape) < prod(info.shape):
        raise AdapterError(
            f"the runtime says that tensor {info.name!r} is stored as {dtype} {list(shape)} ({layout}): impossible"
        )
    return NativeForm(layout, shape, max(attribute.size_with_stride, attribute.size))


def _shape_sets(
    binding: Binding, handle: Handle, inputs: list[abi.TensorAttr]
) -> tuple[tuple[tuple[Shape, ...], ...], tuple[ctypes.Array[abi.TensorAttr], ...]]:
    """The sets of a dynamic model; () and () for a static one, which answers the query with a code in
    :data:`~ort_rknn.adapter.NOT_DYNAMIC` or no shapes. Raises RknnError for every other code: a missing device says
    nothing about the model."""
    ranges = []
    for index in range(len(inputs)):
        answer = abi.InputRange(index=index)
        code = binding.query(handle.value, abi.QUERY_INPUT_DYNAMIC_RANGE, ctypes.byref(answer), ctypes.sizeof(answer))
        if code in NOT_DYNAMIC:
            log.debug("the input dynamic range query answers %d: the model is static", code)
            return (), ()
        if code:
            raise RknnError("rknn_query", code, "The runtime does not report the shape sets of the loaded model.")
        ranges.append(answer)
    numbers = {answer.shape_number for answer in ranges if answer.shape_number}
    if not numbers:
        return (), ()
    if len(numbers) > 1 or max(numbers) > abi.MAX_SHAPES:
        raise AdapterError(f"the inputs have different numbers of shapes, or too many: {sorted(numbers)}")
    sets, attributes = [], []
    for chosen in range(numbers.pop()):
        array = (abi.TensorAttr * len(inputs))(*inputs)
        shapes = []
        for attribute, answer in zip(array, ranges, strict=True):
            if answer.shape_number:
                shape = abi.as_shape(answer.dyn_range[chosen], answer.n_dims)
                attribute.n_dims, attribute.fmt = len(shape), answer.fmt
                attribute.dims[: len(shape)] = shape
            else:  # an input that is the same in every set
                shape = attribute.shape
            is_nhwc = attribute.fmt == abi.LAYOUT_CODES["NHWC"] and len(shape) == 4
            shapes.append((shape[0], shape[3], shape[1], shape[2]) if is_nhwc else shape)
        sets.append(tuple(shapes))
        attributes.append(array)
    return tuple(sets), tuple(attributes)


def _custom_string(binding: Binding, handle: Handle) -> str:
    answer = abi.CustomString()
    code = binding.query(handle.value, abi.QUERY_CUSTOM_STRING, ctypes.byref(answer), ctypes.sizeof(answer))
    if code:
        log.debug("the custom string query answers %d: no custom string", code)
        return ""
    return _text(answer.string)


def _text(value: bytes) -> str:
    """A char array up to its first NUL, as ctypes gives it."""
    return value.decode("utf-8", "replace")
