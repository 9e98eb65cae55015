"""The work of a run on its context."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from .._concurrency.pacer import Pacer
from .._errors import RUNTIME_EXCEPTION, ort_error
from ..adapter.addresses import array_at
from ..adapter.contract import AdapterError, Model, RknnError
from ..adapter.optional import RunsWhole
from .bound_runs import serve
from .buffers import table
from .calls import Call, Shapes
from .conversion import Scratch
from .lanes import Lease
from .recording import Asked, record, record_failure, sinks
from .signature import Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .health import Health


class Work:
    """The work of a run on its context. Separate from the executor, so that a worker does not keep an executor
    alive."""

    __slots__ = ("_pacer", "health", "label", "signature")

    def __init__(self, signature: Signature, label: str, pacer: Pacer | None) -> None:
        self.signature = signature
        self.label = label
        self._pacer = pacer
        self.health: Health | None = None
        """Of the cores, if there are several."""

    def do(
        self,
        call: Call,
        inputs: Sequence[int],
        outputs: Sequence[int],
        lease: Lease,
        asked: Asked | None = None,
    ) -> None:
        """Run ``call`` on ``lease``. ``asked``: for a run that waited."""
        started = time.perf_counter() if self._pacer is not None else 0.0
        began = time.perf_counter_ns() if sinks else 0
        users = lease.users
        try:
            if users is not None:
                users.add(lease)
            if table:
                serve(self.signature, lease, call, inputs, outputs, self._usual)
            elif call.direct:
                lease.context.run(call.form, inputs, outputs)
            else:
                self._converted(lease, call, inputs, outputs)
        except AdapterError as error:
            lease.errors += 1
            lease.shape_set = None  # after a failed call the state is unknown
            if began:
                record_failure(self.signature, self.label, lease, began, error, asked)
            raise self._failure(lease, error) from error
        finally:
            if users is not None:
                users.discard(lease)
        lease.runs += 1
        if lease.timed:
            start, ready, over, end = lease.context.times  # type: ignore[attr-defined]  # see TimesRuns
            lease.convert_ns += ready - start
            lease.run_ns += over - ready
            lease.fetch_ns += end - over
            if sinks:
                record(self.signature, self.label, lease, (start, ready, over, end), asked)
        lease.shape_set = call.form.shape_set
        if self._pacer is not None:
            self._pacer.record(time.perf_counter() - started)

    def do_later(
        self,
        asked: Asked,
        call: Call,
        inputs: Sequence[int],
        outputs: Sequence[int],
        lease: Lease,
    ) -> None:
        """As :meth:`do`, for a run that waited."""
        lease.waits += 1
        lease.wait_ns += time.perf_counter_ns() - asked[0]
        self.do(call, inputs, outputs, lease, asked)

    def attempt(self, call: Call, lease: Lease) -> None:
        """One run on zeros, which is not counted. Raises AdapterError."""
        signature = self.signature
        sources = [np.zeros(shape, port.dtype) for shape, port in zip(call.inputs, signature.inputs)]
        targets = [np.zeros(shape, port.dtype) for shape, port in zip(call.outputs, signature.outputs)]
        self._usual(lease, call, [a.ctypes.data for a in sources], [a.ctypes.data for a in targets])
        lease.shape_set = call.form.shape_set

    def _usual(self, lease: Lease, call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        if call.direct:
            lease.context.run(call.form, inputs, outputs)
        else:
            self._converted(lease, call, inputs, outputs)

    def do_whole(
        self, model: Model, shapes: Shapes, inputs: Sequence[int], results: list[NDArray[np.generic]], lease: Lease
    ) -> None:
        """As :meth:`do`, for the whole ONNX: its outputs are appended to ``results``."""
        started, began = time.perf_counter(), time.perf_counter_ns()
        ports = self.signature.inputs
        feed: list[NDArray[np.generic]] = [np.empty(0)] * len(ports)
        for port, shape, address in zip(ports, shapes, inputs):
            array = array_at(address, shape, port.dtype)
            if port.layout == "NHWC":
                array = array.transpose(0, 3, 1, 2)
            feed[port.index] = np.ascontiguousarray(array, port.onnx_dtype).reshape(array.shape)
        users = lease.users
        try:
            if users is not None:
                users.add(lease)
            given = cast(RunsWhole, model).run_whole(lease.context, feed)
        except AdapterError as error:
            lease.errors += 1
            if sinks:
                record_failure(self.signature, self.label, lease, began, error)
            raise self._failure(lease, error) from error
        finally:
            if users is not None:
                users.discard(lease)
        lease.runs += 1
        end = time.perf_counter_ns()
        lease.run_ns += end - began
        if sinks:
            record(self.signature, self.label, lease, (began, began, end, end))
        for port in self.signature.outputs:
            result = given[port.index]
            results.append(np.ascontiguousarray(result, port.dtype).reshape(result.shape))
        if self._pacer is not None:
            self._pacer.record(time.perf_counter() - started)

    def _converted(self, lease: Lease, call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        if call.padded and not call.filled:
            lease.padded += 1
        signature = self.signature
        scratch = None if call.padded else lease.scratch.get(call.form)
        if scratch is None:
            scratch = Scratch(call.form, signature, call.inputs, call.outputs)
            if not call.padded:
                lease.scratch[call.form] = scratch
        start = time.perf_counter_ns()
        wire_in = scratch.fill(signature, inputs)
        wire_out = scratch.output_addresses(signature, outputs)
        lease.convert_ns += time.perf_counter_ns() - start
        lease.context.run(call.form, wire_in, wire_out)
        over = time.perf_counter_ns()
        scratch.read(signature, outputs)
        end = time.perf_counter_ns()
        lease.fetch_ns += end - over
        lease.began, lease.ended = start, end
        lease.converted += scratch.nbytes

    def _failure(self, lease: Lease, error: AdapterError) -> Exception:
        """A RuntimeException. If the core is at fault, its ``failed_on`` is the core's label."""
        core = lease.label
        code = f", RKNN error code {error.code}" if isinstance(error, RknnError) else ""
        failure = ort_error(RUNTIME_EXCEPTION, f"{self.label}: {error} [on {core}{code}]")
        if self.health is not None and self.health.failed(lease, error):
            failure.failed_on = core  # type: ignore[attr-defined]
        return failure
