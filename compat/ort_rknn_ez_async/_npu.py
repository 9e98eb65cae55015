"""Calls on the NPU: the executor's contexts, with a form of call for every combination of dtypes fed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from onnxruntime.capi import onnxruntime_pybind11_state as state

from ort_rknn._concurrency.pipeline import Pending
from ort_rknn._errors import bare_message
from ort_rknn._executor.calls import Call, nbytes
from ort_rknn._executor.dispatch import Dispatch
from ort_rknn._executor.executor import Executor
from ort_rknn._executor.recovery import StartedRun
from ort_rknn._options import Options
from ort_rknn._tensors import onnx_order
from ort_rknn.adapter import CallForm, Layout, Model, PortForm, Shape
from ort_rknn.adapter.addresses import address_of
from ort_rknn.files import RknnFile

from ._device_values import DeviceValues
from ._feeds import Array, cast, runtime_dtype
from ._nodes import NUMPY_DTYPES, Tensor, exchanged, plain_dtype

#: The number of combinations of dtypes and shapes remembered.
_KEPT = 256
_ORT_ERRORS = (state.Fail, state.InvalidArgument, state.RuntimeException)


def _print_perf(started: float) -> None:
    us = (time.perf_counter() - started) * 1e6
    # One line per task, as in that library; the phases of a run are not visible above the runtime.
    line = f"task_id=-1 thread_id={threading.get_native_id()} core_id=-1 infer_us={us:.0f} total_us={us:.0f}"
    print(f"[ztu_ez_rknn_async_perf] {line}", file=sys.stderr)


def _end(over: Callable[[], None], started: float | None, kept: object) -> None:
    """Called at the end of a run on a worker; keeps the arrays alive until now."""
    if started is not None:
        _print_perf(started)
    over()


class _StartedOnWorker:
    """A run on a worker."""

    def __init__(self, turn: StartedRun, results: list[Array]) -> None:
        self._turn = turn
        self._results = results

    def result(self) -> list[Array]:
        try:
            self._turn.result()
        except _ORT_ERRORS as error:
            raise RuntimeError(bare_message(error)) from error
        return self._results


@dataclass(frozen=True, slots=True)
class _Ready:
    """A call for arrays of known dtypes and shapes."""

    call: Call
    dtypes: tuple[str, ...] | None
    """The dtypes that the arrays are cast to first; None: no cast."""
    exchange: tuple[bool, ...] | None
    """The arrays that are transposed to NHWC first; None: none."""


class NpuCalls:
    """A loaded model with its contexts, which it closes. Thread-safe. Raises RuntimeError."""

    def __init__(
        self, executor: Executor, file: RknnFile | None, options: Options, values: DeviceValues, *, print_perf: bool
    ) -> None:
        self.executor = executor
        self.values = values
        self._print_perf = print_perf
        asked = [options.layout.get(i.name, options.layout.get("*", "NCHW")) for i in self._model.inputs]
        self._exchanged = tuple(
            layout == "NCHW software" and info.layout == "NHWC" and len(info.shape) == 4
            for layout, info in zip(asked, self._model.inputs)
        )
        self._layouts: tuple[Layout, ...] = tuple(
            "UNDEFINED" if len(i.shape) != 4 or i.layout == "UNDEFINED" else "NHWC" if how == "NHWC" else "NCHW"
            for i, how in zip(self._model.inputs, asked)
        )
        self._sets = self._model.shape_sets or (tuple(onnx_order(i.shape, i.layout) for i in self._model.inputs),)
        self._dynamic = bool(self._model.shape_sets)
        # Queried at load, because it switches a context of the runtime.
        self._output_sets = [self._model.output_shapes(k if self._dynamic else None) for k in range(len(self._sets))]
        self.inputs = self._input_tensors(file)
        self.outputs = self._output_tensors()
        self._ready: dict[object, _Ready] = {}
        self._forms: dict[object, Call] = {}

    @property
    def _model(self) -> Model:
        return self.executor.model  # another one in a forked child

    @property
    def dispatch(self) -> Dispatch:
        """Where runs go."""
        return self.executor.dispatch

    @property
    def closed(self) -> bool:
        return self.executor.closed

    def close(self) -> None:
        self.executor.close()

    def _input_tensors(self, file: RknnFile | None) -> tuple[Tensor, ...]:
        declared = {t.name: t.dtype for t in file.inputs} if file is not None else {}
        tensors = []
        for k, (info, layout) in enumerate(zip(self._model.inputs, self._layouts)):
            in_order = self._sets[0][k]
            native: Layout = "NHWC" if layout != "UNDEFINED" else "UNDEFINED"
            dtype = declared.get(info.name)
            stored, room = self.values.stored(True, k, info, in_order)
            native_shape = self._shape_in(in_order, native)
            if self.values.native and stored is not None:
                native, native_shape = stored.layout, stored.shape
            tensors.append(
                Tensor(
                    name=info.name or f"input_{k}",
                    shape=self._shape_in(in_order, layout),
                    layout=layout,
                    dtype=dtype if dtype in NUMPY_DTYPES else plain_dtype(info.dtype, info.quantization),
                    native_dtype=info.dtype,
                    native_shape=native_shape,
                    native_layout=native,
                    quantization=info.quantization,
                    stored=stored,
                    room=room,
                )
            )
        return tuple(tensors)

    def _output_tensors(self) -> tuple[Tensor, ...]:
        tensors = []
        for k, info in enumerate(self._model.outputs):
            shape = self._output_sets[0][k]
            four = len(shape) == 4 and info.layout == "NCHW"
            native_shape = exchanged(shape) if four else shape
            native: Layout = "NHWC" if four else info.layout
            stored, room = self.values.stored(False, k, info, shape)
            if self.values.native and stored is not None:
                native, native_shape = stored.layout, stored.shape
            tensors.append(
                Tensor(
                    name=info.name or f"output_{k}",
                    shape=shape,
                    layout=info.layout,
                    dtype="float32",
                    native_dtype=info.dtype,
                    native_shape=native_shape,
                    native_layout=native,
                    quantization=info.quantization,
                    stored=stored,
                    room=room,
                )
            )
        return tuple(tensors)

    @staticmethod
    def _shape_in(in_order: Shape, layout: Layout) -> Shape:
        return exchanged(in_order) if layout == "NHWC" else in_order

    # Running --------------------------------------------------------------------------------------------------

    def check(self, arrays: Sequence[Array], *, batch: bool = False) -> None:
        """Raise RuntimeError if :meth:`run` would, without running."""
        self._find(arrays, batch)

    def run(self, arrays: Sequence[Array], *, batch: bool = False, lane: int = 0) -> list[Array]:
        """All outputs as fresh float32 arrays, in the model's order. ``arrays`` in the model's order, C-contiguous.

        The runtime reads the arrays directly unless one has an unsupported dtype, or ``layout`` requires transposing it
        here. ``batch``: the leading axis counts samples, which run in parallel on the cores.
        """
        call, arrays, results = self._made_ready(arrays, batch)
        self._execute(call, arrays, results, lane)
        return results

    def start(self, arrays: Sequence[Array], lane: int, over: Callable[[], None]) -> Pending:
        """As :meth:`run`, on another thread, which calls ``over`` when the run has ended. Returns at once."""
        call, arrays, results = self._made_ready(arrays, False)
        inputs, outputs = [address_of(a) for a in arrays], [address_of(r) for r in results]
        end = partial(_end, over, time.perf_counter() if self._print_perf else None, (arrays, results))
        try:
            turn = self.executor.start_on(lane, call, inputs, outputs, end)
        except _ORT_ERRORS as error:
            raise RuntimeError(bare_message(error)) from error
        return _StartedOnWorker(turn, results)

    def _made_ready(self, arrays: Sequence[Array], batch: bool) -> tuple[Call, list[Array], list[Array]]:
        """The call, the arrays that the runtime reads, and fresh ones for the results."""
        ready = self._ready.get((batch, *[(a.dtype, a.shape) for a in arrays]))
        if ready is None:
            ready = self._find(arrays, batch)
        plain = ready.dtypes is None and ready.exchange is None
        return (
            ready.call,
            list(arrays) if plain else self._prepared(arrays, ready),
            [np.empty(shape, np.float32) for shape in ready.call.output_shapes],
        )

    def _execute(self, call: Call, arrays: Sequence[Array], results: Sequence[Array], lane: int | None = None) -> None:
        """Run on the arrays' own memory. Raises RuntimeError naming the failed runtime call, its code and the core."""
        started = time.perf_counter() if self._print_perf else 0.0
        inputs = [address_of(a) for a in arrays]
        outputs = [address_of(r) for r in results]
        try:
            if lane is None or call.samples > 1:
                self.executor.execute(call, inputs, outputs)
            else:
                self.executor.execute_on(lane, call, inputs, outputs)
        except _ORT_ERRORS as error:
            raise RuntimeError(bare_message(error)) from error
        if self._print_perf:
            _print_perf(started)

    def _prepared(self, arrays: Sequence[Array], ready: _Ready) -> list[Array]:
        out = []
        for k, (array, tensor) in enumerate(zip(arrays, self.inputs)):
            if ready.dtypes is not None and (array.dtype.name != ready.dtypes[k] or not array.dtype.isnative):
                array = cast(array, ready.dtypes[k], tensor.name)
            if ready.exchange is not None and ready.exchange[k]:
                array = np.ascontiguousarray(array.transpose(0, 2, 3, 1))
            out.append(array)
        return out

    def _find(self, arrays: Sequence[Array], batch: bool) -> _Ready:
        key = (batch, *[(a.dtype, a.shape) for a in arrays])
        ready = self._ready.get(key)
        if ready is not None:
            return ready
        dtypes = tuple(runtime_dtype(a.dtype, t.name) for a, t in zip(arrays, self.inputs))
        shapes: tuple[Shape, ...] = tuple(a.shape for a in arrays)
        samples = 1
        if batch:
            samples = self._samples(shapes)
            shapes = tuple((1, *shape[1:]) for shape in shapes)
        index = self._set_of(shapes, batch)
        call = self.call(dtypes, self._layouts_of(self._exchanged), index)
        if batch:
            call = replace(call, samples=samples, output_shapes=tuple((samples, *s[1:]) for s in call.outputs))
        plain = all(a.dtype.name == d and a.dtype.isnative for a, d in zip(arrays, dtypes))
        ready = _Ready(call, None if plain else dtypes, self._exchanged if any(self._exchanged) else None)
        if len(self._ready) >= _KEPT:
            self._ready.pop(next(iter(self._ready)), None)
        self._ready[key] = ready
        return ready

    def _layouts_of(self, exchanged_first: Sequence[bool]) -> tuple[Layout, ...]:
        return tuple("NHWC" if first else layout for first, layout in zip(exchanged_first, self._layouts))

    def _set_of(self, shapes: Sequence[Shape], batch: bool = False) -> int:
        """The index of the compiled set with these shapes (in the session's layouts)."""
        sets = [tuple(self._shape_in(s, layout) for s, layout in zip(group, self._layouts)) for group in self._sets]
        if tuple(shapes) in sets:
            return sets.index(tuple(shapes))
        for k, (shape, tensor) in enumerate(zip(shapes, self.inputs)):
            possible = list(dict.fromkeys(group[k] for group in sets))
            expected = " or ".join(str(list(s)) for s in possible)
            if not batch and len(shape) != len(possible[0]):
                raise RuntimeError(f"Input rank mismatch for '{tensor.name}': expected {expected}, got {list(shape)}")
            if shape not in possible:
                what = "Batch input" if batch else "Input"
                raise RuntimeError(f"{what} '{tensor.name}' shape mismatch: expected {expected}, got {list(shape)}")
        known = "; ".join(str([list(s) for s in group]) for group in sets)
        raise RuntimeError(f"these input shapes were not compiled together. Compiled are: {known}")

    def _samples(self, shapes: Sequence[Shape]) -> int:
        """The number of samples in a batch; checks everything except the shape of the samples."""
        for group in self._sets:
            if any(not s or s[0] not in (0, 1) for s in group):
                raise RuntimeError("Batch mode requires model batch dimension == 1")
        if any(not s or s[0] < 1 for s in shapes):
            raise RuntimeError("Batch input must have a positive first dimension")
        if len({s[0] for s in shapes}) > 1:
            raise RuntimeError(f"Batch size mismatch across inputs: {[s[0] for s in shapes]}")
        for tensor, shape in zip(self.outputs, self._output_sets[0]):
            if not shape or shape[0] != 1:
                raise RuntimeError(
                    f"Batch mode needs a leading axis of 1 in every output, which is the batch; output {tensor.name!r} "
                    f"has shape {list(shape)}. Run the samples one by one"
                )
        return shapes[0][0]

    def call(self, dtypes: tuple[str, ...], layouts: tuple[Layout, ...], index: int, raw: bool = False) -> Call:
        """The call for inputs with these dtypes and layouts; outputs are float32, or (``raw``) as compiled."""
        key = (dtypes, layouts, index, raw)
        found = self._forms.get(key)
        if found is None:
            found = self._forms.setdefault(key, self._new_call(dtypes, layouts, index, raw))
        return found

    def _new_call(self, dtypes: tuple[str, ...], layouts: tuple[Layout, ...], index: int, raw: bool) -> Call:
        inputs = tuple(self._shape_in(s, layout) for s, layout in zip(self._sets[index], layouts))
        outputs = self._output_sets[index]
        out_dtypes = tuple(i.dtype if raw else "float32" for i in self._model.outputs)
        in_bytes = tuple(nbytes(s, d) for s, d in zip(inputs, dtypes))
        out_bytes = tuple(nbytes(s, d) for s, d in zip(outputs, out_dtypes))
        form = CallForm(
            tuple(PortForm(d, w, s, n) for d, w, s, n in zip(dtypes, layouts, inputs, in_bytes)),
            tuple(
                PortForm(d, i.layout, s, n) for d, i, s, n in zip(out_dtypes, self._model.outputs, outputs, out_bytes)
            ),
            index if self._dynamic else None,
        )
        return Call(form, inputs, outputs, outputs, 1, in_bytes, out_bytes, direct=True, padded=False)

    # Zero copy ------------------------------------------------------------------------------------------------

    @property
    def stores(self) -> bool:
        """Whether device values are in the NPU's storage format."""
        return all(tensor.stored is not None for tensor in (*self.inputs, *self.outputs))

    def run_stored(self, arrays: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Run on inputs in the NPU's storage format (or uint8 NHWC), and write outputs in it; in the model's order."""
        pixels = tuple(a.dtype.name != t.native_dtype for a, t in zip(arrays, self.inputs))
        self._execute(self.values.call(self.inputs, self.outputs, pixels), arrays, outputs)

    def run_raw(self, arrays: Sequence[Array], in_native_layout: Sequence[bool]) -> list[Array]:
        """Outputs with the compiled dtypes, in the model's order, with the shapes of :attr:`outputs`.

        ``in_native_layout``: arrays that are NHWC whatever the session's layout is.
        """
        given = [a.transpose(0, 3, 1, 2) if f and a.ndim == 4 else a for a, f in zip(arrays, in_native_layout)]
        # Without copies: only the shapes matter.
        wanted = tuple(
            exchanged(g.shape) if f and layout == "NHWC" else g.shape
            for g, f, layout in zip(given, in_native_layout, self._layouts)
        )
        index = self._set_of(wanted)
        layouts: tuple[Layout, ...] = tuple(
            "NHWC" if f and layout != "UNDEFINED" else layout for f, layout in zip(in_native_layout, self._layouts)
        )
        call = self.call(tuple(a.dtype.name for a in arrays), layouts, index, raw=True)
        results: list[Array] = [
            np.empty(shape, port.dtype) for shape, port in zip(call.output_shapes, call.form.outputs)
        ]
        self._execute(call, arrays, results)
        return results
