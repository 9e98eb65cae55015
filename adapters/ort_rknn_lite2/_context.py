"""One context: converts addresses to arrays and back, around a call of the vendor's package."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from ort_rknn.adapter import (
    INPUT_DTYPES,
    AdapterError,
    CallForm,
    PortForm,
    Shape,
    TensorInfo,
    array_at,
    onnx_order,
)

from ._instance import Instance

if TYPE_CHECKING:
    from numpy.typing import NDArray


class InstanceOwner(Protocol):
    """A loaded model, as its contexts see it."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """In the model's order."""

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """In the model's order."""

    @property
    def shape_sets(self) -> tuple[tuple[Shape, ...], ...]:
        """The input shapes of each set of a dynamic model; empty for a static one."""

    def give_back(self, instance: Instance) -> None:
        """Release a context's object. Called once per object."""


#: Every integer up to this is exact in float32.
_EXACT: Final = 2.0**24


class _InputFeed:
    """One input: a view of the caller's buffer, or a copy in the axis order that the package requires."""

    __slots__ = ("dtype", "nchw", "shape", "staging", "wanted")

    def __init__(self, port: PortForm, info: TensorInfo, compiled: Shape) -> None:
        if port.dtype not in INPUT_DTYPES:
            raise AdapterError(f"input {info.name!r}: no {port.dtype} can be fed; it can be {', '.join(INPUT_DTYPES)}")
        self.shape, self.dtype = port.shape, port.dtype
        self.wanted = port.shape
        self.nchw: Shape = ()
        self.staging: NDArray[Any] | None = None
        if port.pass_through:
            return
        nhwc = info.layout == "NHWC" and len(compiled) == 4
        if port.layout == "NHWC":
            expected = (compiled[0], *compiled[2:], compiled[1]) if nhwc else compiled
        else:
            expected = compiled
        if not _same(port.shape, expected):
            # The package does not check shapes: a wrong one would be interpreted as something else.
            raise AdapterError(
                f"input {info.name!r}: the buffer is {port.dtype} {list(port.shape)} ({port.layout}), "
                f"but the model takes {list(expected)}"
            )
        if nhwc and port.layout != "NHWC":
            n, c, h, w = compiled
            self.nchw = compiled
            self.wanted = (n, h, w, c)
            self.staging = np.empty(self.wanted, self.dtype)
        else:
            self.wanted = expected

    def array(self, address: int) -> NDArray[Any]:
        given = array_at(address, self.shape, self.dtype)
        if self.staging is None:
            return given.reshape(self.wanted)
        np.copyto(self.staging, given.reshape(self.nchw).transpose(0, 2, 3, 1))
        return self.staging


class _Take:
    """One output: copies the package's float32 array to the caller's buffer."""

    __slots__ = ("dtype", "name", "shape", "whole")

    def __init__(self, port: PortForm, info: TensorInfo) -> None:
        if port.dtype not in ("float32", info.dtype):
            possible = " or ".join(dict.fromkeys((info.dtype, "float32")))
            raise AdapterError(f"output {info.name!r}: the model gives {possible}, not {port.dtype}")
        if port.layout not in (info.layout, "UNDEFINED") or port.pass_through:
            raise AdapterError(f"output {info.name!r}: it comes as {info.layout}, and never passed through")
        if port.dtype != "float32" and not info.raw:
            raise AdapterError(
                f"output {info.name!r}: raw {info.dtype} is not available: rknn-toolkit-lite2 always gives float32. "
                "Leave output_dtype out, or use the adapter 'librknnrt'."
            )
        self.name, self.shape, self.dtype = info.name, port.shape, port.dtype
        self.whole = port.dtype not in ("float32", "float16")

    def store(self, result: NDArray[Any], address: int) -> None:
        target = array_at(address, self.shape, self.dtype)
        if result.dtype != np.float32 or result.size != target.size:
            raise AdapterError(
                f"output {self.name!r}: rknn-toolkit-lite2 gives {result.dtype} {list(result.shape)}, "
                f"not float32 {list(self.shape)}"
            )
        if self.whole and result.size and not np.abs(result).max() < _EXACT:
            raise AdapterError(
                f"output {self.name!r} has integers from 2**24 on, which rknn-toolkit-lite2 gives as float32 and so "
                "not exactly. Use the adapter 'librknnrt'."
            )
        np.copyto(target, result.reshape(self.shape), casting="unsafe")


