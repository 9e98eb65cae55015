"""A loaded model with its contexts: opened, counted, closed, and reopened in a forked child."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial

from .._concurrency.forks import keep, leave_out_exit_handlers
from .._concurrency.pacer import Pacer
from .._errors import FAIL, RUNTIME_EXCEPTION, ort_error
from .._interrupts import start_thread
from .._locks import RLock
from .._options import PRIORITIES, Options
from ..adapter.contract import AdapterError, Model
from ..files import OnnxValue
from . import published, run_settings
from .buffers import BufferRuns, sum_of
from .call_order import CallOrder
from .calls import Calls
from .contexts import open_contexts, watch_cores
from .counters import ModelStats, forget_closed, gather, remember_closed, without_contexts
from .cpu_fallback import CpuFallback
from .cpu_twin import CpuTwin, cpu_twin
from .dispatch import Dispatch
from .health import Health
from .lanes import Lane, Lease
from .provenance import Provenance
from .recovery import Recovery
from .sample_runs import SampleRuns
from .signature import Signature
from .work import Work

log = logging.getLogger("ort_rknn")

_INHERITED = (
    "the process was forked after the session was made, and after_fork='refuse' forbids opening it again; "
    "make the session in the child instead"
)


class OpenModel:
    """A loaded model and its contexts.

    A forked child reopens it on first use, with ``load_again`` and with contexts of its own; without ``load_again``,
    runs in the child are refused. What the parent opened stays untouched.

    Takes ownership of ``model`` and of the open file that it is loaded from: :meth:`close` closes them, and so does a
    failure to create the contexts. Thread-safe. Raises RknnError or AdapterError if a context cannot be created.
    """

    feedable: tuple[OnnxValue, ...] = ()
    """Initializers that a call may feed, which then runs on the CPU; set as :attr:`cpu_fallback` is."""

    def __init__(
        self,
        model: Model,
        dispatch: Dispatch,
        signature: Signature,
        label: str,
        options: Options | None = None,
        provenance: Provenance | None = None,
        *,
        whole: bool = False,
    ) -> None:
        """``whole``: every call runs the whole ONNX, which ``model`` supports (:class:`ort_rknn.adapter.RunsWhole`)."""
        self.provenance = provenance = provenance or Provenance()
        self._held = provenance.held
        self._device = provenance.device
        self._inherited = False  # by a fork, and not reopened yet
        self.model = model
        self.dispatch = dispatch
        self.signature = signature
        self.label = label
        self.options = options or Options()
        self._runs_whole = whole
        self._leases: list[Lease] = []
        self._lanes: tuple[Lane, ...] = ()
        self._closing = RLock()
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
            self._cpu_twin = cpu_twin(self.options, provenance.onnx, provenance.cpu_session)
            # Queried now, because a runtime returns the shapes of a set by switching a context to it, which would break
            # a run.
            sets: Sequence[int | None] = range(len(signature.sets)) if signature.dynamic else (None,)
            output_shapes = {k: model.output_shapes(k) for k in sets}
            extents = partial(self._cpu_twin.output_shapes, signature) if self._cpu_twin is not None else None
            self._calls = Calls(signature, output_shapes, self.options, label, whole=whole, extents=extents)
            self._lanes = self._open_contexts()
            self.static_call = self._calls.static()
            self._begin()
            self._publishes = published.enabled()
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

    def _ended(self) -> Exception:
        return ort_error(RUNTIME_EXCEPTION, f"{self.label}: {self._end}")

    # Counters and the end -------------------------------------------------------------------------------------------

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
        on_cpu = self.missing_shapes()["cpu"] + self.fed_runs()
        instead = self.cpu_fallback.runs if self.cpu_fallback is not None else 0
        found = gather(self.label, list(self._leases), set(self._lanes), on_cpu, instead, self.outages())
        return without_contexts(found) if self._over else found

    def outages(self) -> dict[str, tuple[int, bool]]:
        """For each core that was ever taken out of service: how often, and whether it is out now."""
        cores = self._health.cores if self._health is not None else ()
        return {core.label: (core.outages, core.out) for core in cores if core.outages}

    def missing_shapes(self) -> dict[str, int]:
        """How many calls with shapes that were not compiled were "padded", and how many ran on the "cpu"."""
        on_cpu = self._cpu_twin.runs if self._cpu_twin is not None else 0
        return {"padded": sum(lease.padded for lease in self._leases), "cpu": on_cpu}

    def fed_runs(self) -> int:
        """How many calls ran on the CPU because they fed an initializer."""
        return self._cpu_twin.fed_runs if self._cpu_twin is not None else 0

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
                    lane.drain()
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

    # In a forked child ----------------------------------------------------------------------------------------------

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
        self._closing = RLock()
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
            if not self._inherited or self.provenance.load_again is None:
                raise self._ended()
            model: Model | None = None
            try:
                model = self.model = self.provenance.load_again()
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


def _choose_order(of: weakref.ref[OpenModel]) -> None:
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
_alive: weakref.WeakSet[OpenModel] = weakref.WeakSet()


def alive() -> list[OpenModel]:
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
