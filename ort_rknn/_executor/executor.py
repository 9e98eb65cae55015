"""The executor: one loaded model on its cores.

A run executes on the caller's own thread, on a context that it borrows: no queue, no thread switch, no copy of the
input if the runtime accepts it unchanged. Runs wait per core, so a slow core delays no others. We use threads only if
runs wait (see :mod:`~ort_rknn._executor.lanes`) or one call has several samples; they are started on first use.

Buffers are passed as addresses, so the same code serves the execution provider (onnxruntime's buffers) and numpy
callers.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .._concurrency.forks import keep, leave_out_exit_handlers
from .._concurrency.pacer import Pacer
from .._errors import FAIL, INVALID_ARGUMENT, RUNTIME_EXCEPTION, ort_error
from .._interrupts import start_thread
from .._options import PRIORITIES, Options
from ..adapter.contract import AdapterError, Model, ModelSource
from . import published, run_settings
from .bounded import BoundedRun
from .buffers import BufferRuns, sum_of
from .call_order import CallOrder
from .calls import Call, Calls, Shapes
from .contexts import open_contexts, watch_cores
from .conversion import checked
from .counters import ModelStats, forget_closed, gather, remember_closed
from .cpu_fallback import CpuFallback
from .cpu_twin import CpuTwin, cpu_twin
from .dispatch import Dispatch
from .health import Health
from .lanes import Lane, Lease
from .recording import asked_now
from .recovery import Recovery, Retried, StartedRun, WorkerRun, wait
from .run_settings import RunSettings
from .sample_runs import SampleRuns
from .signature import Signature
from .work import Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..files.compatibility import Compatibility
    from ..files.pinned import Pinned

log = logging.getLogger("ort_rknn")

_INHERITED = (
    "the process was forked after the session was made, and after_fork='refuse' forbids opening it again; "
    "make the session in the child instead"
)


class Executor:
    """A loaded model, its contexts, and the dispatch of runs to them.

    A forked child reopens it on first use, with ``load_again`` and with contexts of its own; without ``load_again``,
    runs in the child are refused. What the parent opened stays untouched.

    Takes ownership of ``model`` and of ``held``, the open file that it is loaded from: :meth:`close` closes them, and
    so does a failure to create the contexts. Thread-safe. Raises RknnError or AdapterError if a context cannot be
    created.
    """

    def __init__(
        self,
        model: Model,
        dispatch: Dispatch,
        signature: Signature,
        label: str,
        options: Options | None = None,
        *,
        onnx: str | bytes | None = None,
        cpu_session: Callable[[str | bytes], Any] | None = None,
        held: Pinned | None = None,
        whole: bool = False,
        load_again: Callable[[], Model] | None = None,
        device: str = "",
        source: ModelSource | None = None,
        compatibility: Compatibility | None = None,
    ) -> None:
        """``onnx``: the ONNX for calls whose shapes were not compiled, if ``options`` say so; ``cpu_session`` creates
        its session. ``whole``: every call runs the whole ONNX, which ``model`` supports
        (:class:`ort_rknn.adapter.RunsWhole`). ``device``: its name, by which sessions share their use of cores.
        ``source``: what the compiled model was loaded from."""
        self._held = held
        self._device = device
        self.compatibility = compatibility
        """The verdict on the compiled model; None if nothing is known about it."""
        self.source = source if source is not None else ModelSource(data=b"")
        self._load_again = load_again
        self._inherited = False  # by a fork, and not reopened yet
        self.model = model
        self.dispatch = dispatch
        self.signature = signature
        self.label = label
        self.options = options or Options()
        self._runs_whole = whole
        self._leases: list[Lease] = []
        self._lanes: tuple[Lane, ...] = ()
        self._closing = threading.RLock()
        self._closes = False  # used only by the thread that closes
        self._closes_later = False  # a thread will, when the hanging runs have returned
        self._end: str | None = None
        self._over = False  # nothing is left to close
        self._samples = SampleRuns(dispatch.contexts)
        self._tasks = itertools.count()
        self._order_of_calls: CallOrder | None = None
        self._bit = 0
        #: By thread: the number of the call that it runs, if the call got one when it was accepted. All runs of such a
        #: call go to its core.
        self.numbers: dict[int, int] = {}
        self._cpu_twin: CpuTwin | None = None
        self._pacer = self._new_pacer()
        self._health: Health | None = None
        self.cpu_fallback: CpuFallback | None = None
        """Serves runs while the device is gone; set by whoever creates the session, before the first run."""
        try:
            self._cpu_twin = cpu_twin(self.options, onnx, cpu_session)
            # Queried now, because a runtime returns the shapes of a set by switching a context to it, which would break
            # a run.
            sets: Sequence[int | None] = range(len(signature.sets)) if signature.dynamic else (None,)
            output_shapes = {k: model.output_shapes(k) for k in sets}
            extents = partial(self._cpu_twin.output_shapes, signature) if self._cpu_twin is not None else None
            self._calls = Calls(signature, output_shapes, self.options, label, whole=whole, extents=extents)
            self._lanes = self._open_contexts()
            self.static_call = self._calls.static()
            self._begin()
            self._publishes = published.wanted()
        except BaseException:
            self.close()
            raise
        self.number = next(_numbers)
        _alive.add(self)
        if self._publishes:
            published.begin(_loads)

    def _open_contexts(self) -> tuple[Lane, ...]:
        by_shape = self.signature.dynamic
        return open_contexts(self.model, self.dispatch, self._device, self._leases, by_shape=by_shape)

    def _begin(self) -> None:
        """Create what depends on the open contexts."""
        self._order = tuple(self._lanes[i] for i in self.dispatch.order)
        for lane in self._lanes:
            lane.usual_priority = PRIORITIES.index(self.options.priority)
        work = self._work = Work(self.signature, self.label, self._pacer)
        self._health = None
        if len(self.dispatch.lanes) > 1:
            call = None if self._runs_whole else partial(self._calls.find, self.signature.sets[0])
            self._health = work.health = watch_cores(
                self.model,
                self.dispatch,
                self._leases,
                self._lanes,
                work,
                call,
                partial(_choose_order, weakref.ref(self)),
            )
        self._recovery = Recovery(self._health, self.options.retries, self.label)

    def call_for(self, shapes: Shapes) -> Call | None:
        """The call for input shapes (signature's order and layout); None: :meth:`run_onnx` serves it.

        Raises InvalidArgument for shapes that were not compiled and that no policy covers, and names the compiled ones.
        """
        return self._calls.find(shapes)

    # Running --------------------------------------------------------------------------------------------------

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
            lease = None if apart else lane.take(call.form.shape_set)
            if lease is None:
                wait(lane, self._worker_run(call, inputs, outputs))
            else:
                try:
                    self._work.do(call, inputs, outputs, lease)
                finally:
                    try:
                        lane.put_back(lease)
                    finally:
                        lane.call_who_waits()
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
            return self.source.data or b""
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

    def run_onnx(self, shapes: Shapes, inputs: Sequence[int]) -> list[NDArray[np.generic]]:
        """Run a call for which :meth:`call_for` returned None on the ONNX: on the CPU, or whole on a context of a
        stand-in.

        ``inputs`` are addresses, in the signature's order. Returns arrays in the signature's order.
        """
        if self._runs_whole:
            return self._run_whole(shapes, inputs)
        assert self._cpu_twin is not None
        self._cpu_twin.tell_once(self.label, lambda: self._calls.spell(shapes))
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

    def _ended(self) -> Exception:
        return ort_error(RUNTIME_EXCEPTION, f"{self.label}: {self._end}")

    def run(self, feed: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Run with numpy arrays in the signature's order, shapes and dtypes; returns fresh C-contiguous arrays.

        Raises InvalidArgument for a wrong number of arrays, dtype or shape.
        """
        arrays = checked(self.signature, feed, self.label)
        shapes = tuple(a.shape for a in arrays)
        call = self.static_call or self.call_for(shapes)
        if call is None:
            return self.run_onnx(shapes, [a.ctypes.data for a in arrays])
        results: list[NDArray[np.generic]] = [
            np.empty(shape, port.dtype) for shape, port in zip(call.output_shapes, self.signature.outputs)
        ]
        self.execute(call, [a.ctypes.data for a in arrays], [r.ctypes.data for r in results])
        return results

    # Counters and the end -------------------------------------------------------------------------------------

    def counters(self) -> dict[str, dict[str, int]]:
        """Per core (or group of cores): ``runs`` that succeeded, and ``errors``."""
        out: dict[str, dict[str, int]] = {}
        for lease in self._leases:
            entry = out.setdefault(lease.label, {"runs": 0, "errors": 0})
            entry["runs"] += lease.runs
            entry["errors"] += lease.errors
        return out

    def stats(self) -> ModelStats:
        """What it has done so far, and what it is doing."""
        on_cpu = self.missing_shapes()["cpu"]
        instead = self.cpu_fallback.runs if self.cpu_fallback is not None else 0
        return gather(self.label, list(self._leases), set(self._lanes), on_cpu, instead, self.outages())

    def outages(self) -> dict[str, tuple[int, bool]]:
        """For each core that was ever taken out of service: how often, and whether it is out now."""
        cores = self._health.cores if self._health is not None else ()
        return {core.label: (core.outages, core.out) for core in cores if core.outages}

    def missing_shapes(self) -> dict[str, int]:
        """How many calls with shapes that were not compiled were "padded", and how many ran on the "cpu"."""
        on_cpu = self._cpu_twin.runs if self._cpu_twin is not None else 0
        return {"padded": sum(lease.padded for lease in self._leases), "cpu": on_cpu}

    def buffer_runs(self) -> BufferRuns:
        """Counters of runs with arrays in memory shared with the NPU, all contexts together."""
        return sum_of(lease.buffer_runs for lease in self._leases)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._end is not None and not self._inherited

    def retire(self) -> None:
        """As :meth:`close`, for a session that continues with another executor: waiting runs still get a context."""
        if not any(lane.is_worker() for lane in self._lanes):
            for lane in self._lanes:
                if not lane.hanging():
                    lane.let_through()
        self.close("the session's providers were changed during this call: run it again")

    def close(self, why: str = "the session was closed") -> None:
        """Close it permanently: wait for active runs, then release contexts and model. Idempotent, from any thread.

        Runs that wait for a context or come later get a RuntimeException with the reason ``why``. A run that hangs past
        ``run_timeout_ms`` is not waited for: its resources are released when it returns.
        """
        on_health_thread = self._health is not None and self._health.is_watcher()
        if on_health_thread or any(lane.is_worker() for lane in self._lanes):
            # Garbage collection may end a session anywhere, and a worker cannot wait for itself.
            start_thread(threading.Thread(target=self.close, args=(why,), name="ort_rknn close"))
            return
        if any(lease.left_until is not None for lease in self._leases):
            # An abandoned run still has its context. Only a separate thread waits for it, which does not delay the end
            # of the process either.
            self._end = self._end or why
            if not self._closes_later:
                start_thread(threading.Thread(target=self._close_later, name="ort_rknn close", daemon=True))
                self._closes_later = True  # if no thread can be started, the next close() tries again
            return
        with self._closing:
            if self._inherited:
                self._inherited, self._end = False, why
                self._close_files()
                return
            if self._end is None:
                self._end = why
            elif self._over or self._closes:
                return  # already closed, forked, or garbage collection ran while this very thread is closing it
            self._closes = True
            try:
                self._close()
            finally:
                self._closes = False

    def _close_later(self) -> None:
        with self._closing:
            if not self._over:
                self._close()

    def _close(self) -> None:
        _alive.discard(self)
        if self._health is not None:
            self._health.stop()
        refusal = partial(ort_error, RUNTIME_EXCEPTION, f"{self.label}: {self._end}")
        # A Ctrl-C may interrupt the waiting: the next close() continues with the rest.
        if not all(lane.close(refusal) for lane in self._lanes):
            return
        self._over = True
        remember_closed(self.stats())
        self._samples.close()
        _close_all([*(lease.context.close for lease in reversed(self._leases)), self.model.close, self._close_files])
        if not alive():
            published.last_closed()

    def _close_files(self) -> None:
        _close_all([o.close for o in (self._cpu_twin, self.cpu_fallback, self._held) if o is not None])

    # In a forked child ----------------------------------------------------------------------------------------

    def _leave_to_parent(self) -> None:
        """In the child, right after the fork, when there is no other thread."""
        for thing in (self.model, self._leases, self._lanes, self._health):
            keep(thing)
        leave_out_exit_handlers()
        self._samples.leave_to_parent()
        if self._cpu_twin is not None:
            self._cpu_twin.after_fork()
        if self.cpu_fallback is not None:
            self.cpu_fallback.after_fork()
        self._closing = threading.RLock()
        self._leases, self._lanes, self._health = [], (), None
        self._closes = False
        self.numbers.clear()
        self._pacer = self._new_pacer()
        self._over = True
        if self._end is None:
            self._inherited = True
            self._end = _INHERITED

    def open_here(self) -> None:
        """Make sure that an executor inherited by a fork can run in this process: load the model and open contexts.

        Raises RuntimeException if it was closed or must not be reopened; Fail if reopening fails, in which case the
        next call tries again.
        """
        with self._closing:
            if self._end is None:
                return  # another thread was faster
            if not self._inherited or self._load_again is None:
                raise self._ended()
            model: Model | None = None
            try:
                model = self.model = self._load_again()
                self._lanes = self._open_contexts()
            except BaseException as error:
                closers = [*(lease.context.close for lease in reversed(self._leases))]
                self._leases, self._lanes = [], ()
                _close_all([*closers, model.close] if model is not None else closers)
                if isinstance(error, AdapterError):
                    raise ort_error(FAIL, f"{self.label} cannot be opened in the forked process: {error}") from error
                raise
            self._begin()
            self._tasks = itertools.count()
            self._over = self._inherited = False
            _alive.add(self)
            if self._publishes:
                published.begin(_loads)
            self._end = None  # last, because other threads read it without a lock
        log.info("%s: opened again in the forked process %d", self.label, os.getpid())

    def _new_pacer(self) -> Pacer | None:
        options = self.options
        return Pacer(len(self.dispatch.lanes), options.submit_timeout_ms) if options.enable_pacing else None


def _choose_order(of: weakref.ref[Executor]) -> None:
    """Restrict the round-robin to lanes with a core in service."""
    executor = of()
    if executor is not None:
        lanes = executor._lanes
        order = tuple(lanes[i] for i in executor.dispatch.order)
        executor._order = tuple(lane for lane in order if lane.divert is None) or order


def _close_all(closers: Sequence[Callable[[], None]]) -> None:
    """Call all of them, then raise the first error."""
    first: BaseException | None = None
    for close in closers:
        try:
            close()
        except BaseException as error:
            first = first or error
    if first is not None:
        raise first


#: Numbers the executors of this process in order of creation.
_numbers = itertools.count(1)
_alive: weakref.WeakSet[Executor] = weakref.WeakSet()


def alive() -> list[Executor]:
    """The executors of this process that are not closed."""
    while True:
        try:
            return list(_alive)
        except RuntimeError:  # one was added or removed meanwhile
            pass


def _loads() -> list[tuple[int, str, ModelStats]]:
    """For :mod:`~ort_rknn._executor.published`. Does not include executors that a fork left to the parent."""
    return [
        (each.number, each._device.rpartition(" ")[2], each.stats())
        for each in alive()
        if not each._inherited and not each._over
    ]


def _after_fork() -> None:
    forget_closed()
    run_settings.forget()
    for executor in list(_alive):
        executor._leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
