"""A model loaded by the vendor's package: what the runtime reports about it, and its contexts."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from ort_rknn.adapter import (
    CORE_MASK_ALL,
    CORE_MASK_AUTO,
    NOT_DYNAMIC,
    AdapterError,
    Device,
    ModelSource,
    RknnError,
    Shape,
    TensorInfo,
    onnx_order,
)
from ort_rknn.adapter import rknn_api as abi

from ._board import DISTRIBUTION, find_package
from ._context import Lite2Context
from ._instance import Instance

_MAX_TENSORS: Final = 512


def load_model(device: Device, source: ModelSource) -> Lite2Model:
    """Load with the vendor's package. Raises RknnError, AdapterError, and then leaves nothing open."""
    if (source.path is None) == (source.data is None):
        raise AdapterError("a model is given either as a path or as bytes")
    if source.path is not None and source.file is None and not os.path.isfile(source.path):
        raise AdapterError(f"the model {source.path} is not a file")
    first = Instance(device, source)
    try:
        return Lite2Model(device, source, first)
    except BaseException:
        first.release()
        raise


class Lite2Model:
    """A loaded model. See :class:`ort_rknn.adapter.Model`.

    Every context is an object of the vendor's class that loads the model itself. The object created by loading becomes
    the first context. A model that is dropped without close() still releases its objects, although the vendor's class
    has no ``__del__``.
    """

    def __init__(self, device: Device, source: ModelSource, first: Instance) -> None:
        self._device = device
        self._source: ModelSource | None = source
        self._spare: Instance | None = first
        self._lock = threading.Lock()
        self._inputs, self._outputs = _tensors(first)
        self._sets = _shape_sets(first, len(self._inputs))
        static = (tuple(info.shape for info in self._outputs),)
        self._output_sets = _output_sets(first, self._inputs, self._sets, len(self._outputs)) if self._sets else static
        self._versions = MappingProxyType(
            {
                **_runtime_versions(first),
                "package": f"{DISTRIBUTION} {find_package()}",
                "weights": f"loaded anew by every context, {DISTRIBUTION} cannot share them",
            }
        )
        self._open: list[Instance] = [first]
        self._finalizer = weakref.finalize(self, _release, self._open)
        self._finalizer.atexit = False  # at exit, the process's end frees more safely than a call into a library

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return self._outputs

    @property
    def shape_sets(self) -> tuple[tuple[Shape, ...], ...]:
        return self._sets

    @property
    def versions(self) -> Mapping[str, str]:
        return self._versions

    def output_shapes(self, shape_set: int | None) -> tuple[Shape, ...]:
        """The output shapes for a shape set, read when the model was loaded."""
        if (shape_set is None) == bool(self._sets) or not 0 <= (shape_set or 0) < len(self._output_sets):
            raise AdapterError(f"the model has {len(self._sets) or 'no'} shape sets, and {shape_set} is none")
        return self._output_sets[shape_set or 0]

    def context(self, core_mask: int) -> Lite2Context:
        """A context on ``core_mask``: the one created by loading, or another one that loads the model again."""
        with self._lock:
            if self._source is None:
                raise AdapterError("the model is closed")
            instance = self._spare
            if instance is None:
                instance = Instance(self._device, self._source)
                self._open.append(instance)
            try:
                self._set_core_mask(instance, core_mask)
            except RknnError:
                if instance is not self._spare:
                    self._open.remove(instance)
                    instance.release()
                raise
            self._spare = None
            return Lite2Context(self, instance, core_mask)

    def close(self) -> None:
        """Release every object. Idempotent."""
        with self._lock:
            self._source = self._spare = None
            self._finalizer()

    def give_back(self, instance: Instance) -> None:
        """Release the object of a context that closes."""
        with self._lock:
            if instance in self._open:
                self._open.remove(instance)
                instance.release()

    def _set_core_mask(self, instance: Instance, core_mask: int) -> None:
        cores = self._device.cores
        if cores == 1 and core_mask in (CORE_MASK_AUTO, 1, CORE_MASK_ALL):
            return  # a single core needs no mask, and its runtime returns -13 for one
        # Like the package, which never passes 0xffff.
        mask = (1 << cores) - 1 if core_mask == CORE_MASK_ALL else core_mask
        if mask != CORE_MASK_AUTO:
            instance.set_core_mask(mask)


def _release(instances: list[Instance]) -> None:
    while instances:
        instances.pop().release()


# What the runtime says -------------------------------------------------------------------------------------------


def _query(instance: Instance, command: int, answer: Any) -> int:
    size = ctypes.c_uint32(ctypes.sizeof(answer))
    return instance.call("rknn_query", ctypes.c_int32(command), ctypes.byref(answer), size)


