"""The executor: one loaded model on its cores.

A run executes on the caller's own thread, on a context that it borrows: no queue, no thread switch, no copy of the
input if the runtime accepts it unchanged. Runs wait per core, so a slow core delays no others. We use threads only if
runs wait (see :mod:`~ort_rknn._executor.lanes`) or one call has several samples; they are started on first use.

Buffers are passed as addresses, so the same code serves the execution provider (onnxruntime's buffers) and numpy
callers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from .._errors import INVALID_ARGUMENT, ort_error
from ..adapter.addresses import address_of
from . import run_settings
from .bounded import BoundedRun
from .call_order import CallOrder
from .calls import Call, Shapes
from .conversion import checked
from .lanes import Lane, Lease
from .open_model import OpenModel
from .recording import asked_now
from .recovery import Retried, StartedRun, WorkerRun, wait
from .run_settings import RunSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Executor(OpenModel):
    """A loaded model, its contexts, and the dispatch of runs to them."""

    def call_for(self, shapes: Shapes) -> Call | None:
        """The call for input shapes (signature's order and layout); None: :meth:`run_onnx` serves it.

        Raises InvalidArgument for shapes that were not compiled and that no policy covers, and names the compiled ones.
        """
        return self._calls.find(shapes)

    # Running --------------------------------------------------------------------------------------------------------

    def execute(self, call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Run ``call``: read the buffers at ``inputs``, write those at ``outputs`` (addresses, signature's order).

        Blocks; the GIL is released while the NPU works. Raises RuntimeException naming the model, the core and the RKNN
        error code; the outputs are then undefined.
        """
        if call.samples == 1 and call.last is None:
            self._run_one(call, inputs, outputs)
        else:
            self._run_samples(call, inputs, outputs)

    def execute_on(self, lane: int, call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """As :meth:`execute` for one sample, on ``dispatch.lanes[lane]``: for callers that order runs themselves."""
        if self._end is not None:
            self.open_here()
        self._run_one(call, inputs, outputs, self._lanes[lane])

    def start_on(
        self, lane: int, call: Call, inputs: Sequence[int], outputs: Sequence[int], over: Callable[[], None]
    ) -> StartedRun:
        """As :meth:`execute_on`, on another thread; returns at once, or when pacing admits the run. ``over`` is called
        when the run has ended; it keeps the buffers alive until then, and until the result is ready. ``result()``
        waits, and raises what :meth:`execute` raises. It also performs retries on other cores."""

        def work(lease: Lease) -> None:
            try:
                self._work.do_later(asked, call, inputs, outputs, lease)
            finally:
                over()

        if self._pacer is not None:
            self._pacer.wait()
        if self._end is not None:
            self.open_here()
        if self.options.run_timeout_ms:
            run = BoundedRun(self._work, call, inputs, outputs, self.options.run_timeout_ms)
            return Retried(self._recovery, run.start(self._lanes[lane], over), run, over)
        asked = asked_now(blocks=False)
        turn = self._lanes[lane].start(work, over)
        if self._health is None:
            return turn
        return Retried(self._recovery, turn, partial(self._work.do_later, asked, call, inputs, outputs), over)

    def _run_one(self, call: Call, inputs: Sequence[int], outputs: Sequence[int], lane: Lane | None = None) -> None:
        if self._pacer is not None:
            self._pacer.wait()
        if self._end is not None:
            self.open_here()
        fallback = self.cpu_fallback
        trying = fallback is not None and fallback.gone
        if trying and not fallback.try_device():  # type: ignore[union-attr]
            fallback.run(self.signature, call, inputs, outputs)  # type: ignore[union-attr]
            return
        if lane is None:
            number = self.numbers.get(threading.get_ident()) if self.numbers else None
            lane = self._lane(self._own_number() if number is None else number)
        settings = run_settings.current()
        apart = self._waits_apart(settings) if settings is not None else self.options.run_timeout_ms > 0
        try:
            taken: list[Lease] = []
            try:
                if not apart:
                    lane.take(taken, call.form.shape_set)
                if taken:
                    self._work.do(call, inputs, outputs, taken[0])
                else:
                    wait(lane, self._worker_run(call, inputs, outputs))
            finally:
                if taken:
                    try:
                        lane.put_back(taken[0])
                    finally:
                        lane.wake_next()
        except Exception as failure:
            if self._recovery.succeeds(failure, self._worker_run(call, inputs, outputs), fallback):
                return
            fallback.run(self.signature, call, inputs, outputs)  # type: ignore[union-attr]  # else it had raised
            return
        if trying:
            fallback.is_back(self.label)  # type: ignore[union-attr]

    def _waits_apart(self, settings: RunSettings) -> bool:
        """Whether the caller waits on a different thread than the run. Raises InvalidArgument for a timeout longer than
        the session's."""
        usual, asked = self.options.run_timeout_ms, settings.timeout_ms
        if usual and asked is not None and not 0 < asked <= usual:
            raise ort_error(
                INVALID_ARGUMENT,
                f"{self.label}: ort_rknn.run_timeout_ms={asked} in RunOptions: expected 1 to {usual}, because "
                f"the runtime ends every run after the session's run_timeout_ms={usual}",
            )
        return usual > 0 or settings.bounds

    def _worker_run(self, call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> WorkerRun:
        """The run, for a lane's worker."""
        settings, timeout_ms = run_settings.current(), self.options.run_timeout_ms
        if settings is not None and settings.timeout_ms is not None:
            timeout_ms = settings.timeout_ms
        if timeout_ms or (settings is not None and settings.leaves):
            return BoundedRun(self._work, call, inputs, outputs, timeout_ms)
        return partial(self._work.do_later, asked_now(blocks=True), call, inputs, outputs)

    def compiled(self) -> bytes:
        """The compiled model itself. Raises OSError if its file cannot be read, ValueError if it was modified."""
        if self._held is None:
            return self.provenance.source.data or b""
        content = self._held.read(0, self._held.size)
        if (change := self._held.change()) is not None:
            raise ValueError(change)
        return content

    def take_number(self) -> int:
        """The next call's number. Calls that start later take theirs when they are accepted."""
        return next(self._tasks) if self._order_of_calls is None else self._order_of_calls.take()

    def join(self, order: CallOrder, bit: int) -> None:
        """Take call numbers from ``order``, shared with the session's other executors; ``bit`` identifies this one."""
        self._order_of_calls, self._bit = order, bit

    def _own_number(self) -> int:
        order = self._order_of_calls
        return next(self._tasks) if order is None else order.number(self._bit)

    def _lane(self, number: int) -> Lane:
        order = self._order  # another thread may replace it
        return order[number % len(order)]

    def run_fed(
        self, shapes: Shapes, inputs: Sequence[int], fed: Mapping[str, NDArray[np.generic]]
    ) -> list[NDArray[np.generic]]:
        """As :meth:`run_onnx`, always on the CPU, for a call that feeds initializers, which were compiled in."""
        assert self._cpu_twin is not None
        return self._cpu_twin.run_fed(self.signature, shapes, inputs, fed, self.label)

    def run_onnx(self, shapes: Shapes, inputs: Sequence[int]) -> list[NDArray[np.generic]]:
        """Run a call for which :meth:`call_for` returned None on the ONNX: on the CPU, or whole on a context of a
        stand-in.

        ``inputs`` are addresses, in the signature's order. Returns arrays in the signature's order.
        """
        if self._runs_whole:
            return self._run_whole(shapes, inputs)
        assert self._cpu_twin is not None
        self._cpu_twin.warn_once(self.label, lambda: self._calls.spell(shapes))
        return self._cpu_twin.run(self.signature, shapes, inputs)

    def _run_whole(self, shapes: Shapes, inputs: Sequence[int]) -> list[NDArray[np.generic]]:
        if self._pacer is not None:
            self._pacer.wait()
        if self._end is not None:
            self.open_here()
        number = self.numbers.get(threading.get_ident()) if self.numbers else None
        lane = self._lane(self._own_number() if number is None else number)
        results: list[NDArray[np.generic]] = []
        work = partial(self._work.do_whole, self.model, shapes, inputs, results)
        try:
            lane.wait_and_run(work)
        except Exception as failure:
            self._recovery.succeeds(failure, work)
        return results

    def _run_samples(self, call: Call, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """The runs of a batch, on all contexts at once."""
        last = call.last
        number = self.numbers.get(threading.get_ident())
        if number is None and self._order_of_calls is not None:
            number = self._order_of_calls.number(self._bit)

        settings = run_settings.current()

        def one(k: int) -> None:
            lent = run_settings.lend(settings)
            try:
                self._run_one(
                    call if last is None or k < call.samples else last,
                    [address + k * stride for address, stride in zip(inputs, call.input_strides)],
                    [address + k * stride for address, stride in zip(outputs, call.output_strides)],
                    None if number is None else self._lane(number + k),
                )
            finally:
                if lent:
                    run_settings.end()

        self._samples.run_all(one, call.samples if last is None else call.samples + 1)

    def run(self, feed: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Run with numpy arrays in the signature's order, shapes and dtypes; returns fresh C-contiguous arrays.

        Raises InvalidArgument for a wrong number of arrays, dtype or shape.
        """
        arrays = checked(self.signature, feed, self.label)
        shapes = tuple(a.shape for a in arrays)
        call = self.static_call or self.call_for(shapes)
        if call is None:
            return self.run_onnx(shapes, [a.ctypes.data for a in arrays])
        return self.run_call(call, arrays)

    def run_call(self, call: Call, arrays: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """As :meth:`run`, for arrays that ``call`` fits: nothing is checked."""
        results: list[NDArray[np.generic]] = [
            np.empty(shape, port.dtype) for shape, port in zip(call.output_shapes, self.signature.outputs)
        ]
        self.execute(call, [address_of(a) for a in arrays], [address_of(r) for r in results])
        return results
