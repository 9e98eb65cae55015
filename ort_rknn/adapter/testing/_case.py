"""A model with inputs and the expected outputs, and how to run it through the adapter contract."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..contract import CallForm, Context, LoadSettings, Model, ModelSource, PortForm, TensorInfo
from ..optional import BindsBuffers
from ._shared import SharedTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Guard bytes before and after a buffer, which must not be written.
_GUARD = 256
#: The content of a buffer before a run: NaN in every float type.
_FILL = 0xFF


@dataclass(frozen=True, eq=False)
class Case:
    """A compiled model, its inputs, and the expected outputs."""

    name: str
    """The test id in pytest."""
    compiled: str | os.PathLike[str]
    """The compiled model's file."""
    inputs: Mapping[str, NDArray[Any]]
    """By name, in the ONNX's axis order, with a dtype that the runtime accepts (float32 for a float16 model)."""
    outputs: Mapping[str, NDArray[Any]]
    """By name. float32, to which the runtime widens and dequantizes, or the compiled dtype of a tensor that is not
    quantized."""
    tolerance: float | Mapping[str, float] = 0.0
    """The maximum absolute difference, for all outputs or by name."""
    onnx: str | os.PathLike[str] | None = None
    """The file of the ONNX that the model was made from (:attr:`~ort_rknn.adapter.LoadSettings.twin`)."""
    shape_set: int | None = None
    """For a dynamic model: the shape set of the inputs."""

    def source(self) -> ModelSource:
        """The compiled model as a file."""
        return ModelSource(path=os.fspath(self.compiled))

    def settings(self, **given: Any) -> LoadSettings:
        """Settings for loading, with the ONNX if there is one."""
        return LoadSettings(twin=None if self.onnx is None else os.fspath(self.onnx), **given)

    def check(self, results: Mapping[str, NDArray[Any]]) -> None:
        """Raise AssertionError if ``results`` are not the outputs of this case."""
        for name, right in self.outputs.items():
            result = results[name]
            assert result.size == right.size, f"output {name!r} has shape {result.shape}; the case says {right.shape}"
            given, wanted = (a.reshape(-1).astype(np.float64) for a in (result, right))
            allowed = self.tolerance if isinstance(self.tolerance, (int, float)) else self.tolerance[name]
            off = ~((np.abs(given - wanted) <= allowed) | (given == wanted) | (np.isnan(given) & np.isnan(wanted)))
            if off.any():
                first = int(off.argmax())
                raise AssertionError(
                    f"output {name!r} is wrong in {int(off.sum())} of {off.size} elements: element {first} is "
                    f"{given[first]}, expected {wanted[first]} with a tolerance of {allowed}"
                )


class Buffer:
    """Memory for one tensor, with guards around it: there are at least ``room`` bytes for the tensor and behind it."""

    def __init__(self, shape: tuple[int, ...], dtype: str, room: int = 0) -> None:
        self._nbytes = nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        self._bytes = np.full(max(nbytes, room) + 2 * _GUARD, _FILL, np.uint8)
        self.address: int = self._bytes.ctypes.data + _GUARD
        self.array = self._bytes[_GUARD : _GUARD + nbytes].view(dtype).reshape(shape)

    def check_guards(self, what: str) -> None:
        """Raise AssertionError if anything beside the tensor was written."""
        around = np.concatenate([self._bytes[:_GUARD], self._bytes[_GUARD + self._nbytes :]])
        assert (around == _FILL).all(), f"the run wrote beyond the buffer of {what}"


