"""One context: prepares a form of call once, and runs it with as little overhead as possible."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final

from ort_rknn.adapter import INPUT_DTYPES, AdapterError, CallForm, PortForm, Region, RknnError, TensorInfo
from ort_rknn.adapter import rknn_api as abi

from ._binding import Binding, Handle
from ._hints import run_hint
from ._report import read_layers

if TYPE_CHECKING:
    from ._bound import BoundRuns
    from ._owner import Owner

_UINT32_MAX = 2**32 - 1

#: Before and after a run the GIL is kept if that takes no longer than this many nanoseconds. A thread that releases it
#: for some microseconds must then wait for it: with many callers that costs more than the call itself.
_SHORT: Final = 50_000
#: More bytes than this, in all inputs or all outputs, never count as short.
_FEW_BYTES: Final = 64 * 1024
#: After this many consecutive runs that were not short, the GIL is always released. A single one may be a coincidence.
_PATIENCE: Final = 4


class PreparedCall:
    """The structures of one form, and the functions to call with them. ``*_slots`` are views of the ``buf`` fields:
    setting ``value`` of a view costs a quarter of setting the field through the array."""

    __slots__ = (
        "_binding",
        "_long",
        "form",
        "get",
        "get_arguments",
        "input_slots",
        "keeps_gil",
        "output_slots",
        "release",
        "release_arguments",
        "set",
        "set_arguments",
    )

    def __init__(self, binding: Binding, handle: Handle, form: CallForm, inputs: Any, outputs: Any) -> None:
        self._binding = binding
        self._long = 0
        self.keeps_gil = max(sum(port.nbytes for port in ports) for ports in (form.inputs, form.outputs)) <= _FEW_BYTES
        if self.keeps_gil:
            self.set, self.get, self.release = binding.keeping_gil
        else:
            self.release_gil()
        context = ctypes.c_uint64(handle.value)
        self.form = form
        self.input_slots = _slots(inputs, abi.Input)
        self.output_slots = _slots(outputs, abi.Output)
        self.set_arguments = (context, ctypes.c_uint32(len(inputs)), ctypes.byref(inputs))
        self.release_arguments = (context, ctypes.c_uint32(len(outputs)), ctypes.byref(outputs))
        self.get_arguments = (*self.release_arguments, None)

    def release_gil(self) -> None:
        """Release the GIL in every call from now on."""
        binding = self._binding
        self.keeps_gil = False
        self.set, self.get, self.release = binding.inputs_set, binding.outputs_get, binding.outputs_release

    def took(self, before: int, after: int) -> None:
        """Record the nanoseconds spent with the GIL held before and after the run."""
        if before < _SHORT and after < _SHORT:
            self._long = 0
            return
        self._long += 1
        if self._long == _PATIENCE:
            self.release_gil()


class RuntimeContext:
    """A context of a :class:`~.runtime.LoadedModel` on one core mask. See :class:`ort_rknn.adapter.Context`."""

    __slots__ = (
        "__weakref__",
        "_bound",
        "_call",
        "_calls",
        "_core_mask",
        "_handle",
        "_model",
        "_run",
        "_run_arguments",
        "_timeout_ms",
        "times",
    )

    def __init__(self, model: Owner, handle: Handle, core_mask: int) -> None:
        self._model = model
        self._handle: Handle | None = handle
        self._core_mask = core_mask
        self._calls: dict[CallForm, PreparedCall] = {}
        self._call: PreparedCall | None = None  # the last one: most callers have one form
        self._bound: BoundRuns | None = None
        self._run = model.binding.run
        self.times = (0, 0, 0, 0)
        self._timeout_ms = model.settings.run_timeout_ms
        extend = ctypes.byref(abi.RunExtend(timeout_ms=self._timeout_ms)) if self._timeout_ms else None
        self._run_arguments = (ctypes.c_uint64(handle.value), extend)

    @property
    def core_mask(self) -> int:
        """The requested mask."""
        return self._core_mask

    def run(self, form: CallForm, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Run once; see :meth:`ort_rknn.adapter.Context.run`. Four runtime calls if nothing changed.

        Raises RknnError naming the call that failed, AdapterError for an impossible form or after close().
        """
        call = self._call
        if call is None or call.form is not form:
            if form.native:  # rknn_inputs_set and rknn_outputs_get do not support it
                self.run_bound(form, inputs, outputs)
                return
            call = self._prepared(form)
        input_slots, output_slots = call.input_slots, call.output_slots
        if len(inputs) != len(input_slots) or len(outputs) != len(output_slots):
            raise AdapterError(
                f"the form has {len(input_slots)} inputs and {len(output_slots)} outputs, "
                f"but {len(inputs)} and {len(outputs)} addresses were given"
            )
        for slot, address in zip(input_slots, inputs):
            slot.value = address
        for slot, address in zip(output_slots, outputs):
            slot.value = address
        handle = self._handle
        if handle.shape_set != form.shape_set:  # type: ignore[union-attr]  # closed contexts have no prepared call
            self._model.set_shapes(handle, form.shape_set)  # type: ignore[arg-type]
        start = perf_counter_ns()
        code = call.set(*call.set_arguments)
        if code:
            raise self._error("rknn_inputs_set", code)
        ready = perf_counter_ns()
        code = self._run(*self._run_arguments)
        if code:
            raise self._error("rknn_run", code)
        over = perf_counter_ns()
        try:
            code = call.get(*call.get_arguments)
        except BaseException:  # raised by a signal handler, after the outputs were taken
            call.release(*call.release_arguments)
            raise
        if code:
            raise self._error("rknn_outputs_get", code)
        code = call.release(*call.release_arguments)
        if code:
            raise self._error("rknn_outputs_release", code)
        end = perf_counter_ns()
        self.times = (start, ready, over, end)
        if call.keeps_gil:
            call.took(ready - start, end - over)

    def layer_table(self) -> str:
        """See :meth:`ort_rknn.adapter.ReportsLayers.layer_table`."""
        if self._handle is None:
            raise AdapterError("the context is closed")
        return read_layers(self._model.binding, self._handle)

    def run_bound(self, form: CallForm, inputs: Sequence[int | Region], outputs: Sequence[int | Region]) -> int:
        """Run on shared buffers; see :meth:`ort_rknn.adapter.BindsBuffers.run_bound`."""
        if self._handle is None:
            raise AdapterError("the context is closed")
        if self._bound is None:
            from ._bound import BoundRuns

            self._bound = BoundRuns(self._model, self._core_mask)
        copied = self._bound.run(form, inputs, outputs)
        self.times = self._bound.times
        return copied

    def close(self) -> None:
        """Return the handle to the model, which destroys it. Idempotent."""
        if self._bound is not None:
            self._bound.close()
            self._bound = None
        handle, self._handle = self._handle, None
        self._call = None
        self._calls.clear()
        if handle is not None:
            self._model.give_back(handle)

    def _prepared(self, form: CallForm) -> PreparedCall:
        if self._handle is None:
            raise AdapterError("the context is closed")
        call = self._calls.get(form)
        if call is None:
            call = self._calls[form] = prepare(self._model, self._handle, form)
        self._call = call
        return call

    def _error(self, call: str, code: int) -> RknnError:
        return RknnError(call, code, run_hint(call, code, self._timeout_ms))


