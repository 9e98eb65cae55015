"""The kernel: one run of an EPContext node, between onnxruntime's buffers and the executor."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import byref, c_int64, c_size_t, c_void_p, memmove, string_at
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import FAIL, INVALID_ARGUMENT, ort_error
from .._executor.calls import Call
from .._executor.executor import Executor
from .._tensors import Shape
from ..adapter.addresses import array_at
from ..files.feedable import placeholder
from . import handoff
from .abi import Api, OrtCallFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..files import OnnxValue

#: The number of plans that a kernel caches.
_KEPT = 128
#: Per output of the signature: index in the kernel context, dims as a C array, rank; or, for an unused output: None,
#: the address of a buffer, and its array, which the plan keeps alive.
_Plan = tuple[tuple["int | None", Any, Any], ...]


class Kernel:
    """Runs an executor on the inputs and outputs of a kernel context.

    ``inputs`` and ``outputs`` map each port of the executor's signature to the index among the fused node's own (None:
    an input that nothing reads, or an unused output, which the fused node lacks). ``checked``: the inputs come from
    other nodes, so onnxruntime does not check their shapes against our signature. ``feedable``: initializers that may
    be fed, each with its index among the fused node's inputs.
    """

    def __init__(
        self,
        api: Api,
        executor: Executor,
        inputs: tuple[int | None, ...],
        outputs: tuple[int | None, ...],
        checked: bool,
        feedable: tuple[tuple[int, OnnxValue], ...] = (),
    ) -> None:
        self.executor = executor
        #: Whether the session is one of ours.
        self.ours = not checked or handoff.making() is not None
        self._api = api
        self._get_input = api.KernelContext_GetInput
        self._get_output = api.KernelContext_GetOutput
        self._get_data = api.GetTensorMutableData
        self._inputs = inputs
        self._outputs = outputs
        self._feedable = [
            (index, value.name, value.dtype or "", placeholder(value) or b"") for index, value in feedable
        ]
        self._static = None if checked or feedable else executor.static_call
        self._unread = {
            place: np.zeros(executor.signature.sets[0][place], executor.signature.inputs[place].dtype)
            for place, index in enumerate(inputs)
            if index is None
        }
        self._plans: dict[Call, _Plan] = {}
        # Calls already found: finding one again costs more than the rest of our code in a run.
        self._found: dict[tuple[Shape, ...], Call] = {}
        self._sizes: list[dict[Shape, int]] = [{} for _ in inputs]

    def compute(self, context: int) -> None:
        """One run. Input views are onnxruntime's memory: their addresses are not kept beyond it."""
        cell = c_void_p()
        ref = byref(cell)
        get_data = self._get_data
        check = self._api.check
        sources: list[int] = []
        static = self._static
        shapes: list[Shape] = []
        for index in self._inputs:
            if index is None:
                unread = self._unread[len(sources)]
                shapes.append(unread.shape)
                sources.append(unread.ctypes.data)
                continue
            status = self._get_input(context, index, ref)
            if status:
                check(status)
            if static is None:
                shapes.append(self._shape(cell, len(shapes)))
                self._check_size(cell, shapes[-1], len(shapes) - 1)
            status = get_data(cell, ref)
            if status:
                self._api.ReleaseStatus(status)
                raise self._missing(len(sources))
            sources.append(cell.value or 0)
        if self._feedable and (fed := self._fed(context)):
            self._give(context, self.executor.run_fed(tuple(shapes), sources, fed))
            return
        call = static or self._call(tuple(shapes))
        if call is None:
            self._compute_onnx(context, tuple(shapes), sources)
            return
        plan = self._plans.get(call) or self._plan(call)
        targets: list[int] = []
        for output, dims, rank in plan:
            if output is None:
                targets.append(dims)
                continue
            status = self._get_output(context, output, dims, rank, ref)
            if status:
                check(status)
            status = get_data(cell, ref)
            if status:
                check(status)
            targets.append(cell.value or 0)
        self.executor.execute(call, sources, targets)

    def _compute_onnx(self, context: int, shapes: tuple[Shape, ...], sources: list[int]) -> None:
        """Run a shape that was not compiled on the ONNX: its output shapes are known only afterwards."""
        self._give(context, self.executor.run_onnx(shapes, sources))

    def _give(self, context: int, results: Sequence[NDArray[np.generic]]) -> None:
        cell = c_void_p()
        for output, result in zip(self._outputs, results):
            if output is None:
                continue
            dims = (c_int64 * result.ndim)(*result.shape)
            self._api.check(self._get_output(context, output, dims, result.ndim, byref(cell)))
            self._api.check(self._get_data(cell, byref(cell)))
            if result.nbytes:
                memmove(cell, result.ctypes.data, result.nbytes)

    def _fed(self, context: int) -> dict[str, NDArray[np.generic]]:
        """The initializers that this call feeds, as views of onnxruntime's memory."""
        found: dict[str, NDArray[np.generic]] = {}
        value, size = c_void_p(), c_size_t()
        for index, name, dtype, unfed in self._feedable:
            self._api.check(self._get_input(context, index, byref(value)))
            self._api.check(self._api.GetTensorSizeInBytes(value, byref(size)))
            shape = () if size.value == len(unfed) else self._dims(value)
            tensor = c_void_p(value.value)
            self._api.check(self._get_data(tensor, byref(tensor)))
            if not shape and string_at(tensor.value or 0, size.value) == unfed:
                continue
            found[name] = array_at(tensor.value or 0, shape or self._dims(value), dtype)
        return found

    def _dims(self, value: c_void_p) -> Shape:
        api = self._api
        info, count = c_void_p(), c_size_t()
        api.check(api.GetTensorTypeAndShape(value, byref(info)))
        try:
            api.check(api.GetDimensionsCount(info, byref(count)))
            dims = (c_int64 * count.value)()
            api.check(api.GetDimensions(info, dims, count.value))
        finally:
            api.ReleaseTensorTypeAndShapeInfo(info)
        return tuple(dims)

    def _shape(self, value: c_void_p, place: int) -> Shape:
        if not value.value:
            raise self._missing(place)
        try:
            return self._dims(value)
        except OrtCallFailed:
            raise self._missing(place) from None

    def _missing(self, place: int) -> Exception:
        """The error for a missing input: with bound inputs, onnxruntime leaves this check to the kernels."""
        return ort_error(FAIL, f"Missing Input: {self.executor.signature.inputs[place].name}")

    def _call(self, shapes: tuple[Shape, ...]) -> Call | None:
        found = self._found.get(shapes)
        if found is not None:
            return found
        executor = self.executor
        for port, shape in zip(executor.signature.inputs, shapes):
            if not port.takes(shape):
                raise ort_error(
                    INVALID_ARGUMENT,
                    f"{executor.label}: input {port.name!r} has shape {list(port.dims)}, got {list(shape)}",
                )
        call = executor.call_for(shapes)
        if call is not None:
            if len(self._found) >= _KEPT:
                self._found.clear()
            self._found[shapes] = call
        return call

    def _check_size(self, value: c_void_p, shape: Shape, index: int) -> None:
        """Check the buffer size: the runtime gets only the address and the size, so they must agree."""
        size = c_size_t()
        self._api.check(self._api.GetTensorSizeInBytes(value, byref(size)))
        sizes = self._sizes[index]
        if size.value == sizes.get(shape):
            return
        port = self.executor.signature.inputs[index]
        wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(port.dtype).itemsize
        if size.value == wanted:
            if len(sizes) >= _KEPT:
                sizes.clear()
            sizes[shape] = wanted
        else:
            raise ort_error(
                INVALID_ARGUMENT,
                f"{self.executor.label}: input {port.name!r} should be {port.dtype} and {wanted} bytes, "
                f"got {size.value} bytes",
            )

    def _plan(self, call: Call) -> _Plan:
        rows: list[tuple[int | None, Any, Any]] = []
        for port, output, shape in zip(self.executor.signature.outputs, self._outputs, call.output_shapes):
            if output is None:
                spare = np.empty(shape, port.dtype)
                rows.append((None, spare.ctypes.data, spare))
            else:
                rows.append((output, (c_int64 * len(shape))(*shape), len(shape)))
        if len(self._plans) >= _KEPT:
            self._plans.clear()
        plan = self._plans[call] = tuple(rows)
        return plan

    def close(self) -> None:
        """Release the executor: the session is gone."""
        self.executor.close()