class CaseRuns:
    """Runs of a case on one loaded model: one form, and new buffers for every run.

    ``channels_last`` feeds 4-D inputs as NHWC; ``narrow`` feeds floats as float16 if the model stores them so.
    ``stored`` asks for outputs in their compiled dtypes where possible.
    """

    def __init__(
        self, model: Model, case: Case, *, channels_last: bool = False, narrow: bool = False, stored: bool = False
    ) -> None:
        self.case = case
        self._outputs = model.outputs
        self._arrays: list[NDArray[Any]] = []
        inputs = []
        for info in model.inputs:
            array = np.asarray(case.inputs[info.name])
            layout = "NCHW" if array.ndim == len(info.shape) == 4 else "UNDEFINED"
            if layout == "NCHW" and channels_last:
                array, layout = array.transpose(0, 2, 3, 1), "NHWC"
            if narrow and info.dtype == "float16" and array.dtype.kind == "f":
                array = array.astype(np.float16)
            array = np.ascontiguousarray(array).reshape(array.shape)
            self._arrays.append(array)
            inputs.append(PortForm(array.dtype.name, layout, array.shape, array.nbytes))  # type: ignore[arg-type]
        outputs = []
        for info, shape in zip(model.outputs, model.output_shapes(case.shape_set)):
            dtype = info.dtype if stored and can_be_stored(info) else np.asarray(case.outputs[info.name]).dtype.name
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            outputs.append(PortForm(dtype, "UNDEFINED", tuple(shape), nbytes))
        self.form = CallForm(tuple(inputs), tuple(outputs), case.shape_set)

    def run(self, context: Context, form: CallForm | None = None, *, others: bool = False) -> dict[str, NDArray[Any]]:
        """Run once; returns the outputs by name, as real numbers. AssertionError if the run wrote where it must not.

        ``others`` feeds inputs other than the case's: the same elements, backwards.
        """
        form = form or self.form
        arrays = [array.reshape(-1)[::-1].reshape(array.shape) for array in self._arrays] if others else self._arrays
        room = max((port.nbytes for port in form.inputs), default=0)  # an impossible form may claim more than there is
        fed = [Buffer(array.shape, array.dtype.name, room) for array in arrays]
        for buffer, array in zip(fed, arrays):
            buffer.array[...] = array
        got = [Buffer(port.shape, port.dtype) for port in form.outputs]
        try:
            context.run(form, [b.address for b in fed[: len(form.inputs)]], [b.address for b in got])
        finally:
            for index, (buffer, array) in enumerate(zip(fed, arrays)):
                same = buffer.array.tobytes() == array.tobytes()
                assert same, f"the run changed its input {index}, which is the caller's"
                buffer.check_guards(f"input {index}")
            for info, buffer in zip(self._outputs, got):
                buffer.check_guards(f"output {info.name!r}")
        return {info.name: _real(info, buffer.array) for info, buffer in zip(self._outputs, got)}

    def check(self, context: Context) -> None:
        """Run once, and compare the outputs with the case."""
        self.case.check(self.run(context))

    def check_bound(self, context: BindsBuffers, allocate: Callable[[int], int]) -> None:
        """Run on memory from ``allocate``, and compare the outputs with the case. Raises what binding raises."""
        with ExitStack() as stack:

            def shared(port: PortForm) -> SharedTensor:
                return stack.enter_context(closing(SharedTensor(allocate, port)))

            fed, got = [shared(port) for port in self.form.inputs], [shared(port) for port in self.form.outputs]
            for tensor, array in zip(fed, self._arrays):
                tensor.write(array)
            copied = context.run_bound(self.form, [t.region for t in fed], [t.region for t in got])
            assert copied == 0, f"everything was bound, and run_bound() says that it copied {copied} bytes"
            self.case.check({info.name: _real(info, tensor.read()) for info, tensor in zip(self._outputs, got)})

    def check_after_others(self, context: Context) -> None:
        """As :meth:`check`, after a run with other inputs, of which nothing may remain."""
        self.run(context, others=True)
        self.check(context)


def can_be_stored(info: TensorInfo) -> bool:
    """Whether an output can be requested in its compiled dtype, and numpy has that dtype."""
    return info.raw and info.dtype not in ("bfloat16", "int4")


def _real(info: TensorInfo, array: NDArray[Any]) -> NDArray[Any]:
    how = info.quantization
    if how is None or array.dtype.name != info.dtype:
        return array
    return ((array.astype(np.float64) - how.zero_point) * how.scale).astype(np.float32)
