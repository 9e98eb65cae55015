"""Runs on memory shared with the NPU: dma-bufs are bound as inputs and outputs, and nothing is converted or copied.

The vendor has two ways of feeding a model, ``rknn_inputs_set`` / ``rknn_outputs_get`` and ``rknn_set_io_mem``, and does
not document mixing them on one context. So bound runs use a separate runtime context, which shares the weights. Every
input and output is bound in every run, to a region or to memory that replaces an ordinary address.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Final

from ort_rknn.adapter import CallForm, NotBindable, PortForm, Region, RknnError, SharedBuffer, TensorInfo
from ort_rknn.adapter import rknn_api as abi

from ._binding import Handle, log
from ._hints import run_hint
from ._report import native_attribute, read_attribute

if TYPE_CHECKING:
    from ._owner import Owner

#: Queries for inputs and outputs: of a model with one shape, and of one that is set to a shape.
_PLAIN: Final = (abi.QUERY_INPUT_ATTR, abi.QUERY_OUTPUT_ATTR)
_CURRENT: Final = (abi.QUERY_CURRENT_INPUT_ATTR, abi.QUERY_CURRENT_OUTPUT_ATTR)
#: The largest offset that ``rknn_create_mem_from_fd`` takes: an int32, and ctypes would cut off the rest silently.
_LARGEST_OFFSET: Final = (1 << 31) - 1
#: The number of imported regions that a context keeps; the least recently used goes first.
_KEPT: Final = 64


class _Memory:
    """A ``rknn_tensor_mem``; ``buffer`` None: the runtime's own."""

    __slots__ = ("address", "buffer", "pointer")

    def __init__(self, pointer: int, buffer: SharedBuffer | None) -> None:
        self.pointer = pointer
        self.buffer = buffer
        self.address = abi.TensorMem.from_address(pointer).virt_addr or 0


class _BoundForm:
    """An input or output in one form."""

    __slots__ = ("attribute", "nbytes", "own", "pitch", "reference", "room", "rows")

    def __init__(self, form: PortForm, attribute: abi.TensorAttr, *, is_input: bool) -> None:
        if not form.native:
            attribute.type, attribute.fmt = abi.DTYPE_CODES[form.dtype], abi.LAYOUT_CODES[form.layout]
        attribute.pass_through = int(form.pass_through)
        self.attribute = attribute
        self.reference = ctypes.byref(attribute)
        self.nbytes = form.nbytes
        self.pitch = 0
        """Bytes between rows that the runtime requires; 0: rows are contiguous."""
        self.rows = 1
        if is_input and form.layout == "NHWC" and len(form.shape) == 4 and not form.native:
            n, h, w, _ = form.shape
            self.rows = n * h
            row = form.nbytes // self.rows
            stride = attribute.w_stride or w
            if stride != w:
                self.pitch = row // w * stride
        self.room = max(attribute.size_with_stride, self.pitch * self.rows, form.nbytes)
        self.own: _Memory | None = None


