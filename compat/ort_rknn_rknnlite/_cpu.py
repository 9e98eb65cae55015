"""The ONNX twin on the CPU, fed like the compiled model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from ort_rknn._errors import FAIL, ort_error
from ort_rknn._executor.conversion import normalized
from ort_rknn._executor.declared import normalizations
from ort_rknn.adapter import DTYPE_OF_TYPE, TensorInfo
from ort_rknn.files import RknnFile, RknnTensor

from ._arguments import ArgumentRefused, Fed, InputShapes

if TYPE_CHECKING:
    from numpy.typing import NDArray


class OnCpu:
    """See :class:`ort_rknn_rknnlite._loading.RunnableModel`."""

    native: tuple[str, int] | None = None

    def __init__(self, file: RknnFile, twin: Path) -> None:
        self._twin = twin
        self._session: Any = onnxruntime.InferenceSession(str(twin), providers=["CPUExecutionProvider"])
        self._tensors = file.inputs
        self._normalizations = normalizations(file)
        self._wanted = {value.name: value for value in self._session.get_inputs()}
        names = [tensor.name for tensor in file.inputs]
        if set(names) != set(self._wanted):
            raise ort_error(FAIL, f"the model has the inputs {names}, its ONNX {twin.name} has {sorted(self._wanted)}")
        self._outputs = [tensor.name for tensor in file.outputs]
        self.tensors_in = tuple(map(_as_reported, file.inputs))
        self.tensors_out = tuple(map(_as_reported, file.outputs))
        self.dynamic = file.dynamic
        self.soc = file.targets[0] if file.targets else "unknown"
        self.custom_string = file.custom_string or ""
        self.inputs: Sequence[InputShapes] = [
            InputShapes(tensor.name, self._shapes(file, index)) for index, tensor in enumerate(file.inputs)
        ]
        self.versions: Mapping[str, str] = {"runtime": f"onnxruntime {onnxruntime.__version__} on the CPU"}

    def _shapes(self, file: RknnFile, index: int) -> tuple[tuple[int, ...], ...]:
        if file.shape_sets:
            return tuple(dict.fromkeys(group[index] for group in file.shape_sets))
        shape = file.inputs[index].shape
        if shape is None:
            raise ArgumentRefused(f"the model does not record the shape of its input {file.inputs[index].name!r}")
        return (shape,)

    def run(self, feed: Sequence[Fed]) -> list[NDArray[Any]]:
        session = self._session
        if session is None:
            raise ArgumentRefused("it was released")
        values = {t.name: self._value(t, fed) for t, fed in zip(self._tensors, feed)}
        results = [np.asarray(y).astype(np.float32) for y in session.run(self._outputs, values)]
        for result in results:
            if not result.shape:
                result.resize(1, refcheck=False)  # the NPU has no scalars
        return results

    def describe(self) -> str:
        return f"{self._twin.name} on the CPU"

    def close(self) -> None:
        self._session, self._wanted = None, {}  # onnxruntime's descriptions keep its session alive

    def _value(self, tensor: RknnTensor, fed: Fed) -> NDArray[Any]:
        """An input in the ONNX's dtype and axis order, normalized like the compiled model does."""
        array = fed.array
        if fed.pass_through:
            if array.dtype.name != tensor.runtime_dtype:
                raise ArgumentRefused(
                    f"input {tensor.name!r} passed through must be {tensor.runtime_dtype}, not {array.dtype}"
                )
            if tensor.quantization is not None:
                real = array.astype(np.float32) - np.float32(tensor.quantization.zero_point)
                array = real * np.float32(tensor.quantization.scale)
        if fed.layout == "NHWC":
            array = array.transpose(0, 3, 1, 2)
        norm = self._normalizations.get(tensor.name)
        if norm is not None and not fed.pass_through:
            array = normalized(array, norm, "NCHW")
        dtype = DTYPE_OF_TYPE[self._wanted[tensor.name].type]
        return np.ascontiguousarray(array, dtype)


def _as_reported(tensor: RknnTensor) -> TensorInfo:
    """The tensor's properties as the runtime would report them."""
    shape, layout = tensor.shape or (), tensor.layout or "UNDEFINED"
    if layout == "NHWC" and len(shape) == 4:
        shape = (shape[0], shape[2], shape[3], shape[1])
    return TensorInfo(tensor.name, shape, tensor.runtime_dtype or "float16", layout, tensor.quantization)
