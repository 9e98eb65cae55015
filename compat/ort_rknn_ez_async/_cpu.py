"""The same calls on the CPU, where onnxruntime runs the ONNX of the compiled model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime

from ort_rknn._concurrency.forks import keep, leave_out_exit_handlers
from ort_rknn._concurrency.pipeline import Pending
from ort_rknn._concurrency.submitter import Submitter
from ort_rknn._executor.conversion import normalized
from ort_rknn._executor.declared import normalizations
from ort_rknn._options import Options
from ort_rknn.adapter import DTYPE_OF_TYPE, Layout
from ort_rknn.files import RknnFile

from ._feeds import Array, cast, runtime_dtype
from ._forms import quantized
from ._nodes import NUMPY_DTYPES, Tensor


def _later() -> Submitter:
    return Submitter((1,), 0, submit_timeout_ms=1)  # its calls have places elsewhere


class CpuCalls:
    """The ONNX, behaving like the compiled model: its layout, its normalization, its order of outputs, float32."""

    dispatch = None

    def __init__(self, onnx: str | bytes, sess_options: Any, file: RknnFile | None, options: Options) -> None:
        self._session = onnxruntime.InferenceSession(onnx, sess_options, ["CPUExecutionProvider"])
        self._later = _later()
        self._norms = normalizations(file)
        self._onnx_types = {v.name: DTYPE_OF_TYPE.get(v.type, v.type) for v in self._session.get_inputs()}
        compiled = {t.name: t for t in (*file.inputs, *file.outputs)} if file is not None else {}
        layout = options.layout
        self.inputs = tuple(
            self._tensor(v, compiled.get(v.name), layout.get(v.name, layout.get("*", "NCHW")), is_input=True)
            for v in _in_order(self._session.get_inputs(), [t.name for t in file.inputs] if file else [])
        )
        self.outputs = tuple(
            self._tensor(v, compiled.get(v.name), "NCHW", is_input=False)
            for v in _in_order(self._session.get_outputs(), [t.name for t in file.outputs] if file else [])
        )
        self.closed = False

    @staticmethod
    def _tensor(value: Any, compiled: Any, asked: str, *, is_input: bool) -> Tensor:
        shape = tuple(value.shape)
        if compiled is not None and compiled.shape is not None and len(compiled.shape) == len(shape):
            shape = tuple(compiled.shape)  # free dimensions have a length there
        if not shape:
            shape = (1,)  # the runtime has no 0-d tensors
        declared = DTYPE_OF_TYPE.get(value.type, value.type)
        native = (compiled.runtime_dtype if compiled is not None else None) or declared
        layout: Layout = "UNDEFINED"
        native_layout: Layout = "UNDEFINED"
        native_shape = shape
        if len(shape) == 4:
            native_layout = "NHWC"
            native_shape = (shape[0], shape[2], shape[3], shape[1])
            layout = "NHWC" if is_input and asked == "NHWC" else "NCHW"
        return Tensor(
            name=value.name,
            shape=native_shape if layout == "NHWC" else shape,
            layout=layout,
            dtype=declared if is_input else "float32",
            native_dtype=native,
            native_shape=native_shape,
            native_layout=native_layout,
            quantization=compiled.quantization if compiled is not None else None,
        )

    def check(self, arrays: Sequence[Array], *, batch: bool = False) -> None:
        """Raise RuntimeError if :meth:`run` would for shapes and dtypes, without running."""
        for array, tensor in zip(arrays, self.inputs):
            runtime_dtype(array.dtype, tensor.name)
            if array.ndim != len(tensor.shape):
                raise RuntimeError(
                    f"Input rank mismatch for '{tensor.name}': expected {list(tensor.shape)}, got {list(array.shape)}"
                )
            if batch:
                if tensor.shape[0] != 1:
                    raise RuntimeError("Batch mode requires model batch dimension == 1")
                if array.shape[0] < 1:
                    raise RuntimeError("Batch input must have a positive first dimension")
            for axis, (given, wanted) in enumerate(zip(array.shape, tensor.shape)):
                if given != wanted and isinstance(wanted, int) and not (batch and axis == 0) and not self._free(tensor):
                    raise RuntimeError(
                        f"{'Batch input' if batch else 'Input'} '{tensor.name}' shape mismatch: "
                        f"expected {list(tensor.shape)}, got {list(array.shape)}"
                    )
        if batch and len({a.shape[0] for a in arrays}) > 1:
            raise RuntimeError(f"Batch size mismatch across inputs: {[a.shape[0] for a in arrays]}")
        for tensor in self.outputs if batch else ():
            if tensor.shape[0] != 1:
                raise RuntimeError(
                    f"Batch mode needs a leading axis of 1 in every output; {tensor.name!r} has {list(tensor.shape)}"
                )

    def _free(self, tensor: Tensor) -> bool:
        """Whether the ONNX allows more than one shape: then onnxruntime checks the shapes."""
        value = next(v for v in self._session.get_inputs() if v.name == tensor.name)
        return any(not isinstance(d, int) for d in value.shape[1:])

    def run(self, arrays: Sequence[Array], *, batch: bool = False, lane: int = 0) -> list[Array]:
        """All outputs as fresh float32 arrays. A batch is run sample by sample, as on the NPU."""
        if self.closed:
            raise RuntimeError("the session was closed")
        self.check(arrays, batch=batch)
        if batch:
            parts = [self.run([a[k : k + 1] for a in arrays]) for k in range(arrays[0].shape[0])]
            return [np.concatenate(outputs) for outputs in zip(*parts)]
        feed = {t.name: self._fed(a, t) for a, t in zip(arrays, self.inputs)}
        try:
            results = self._session.run([t.name for t in self.outputs], feed)
        except Exception as error:
            raise RuntimeError(str(error)) from error
        return [np.array(r, np.float32, copy=True, order="C", ndmin=1) for r in results]

    def start(self, arrays: Sequence[Array], lane: int, over: Callable[[], None]) -> Pending:
        """As :meth:`run`, on another thread, which calls ``over`` when the run has ended. Returns at once."""
        return self._later.start(self.run, arrays, place=[], over=lambda started: over())

    def _fed(self, array: Array, tensor: Tensor) -> Array:
        """The array as the ONNX expects it; a normalization of the compiled model is applied here."""
        norm = self._norms.get(tensor.name)
        wanted = self._onnx_types[tensor.name]
        if norm is not None:
            array = normalized(array, norm, tensor.layout)
        if tensor.layout == "NHWC":
            array = array.transpose(0, 3, 1, 2)
        array = array if array.dtype == np.dtype(wanted) else cast(array, wanted, tensor.name)
        return np.ascontiguousarray(array).reshape(array.shape)

    def after_fork(self) -> None:
        """In a forked child: the session works without its threads, but is never destroyed."""
        for thing in (self._session, self._later):
            keep(thing)
        leave_out_exit_handlers()
        self._later = _later()

    def close(self) -> None:
        self.closed = True
        self._later.close()
        self._session = None

    def run_raw(self, arrays: Sequence[Array], in_native_layout: Sequence[bool]) -> list[Array]:
        """Outputs with the compiled dtypes; see NpuCalls.run_raw."""
        given: list[Array] = []
        for array, native, tensor in zip(arrays, in_native_layout, self.inputs):
            turn = native and array.ndim == 4 and tensor.layout == "NCHW"
            given.append(np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if turn else array)
        out: list[Array] = []
        for result, tensor in zip(self.run(given), self.outputs):
            how = tensor.quantization
            if how is not None:
                out.append(quantized(result, how, tensor.native_dtype))
            else:
                out.append(result.astype(tensor.native_dtype if tensor.native_dtype in NUMPY_DTYPES else "float32"))
        return out


def _in_order(values: Sequence[Any], names: Sequence[str]) -> list[Any]:
    by_name = {v.name: v for v in values}
    return [by_name[n] for n in names] if set(names) == set(by_name) else list(values)