class BoundRuns:
    """The bound runs of one :class:`~._context.RuntimeContext`. The runtime's context is created at the first one."""

    def __init__(self, model: Owner, core_mask: int) -> None:
        self._model = model
        self._core_mask = core_mask
        self.times = (0, 0, 0, 0)
        self._functions = model.binding.memory
        self._handle: Handle | None = None
        self._forms: dict[CallForm, tuple[list[_BoundForm], list[_BoundForm]]] = {}
        self._refused: dict[CallForm, str] = {}
        self._imported: dict[tuple[SharedBuffer, int, int], _Memory] = {}
        self._bound: dict[tuple[bool, int], tuple[_BoundForm, _Memory]] = {}
        extend = abi.RunExtend(timeout_ms=model.settings.run_timeout_ms)
        self._extend = ctypes.byref(extend) if model.settings.run_timeout_ms else None

    def run(self, form: CallForm, inputs: Sequence[int | Region], outputs: Sequence[int | Region]) -> int:
        """See :meth:`ort_rknn.adapter.BindsBuffers.run_bound`."""
        start = perf_counter_ns()
        handle, (sources, targets) = self._prepared(form)
        for port, place, info in zip(sources, inputs, self._model.inputs, strict=True):
            _check_rows(port, place, info)
        try:
            read = [self._bind(handle, True, k, port, at) for k, (port, at) in enumerate(zip(sources, inputs))]
            written = [self._bind(handle, False, k, port, at) for k, (port, at) in enumerate(zip(targets, outputs))]
            self._forget(handle, [*read, *written])
            copied = 0
            for port, place, memory in zip(sources, inputs, read):
                if isinstance(place, int):
                    ctypes.memmove(memory.address, place, port.nbytes)
                    copied += port.nbytes
                self._sync(handle, memory, abi.SYNC_TO_DEVICE)
            ready = perf_counter_ns()
            code = self._model.binding.run(ctypes.c_uint64(handle.value), self._extend)
            over = perf_counter_ns()
            if code:
                raise RknnError("rknn_run", code, run_hint("rknn_run", code, self._model.settings.run_timeout_ms))
            for port, place, memory in zip(targets, outputs, written):
                self._sync(handle, memory, abi.SYNC_FROM_DEVICE)
                if isinstance(place, int):
                    ctypes.memmove(place, memory.address, port.nbytes)
                    copied += port.nbytes
            self.times = (start, ready, over, perf_counter_ns())
            return copied
        except BaseException:
            self._bound.clear()  # after a failed call the state is unknown
            handle.shape_set = None
            raise

    def close(self) -> None:
        """Release all memory and the runtime's context. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        if handle.process != os.getpid():
            return  # inherited by a fork: all of it is the parent's
        ports = [port for sides in self._forms.values() for side in sides for port in side]
        for memory in (*self._imported.values(), *(port.own for port in ports if port.own is not None)):
            self._free(handle, memory)
        self._forms.clear()
        self._imported.clear()
        self._bound.clear()
        self._model.give_back(handle)

    def _prepared(self, form: CallForm) -> tuple[Handle, tuple[list[_BoundForm], list[_BoundForm]]]:
        known = self._forms.get(form)
        if known is not None and self._handle is not None:
            self._choose(self._handle, form)
            return self._handle, known
        model = self._model
        reason = self._refused.get(form)
        if reason is None:
            reason = self._refused[form] = _why_not(form, model.inputs, model.outputs)
        if reason:
            raise NotBindable(reason)
        if self._handle is None:
            self._handle = model.another_handle(self._core_mask)
        self._choose(self._handle, form)
        queries = _PLAIN if form.shape_set is None else _CURRENT
        made = tuple(
            [
                _BoundForm(port, self._attribute(port, is_input, index, query), is_input=is_input)
                for index, port in enumerate(side)
            ]
            for side, is_input, query in zip((form.inputs, form.outputs), (True, False), queries)
        )
        known = self._forms[form] = (made[0], made[1])
        return self._handle, known

    def _attribute(self, port: PortForm, is_input: bool, index: int, query: int) -> abi.TensorAttr:
        assert self._handle is not None
        if port.native:
            return native_attribute(self._model.binding, self._handle, is_input, index, port.layout)
        return read_attribute(self._model.binding, self._handle, query, index)

    def _choose(self, handle: Handle, form: CallForm) -> None:
        """Set a dynamic model to the form's shapes. It is unknown whether memory bound for other shapes stays bound."""
        if form.shape_set is not None and handle.shape_set != form.shape_set:
            self._bound.clear()
            self._model.set_shapes(handle, form.shape_set)

    def _bind(self, handle: Handle, is_input: bool, index: int, port: _BoundForm, place: int | Region) -> _Memory:
        memory = self._own(handle, port) if isinstance(place, int) else self._import(handle, port, place)
        bound = self._bound.get((is_input, index))
        if bound is None or bound[0] is not port or bound[1] is not memory:
            code = self._functions.set_io(handle.value, memory.pointer, port.reference)
            if code:
                raise NotBindable(f"rknn_set_io_mem refuses it ({code})")
            self._bound[is_input, index] = (port, memory)
        return memory

    def _own(self, handle: Handle, port: _BoundForm) -> _Memory:
        if port.own is None:
            pointer = self._functions.create(handle.value, port.room)
            if not pointer:
                raise NotBindable(f"rknn_create_mem gives no {port.room} bytes")
            port.own = _Memory(pointer, None)
        return port.own

    def _import(self, handle: Handle, port: _BoundForm, region: Region) -> _Memory:
        buffer = region.buffer
        size = min(port.room, buffer.nbytes - region.offset)
        key = (buffer, region.offset, size)
        memory = self._imported.pop(key, None)
        if memory is None:
            if region.offset > _LARGEST_OFFSET:
                raise NotBindable(f"it begins {region.offset} bytes into its buffer, and the runtime takes 31 bits")
            address = buffer.address + region.offset
            pointer = self._functions.from_fd(handle.value, buffer.fd, address, size, region.offset)
            if not pointer:
                raise NotBindable("rknn_create_mem_from_fd refuses the buffer")
            memory = _Memory(pointer, buffer)
        self._imported[key] = memory  # the most recently used comes last
        return memory

    def _free(self, handle: Handle, memory: _Memory) -> None:
        code = self._functions.destroy(handle.value, memory.pointer)
        if code:
            log.warning("rknn_destroy_mem failed with %d: the memory may stay in use until its context ends", code)

    def _forget(self, handle: Handle, used: list[_Memory]) -> None:
        """Release the imports of freed buffers, and those beyond the limit. None of them is bound any more."""
        for key in [key for key in self._imported if key[0].freed]:
            self._free(handle, self._imported.pop(key))
        for key in list(self._imported)[: max(0, len(self._imported) - _KEPT)]:
            if self._imported[key] not in used:
                self._free(handle, self._imported.pop(key))

    def _sync(self, handle: Handle, memory: _Memory, mode: int) -> None:
        code = self._functions.sync(handle.value, memory.pointer, mode)
        if code:
            raise RknnError("rknn_mem_sync", code)