def _ask(instance: Instance, command: int, answer: Any, what: str) -> None:
    code = _query(instance, command, answer)
    if code:
        raise RknnError("rknn_query", code, f"The runtime does not report {what} of the loaded model.")


def _attribute(instance: Instance, command: int, index: int) -> abi.TensorAttr:
    attribute = abi.TensorAttr(index=index)
    _ask(instance, command, attribute, f"{'input' if command == abi.QUERY_INPUT_ATTR else 'output'} {index}")
    return attribute


def _tensors(instance: Instance) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    number = (ctypes.c_uint32 * 2)()
    _ask(instance, abi.QUERY_IN_OUT_NUM, number, "the number of inputs and outputs")
    sides = []
    for count, command, what in zip(number, (abi.QUERY_INPUT_ATTR, abi.QUERY_OUTPUT_ATTR), ("inputs", "outputs")):
        if not 0 < count <= _MAX_TENSORS:
            raise AdapterError(f"the runtime reports {count} {what}, which is impossible: the model is damaged")
        sides.append(tuple(abi.tensor_info(_attribute(instance, command, index)) for index in range(count)))
    return sides[0], tuple(map(_as_given, sides[1]))


def _as_given(output: TensorInfo) -> TensorInfo:
    """The output as the package returns it, in float32, which can only be converted back to types without a scale."""
    return replace(output, raw=output.quantization is None and output.dtype not in ("int4", "bfloat16"))


def _runtime_versions(instance: Instance) -> dict[str, str]:
    answer = ((ctypes.c_char * 256) * 2)()
    _ask(instance, abi.QUERY_SDK_VERSION, answer, "the version")
    runtime, driver = (text.value.decode("utf-8", "replace") for text in answer)
    return {"runtime": runtime, "driver": driver}


def _shape_sets(instance: Instance, inputs: int) -> tuple[tuple[Shape, ...], ...]:
    """The sets of a dynamic model in the ONNX's axis order; () for a static one, which answers with
    :data:`~ort_rknn.adapter.NOT_DYNAMIC`. Raises RknnError for every other code."""
    ranges = []
    for index in range(inputs):
        answer = abi.InputRange(index=index)
        code = _query(instance, abi.QUERY_INPUT_DYNAMIC_RANGE, answer)
        if code in NOT_DYNAMIC:
            return ()
        if code:
            raise RknnError("rknn_query", code, "The runtime does not report the shape sets of the loaded model.")
        ranges.append(answer)
    numbers = {answer.shape_number for answer in ranges}
    if numbers == {0}:
        return ()
    if len(numbers) > 1 or max(numbers) > abi.MAX_SHAPES or any(a.n_dims > abi.MAX_DIMS for a in ranges):
        raise AdapterError(f"the inputs have different numbers of shapes, or too many: {sorted(numbers)}")
    return tuple(
        tuple(onnx_order(tuple(a.dyn_range[chosen][: a.n_dims]), abi.layout_of(a.fmt)) for a in ranges)
        for chosen in range(numbers.pop())
    )


def _output_sets(
    instance: Instance, inputs: Sequence[TensorInfo], sets: Sequence[tuple[Shape, ...]], outputs: int
) -> tuple[tuple[Shape, ...], ...]:
    """Per set the output shapes. AdapterError if the package would return arrays of another shape.

    rknn-toolkit-lite2 2.5.0 sizes its results by the plain output attribute. If that stays at the largest shape, the
    result for a smaller one extends into unowned memory.
    """
    found = []
    for shapes in sets:
        given = (_attribute(instance, abi.QUERY_INPUT_ATTR, index) for index in range(len(inputs)))
        array = (abi.TensorAttr * len(inputs))(*given)
        for attribute, info, shape in zip(array, inputs, shapes):
            native = (shape[0], shape[2], shape[3], shape[1]) if info.layout == "NHWC" and len(shape) == 4 else shape
            attribute.n_dims, attribute.dims[: len(native)] = len(native), native
        code = instance.call("rknn_set_input_shapes", ctypes.c_uint32(len(array)), ctypes.byref(array))
        if code:
            raise RknnError("rknn_set_input_shapes", code, "The runtime refuses one of the model's own shape sets.")
        current = tuple(_attribute(instance, abi.QUERY_CURRENT_OUTPUT_ATTR, k).shape for k in range(outputs))
        plain = tuple(_attribute(instance, abi.QUERY_OUTPUT_ATTR, k).shape for k in range(outputs))
        if current != plain:
            raise AdapterError(
                f"the model is dynamic, and this runtime reports its outputs as {plain} where they are {current}: "
                f"{DISTRIBUTION} would return memory beyond them. Use the adapter 'librknnrt', or a static model."
            )
        found.append(current)
    return tuple(found)