class _Prepared:
    """The prepared data of one form."""

    __slots__ = ("feeds", "form", "nbytes", "pass_through", "takes")

    def __init__(self, model: InstanceOwner, form: CallForm) -> None:
        sets = model.shape_sets
        if form.shape_set is None and sets:
            raise AdapterError(f"the model is dynamic: the form must choose one of its {len(sets)} shape sets")
        if form.shape_set is not None and not 0 <= form.shape_set < len(sets):
            raise AdapterError(f"the form chooses shape set {form.shape_set}, but the model has {len(sets) or 'none'}")
        for what, ports, infos in (("input", form.inputs, model.inputs), ("output", form.outputs, model.outputs)):
            if len(ports) != len(infos):
                raise AdapterError(f"the form has {len(ports)} {what}s, but the model has {len(infos)}")
        if form.shape_set is None:
            compiled = tuple(onnx_order(info.shape, info.layout) for info in model.inputs)
        else:
            compiled = sets[form.shape_set]
        self.form = form
        self.feeds = [_InputFeed(port, info, shape) for port, info, shape in zip(form.inputs, model.inputs, compiled)]
        self.takes = [_Take(port, info) for port, info in zip(form.outputs, model.outputs)]
        flags = [int(port.pass_through) for port in form.inputs]
        self.pass_through = flags if any(flags) else None
        self.nbytes = sum(port.nbytes for port in (*form.inputs, *form.outputs))


class Lite2Context:
    """A context of a :class:`~._model.Lite2Model` on one core mask. See :class:`ort_rknn.adapter.Context`.

    A run copies each input once (an NCHW one twice: the package accepts NHWC only) and each output twice, through
    Python's and the package's buffers.
    """

    __slots__ = ("_call", "_calls", "_core_mask", "_instance", "_model", "times")

    def __init__(self, model: InstanceOwner, instance: Instance, core_mask: int) -> None:
        self._model = model
        self._instance: Instance | None = instance
        self._core_mask = core_mask
        self._calls: dict[CallForm, _Prepared] = {}
        self._call: _Prepared | None = None
        self.times = (0, 0, 0, 0)

    @property
    def core_mask(self) -> int:
        """The requested mask."""
        return self._core_mask

    def run(self, form: CallForm, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Run once; see :meth:`ort_rknn.adapter.Context.run`."""
        call = self._call
        if call is None or call.form is not form:
            call = self._prepared(form)
        instance = self._instance
        assert instance is not None  # closed contexts have no prepared call
        if len(inputs) != len(call.feeds) or len(outputs) != len(call.takes):
            raise AdapterError(
                f"the form has {len(call.feeds)} inputs and {len(call.takes)} outputs, "
                f"but {len(inputs)} and {len(outputs)} addresses were given"
            )
        start = perf_counter_ns()
        arrays = [feed.array(address) for feed, address in zip(call.feeds, inputs)]
        # The package modifies the lists that it is given, so pass it copies.
        through = None if call.pass_through is None else list(call.pass_through)
        ready = perf_counter_ns()
        results = instance.infer(arrays, through, call.nbytes)
        over = perf_counter_ns()
        if len(results) != len(call.takes):
            raise AdapterError(f"rknn-toolkit-lite2 gives {len(results)} outputs, but the model has {len(call.takes)}")
        for take, result, address in zip(call.takes, results, outputs):
            take.store(result, address)
        self.times = (start, ready, over, perf_counter_ns())

    def close(self) -> None:
        """Release the context's object. Idempotent."""
        instance, self._instance = self._instance, None
        self._call = None
        self._calls.clear()
        if instance is not None:
            self._model.give_back(instance)

    def _prepared(self, form: CallForm) -> _Prepared:
        if self._instance is None:
            raise AdapterError("the context is closed")
        call = self._calls.get(form)
        if call is None:
            call = self._calls[form] = _Prepared(self._model, form)
        self._call = call
        return call


def _same(given: Shape, expected: Shape) -> bool:
    """Whether the shapes are equal except for axes of length 1, which an ONNX may have left out."""
    return given == expected or (
        len(given) != len(expected) and [d for d in given if d != 1] == [d for d in expected if d != 1]
    )