def prepare(model: Owner, handle: Handle, form: CallForm) -> PreparedCall:
    """The structures of a form. Raises AdapterError, which says what is possible instead."""
    sets = len(model.shape_sets)
    if form.shape_set is None:
        if sets:
            raise AdapterError(f"the model is dynamic: the form must choose one of its {sets} shape sets")
    elif not 0 <= form.shape_set < sets:
        raise AdapterError(f"the form chooses shape set {form.shape_set}, but the model has {sets or 'none'}")
    for what, ports, infos in (("input", form.inputs, model.inputs), ("output", form.outputs, model.outputs)):
        if len(ports) != len(infos):
            raise AdapterError(f"the form has {len(ports)} {what}s, but the model has {len(infos)}")
        for port, info in zip(ports, infos, strict=True):
            if not 0 <= port.nbytes <= _UINT32_MAX:
                raise AdapterError(f"{what} {info.name!r}: a buffer has at most 4 GiB, not {port.nbytes} bytes")
    inputs = (abi.Input * len(form.inputs))()
    for index, (port, info) in enumerate(zip(form.inputs, model.inputs, strict=True)):
        _fill_input(inputs[index], index, port, info)
    outputs = (abi.Output * len(form.outputs))()
    for index, (port, info) in enumerate(zip(form.outputs, model.outputs, strict=True)):
        _fill_output(outputs[index], index, port, info)
    return PreparedCall(model.binding, handle, form, inputs, outputs)


def _fill_input(item: abi.Input, index: int, port: PortForm, info: TensorInfo) -> None:
    if port.dtype not in INPUT_DTYPES:
        raise AdapterError(
            f"input {info.name!r}: the runtime takes no {port.dtype}; it takes {', '.join(INPUT_DTYPES)}"
        )
    layout = abi.LAYOUT_CODES.get(port.layout)
    if layout is None:
        raise AdapterError(f"input {info.name!r}: unknown layout {port.layout!r}")
    item.index, item.size, item.pass_through = index, port.nbytes, int(port.pass_through)
    item.type, item.fmt = abi.DTYPE_CODES[port.dtype], layout


def _fill_output(item: abi.Output, index: int, port: PortForm, info: TensorInfo) -> None:
    if port.dtype not in ("float32", info.dtype):
        possible = " or ".join(dict.fromkeys((info.dtype, "float32")))
        raise AdapterError(f"output {info.name!r}: the runtime gives {possible}, not {port.dtype}")
    if port.layout not in (info.layout, "UNDEFINED"):
        raise AdapterError(f"output {info.name!r}: the runtime gives {info.layout}, not {port.layout}")
    if port.pass_through:
        raise AdapterError(f"output {info.name!r}: pass_through is for inputs only")
    item.index, item.size, item.is_prealloc = index, port.nbytes, 1
    item.want_float = int(port.dtype != info.dtype)


def _slots(array: Any, item: type[ctypes.Structure]) -> tuple[ctypes.c_void_p, ...]:
    offset, step = item.buf.offset, ctypes.sizeof(item)
    return tuple(ctypes.c_void_p.from_buffer(array, offset + step * index) for index in range(len(array)))