def _check_rows(port: _BoundForm, place: int | Region, info: TensorInfo) -> None:
    pitch = 0 if isinstance(place, int) else place.row_pitch
    if port.pitch and pitch != port.pitch:
        raise NotBindable(f"input {info.name!r}: the NPU reads rows that are {port.pitch} bytes apart")
    if pitch and pitch != (port.pitch or port.nbytes // port.rows):
        raise NotBindable(f"input {info.name!r}: rows are {pitch} bytes apart, and the NPU reads them without gaps")


def _why_not(form: CallForm, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> str:
    """Why calls of this form cannot be bound; "" if they can."""
    for port, info in zip(form.inputs, inputs, strict=True):
        if port.native:
            continue
        as_stored = port.dtype == info.dtype and (port.pass_through or info.quantization is None)
        if len(info.shape) == 4:
            if port.layout != "NHWC" or not (as_stored or port.dtype == "uint8"):
                return (
                    f"input {info.name!r} is {port.dtype} {port.layout}; the NPU reads uint8 or {info.dtype} NHWC "
                    "from memory (provider options layout='NHWC', input_dtype='uint8')"
                )
        elif not as_stored:
            return f"input {info.name!r} is {port.dtype}; the NPU reads {info.dtype} from memory"
    for port, info in zip(form.outputs, outputs, strict=True):
        another = form.shape_set is None and math.prod(port.shape) != math.prod(info.shape)
        if not port.native and (port.dtype not in ("float32", info.dtype) or another):
            return f"output {info.name!r} is {port.dtype}; the NPU writes float32 or {info.dtype} to memory"
    return ""
