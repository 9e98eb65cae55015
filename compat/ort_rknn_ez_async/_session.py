"""The session."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from ort_rknn._concurrency.forks import keep
from ort_rknn._concurrency.pipeline import Pending, Pipeline
from ort_rknn._concurrency.places import Place, Places
from ort_rknn._concurrency.started import Task
from ort_rknn._concurrency.submitter import Ended, Submitter
from ort_rknn._options import Options, read_options

from ._binding import SessionIOBinding
from ._cpu import CpuCalls
from ._feeds import Array, arrays_of, places_of, wants_batch
from ._loading import LoadedSession, load
from ._nodes import ModelMetadata, NodeArg, Tensor
from ._npu import NpuCalls
from ._values import HasTensors
from .options import CPU, read_wish

if TYPE_CHECKING:
    from types import TracebackType

#: Keywords of onnxruntime's sessions that are supported here.
_KEYWORDS = ("use_weight_from", "enable_fallback")


class SessionCore:
    """The resources of a session, separate from it: pending work refers to this object, never to the session."""

    def __init__(self, loaded: LoadedSession, options: Options) -> None:
        self.loaded = loaded
        self.calls = loaded.calls
        self.options = options
        self.ended = False
        self._over = False
        self._timeout = options.submit_timeout_ms / 1000
        self.pipeline_of_parent = False
        """Whether the results in the pipeline belong to the parent from which this process was forked."""
        self._begin()
        _alive.add(self)

    def _begin(self) -> None:
        contexts = self.calls.dispatch.contexts if self.calls.dispatch is not None else 1
        self._places = Places(contexts + self.options.max_queue_size)
        self._tasks = itertools.count()
        self._submitter: Submitter | None = None
        self._lock = threading.RLock()  # garbage collection may end the session on a thread that is already using it
        self.pipeline: Pipeline | None = None
        self.pipeline_lock = threading.Lock()

    def after_fork(self) -> None:
        """In the child, when there is no other thread: submitted calls and their threads are the parent's."""
        if self._over:
            return
        for thing in (self._submitter, self.pipeline):
            keep(thing)
        self.pipeline_of_parent = self.pipeline_of_parent or self.pipeline is not None
        self._begin()
        if isinstance(self.calls, CpuCalls):
            self.calls.after_fork()

    def run(self, arrays: Sequence[Array], places: list[int] | None, batch: bool) -> list[Array]:
        """Run and wait. Meanwhile it takes one of ``max_queue_size`` places, in addition to those of the contexts."""
        self.check_open()
        place = self._take_place("run submit timed out: async queue/callback pipeline is saturated")
        try:
            return _chosen(self.calls.run(arrays, batch=batch, lane=self._next_lane()), places)
        finally:
            place.clear()

    def start(self, arrays: Sequence[Array]) -> Pending:
        """Run on another thread; returns all outputs. Takes a place as :meth:`run` does."""
        place = self._take_place("run_pipeline submit timed out")
        try:
            return self.calls.start(arrays, self._next_lane(), place.clear)
        except BaseException:
            place.clear()
            raise

    def _next_lane(self) -> int:
        """The lane of a new run: run n goes to core ``schedule[n % len(schedule)]``."""
        dispatch = self.calls.dispatch
        return dispatch.lane_of(next(self._tasks)) if dispatch is not None else 0

    def start_with_callback(
        self, arrays: Sequence[Array], places: list[int] | None, callback: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run on another thread, and pass the outcome to ``callback``. These calls have separate places."""
        submitter = self.submitter()
        place = submitter.take_place()
        try:
            lane = self._next_lane()  # now, not when a thread starts it
            call = (arrays, places, lane)
            submitter.submit_with_callback(self._run_later, call, callback, place=place, task=Task(lane))
        except BaseException:
            place.clear()
            raise

    def _run_later(self, arrays: Sequence[Array], places: list[int] | None, lane: int) -> list[Array]:
        return _chosen(self.calls.run(arrays, lane=lane), places)

    def _take_place(self, words: str) -> Place:
        place = self._places.take(self._timeout)
        if place is None:
            raise RuntimeError(
                f"{words}; no place became free in {self._timeout:g} s (submit_timeout_ms) with "
                f"max_queue_size={self.options.max_queue_size}"
            )
        return place

    def check_open(self) -> None:
        if self.ended:
            raise RuntimeError("the session was closed")

    def submitter(self) -> Submitter:
        self.check_open()
        with self._lock:
            if self._submitter is None:
                self._submitter = Submitter.for_dispatch(self.calls.dispatch, self.options, Task)
            return self._submitter

    def end(self) -> None:
        """Wait for submitted calls, including callbacks, then release everything. Idempotent; if interrupted, the next
        call continues."""
        self.ended = True
        with self._lock:
            if self._over:
                return
            if self._submitter is not None:
                self._submitter.close()
            self._places.wait_until_free()
            self.calls.close()
            self._over = True

    def end_from_anywhere(self) -> None:
        """As :meth:`end`, but also works on a thread that the end would have to wait for."""
        if threading.current_thread().name.startswith("ort_rknn"):
            threading.Thread(target=self.end, name="end of a session").start()
        else:
            self.end()


def _chosen(results: list[Array], places: list[int] | None) -> list[Array]:
    """The requested outputs. An output that is requested twice is copied, not shared."""
    if places is None:
        return results
    return [results[p] if p not in places[:k] else results[p].copy() for k, p in enumerate(places)]


_alive: weakref.WeakSet[SessionCore] = weakref.WeakSet()


def _after_fork() -> None:
    for core in list(_alive):
        core.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _end_all() -> None:
    """Run pending callbacks at interpreter exit, while they still can run."""
    for core in list(_alive):
        try:
            core.end()
        except Exception:
            sys.excepthook(*sys.exc_info())


class InferenceSession(HasTensors):
    """A compiled model on the NPU; if there is none, its ONNX twin on the CPU, with a FallbackWarning.

    ``path_or_bytes``: an ``.rknn`` (or an ONNX with a twin beside it), as a path or as bytes. ``sess_options``: an
    onnxruntime.SessionOptions for the CPU. ``providers``, ``provider_options``: see
    :func:`~ort_rknn_ez_async.make_provider_options`. Keywords: ``use_weight_from``, another session on the same kind of
    model, whose weights are used; ``enable_fallback=0``: raise an error instead of using the CPU.

    Methods may be called from any number of threads. Errors are RuntimeErrors; unknown keywords are TypeErrors.
    """

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: Any = None,
        providers: Any = None,
        provider_options: Any = None,
        **kwargs: Any,
    ) -> None:
        unknown = [key for key in kwargs if key not in _KEYWORDS]
        if unknown:
            raise TypeError(f"InferenceSession has no keyword {unknown[0]!r}; it has {', '.join(_KEYWORDS)}")
        if sess_options is not None and not isinstance(sess_options, onnxruntime.SessionOptions):
            warnings.warn(
                f"sess_options has no effect: expected an onnxruntime.SessionOptions, got a "
                f"{type(sess_options).__name__}",
                stacklevel=2,
            )
            sess_options = None
        wish = read_wish(providers, provider_options)
        lender = _lender(kwargs.get("use_weight_from"))
        if lender is not None and "custom_op_paths" in wish.options:
            raise RuntimeError("use_weight_from cannot be combined with custom ops")
        loaded = load(
            path_or_bytes,
            wish,
            sess_options,
            lender.calls.executor.model if lender is not None else None,  # type: ignore[union-attr]
            may_fall_back=bool(kwargs.get("enable_fallback", True)),
        )
        self._core = SessionCore(loaded, read_options(wish.options))
        self._given = wish.given
        calls = loaded.calls
        self._inputs = tuple(t.name for t in calls.inputs)
        self._outputs = tuple(t.name for t in calls.outputs)

    # Running --------------------------------------------------------------------------------------------------

    def run(self, output_names: Any = None, input_feed: Any = None, run_options: Any = None) -> list[Array]:
        """Run and wait. Returns fresh float32 arrays: all outputs, or those named, in that order.

        ``input_feed``: an array, a list in the model's order, or a mapping by name. The runtime is given the arrays
        with their own dtypes. ``run_options``: ``{"ztu_modelrt_dispatch_batch": True}``, or an object with
        ``get_run_config_entry``: the leading axis then counts samples, which run in parallel and are returned stacked.

        Executes on this thread while a context is free. Raises RuntimeError, also if no place became free within
        ``submit_timeout_ms``.
        """
        arrays = arrays_of(input_feed, self._inputs)
        places = places_of(output_names, self._outputs) if output_names is not None else None
        batch = wants_batch(run_options) if run_options is not None else False
        return self._core.run(arrays, places, batch)

    def run_async(
        self,
        output_names: Any,
        input_feed: Any,
        callback: Callable[[list[Array] | None, Any, str], object],
        user_data: Any = None,
        run_options: Any = None,
    ) -> None:
        """Run soon; ``callback(results, user_data, "")``, or ``(None, user_data, text)``, is called on another thread.

        The arrays are copied: they may be changed when this returns. Raises RuntimeError for invalid arguments, and if
        no place became free within ``submit_timeout_ms``. No names or []: all outputs.
        """
        if not callable(callback):
            raise TypeError(f"run_async(): callback must be callable; got {type(callback).__name__}")
        arrays = arrays_of(input_feed, self._inputs)
        places = places_of(output_names, self._outputs)
        if wants_batch(run_options):
            raise RuntimeError("RunAsync does not support dispatch batch; run() does")
        core = self._core
        core.check_open()
        core.calls.check(arrays)

        def deliver(results: list[Array] | None, error: BaseException | None) -> None:
            callback(results, user_data, "" if error is None else str(error) or type(error).__name__)

        try:
            core.start_with_callback([a.copy() for a in arrays], places, deliver)
        except Ended:
            raise RuntimeError("the session was closed") from None
        except Fail as error:
            raise RuntimeError(f"RunAsync submit timed out ({core.options.submit_timeout_ms} ms): {error}") from None

    def run_pipeline(self, input_feed: Any, depth: int = 3, reset: bool = False) -> list[Array] | None:
        """Submit a feed, and return the result of the call made ``depth`` calls ago; None for the first ``depth``
        calls.

        The arrays are copied: they may be changed when this returns. ``reset``, or a different depth, starts over and
        loses results in flight; :meth:`flush` returns the last results. Raises the error of the call whose result is
        due.
        """
        if isinstance(depth, bool) or not hasattr(depth, "__index__") or depth.__index__() < 0:
            raise TypeError(f"run_pipeline(): expected an integer >= 1 as depth, got {depth!r}")
        depth = depth.__index__()
        if depth == 0:
            raise RuntimeError("pipeline depth must be > 0")
        arrays = arrays_of(input_feed, self._inputs)
        core = self._core
        core.check_open()
        core.calls.check(arrays)
        call = core.start([a.copy() for a in arrays])
        with core.pipeline_lock:
            if core.pipeline is None or reset or core.pipeline.depth != depth:
                core.pipeline, core.pipeline_of_parent = Pipeline(depth), False
            pipeline = core.pipeline
        result: list[Array] | None = pipeline.push(call)
        return result

    def flush(self) -> list[list[Array]]:
        """The results still in the pipeline, oldest first. Raises the first error, once all have ended, and
        RuntimeError in a forked child: the results are the parent's."""
        core = self._core
        with core.pipeline_lock:
            pipeline = core.pipeline
        if core.pipeline_of_parent:
            raise RuntimeError("the process was forked: what is in the pipeline is the parent's")
        return pipeline.flush() if pipeline is not None else []

    # Zero copy ------------------------------------------------------------------------------------------------

    def io_binding(self) -> SessionIOBinding:
        """An empty binding for this session."""
        return SessionIOBinding(self)

    def _tensors(self, io_kind: str) -> Sequence[Tensor]:
        return self._core.calls.inputs if io_kind == "input" else self._core.calls.outputs

    def _device_memory(self, size: int) -> Array | None:
        values = getattr(self._core.calls, "values", None)
        return None if values is None else values.memory(size)

    def run_with_iobinding(
        self, io_binding: SessionIOBinding | None = None, run_options: Any = None, *, iobinding: Any = None
    ) -> None:
        """Run with the bound values, on this thread, on any free context. Both spellings of the keyword are
        accepted."""
        binding = io_binding if io_binding is not None else iobinding
        if not isinstance(binding, SessionIOBinding) or (io_binding is not None and iobinding is not None):
            raise TypeError("run_with_iobinding(): expected one binding, as io_binding= (or iobinding=)")
        if wants_batch(run_options):
            raise RuntimeError("run_with_iobinding does not support dispatch batch; run() does")
        if binding.session is not self:
            raise RuntimeError("IoBinding belongs to a different session")
        self._core.check_open()
        binding.run(self._core.calls)

    # Metadata -------------------------------------------------------------------------------------------------

    @property
    def input_names(self) -> list[str]:
        return list(self._inputs)

    @property
    def output_names(self) -> list[str]:
        return list(self._outputs)

    def get_inputs(self) -> list[NodeArg]:
        """What ``run`` accepts."""
        return [t.node() for t in self._core.calls.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """What ``run`` returns."""
        return [t.node() for t in self._core.calls.outputs]

    def get_native_inputs(self) -> list[NodeArg]:
        """Types and shapes of device values: the compiled types, in the NPU's storage format."""
        return [t.native_node() for t in self._core.calls.inputs]

    def get_native_outputs(self) -> list[NodeArg]:
        """Types and shapes of device values: the compiled types, in the NPU's storage format."""
        return [t.native_node() for t in self._core.calls.outputs]

    def get_modelmeta(self) -> ModelMetadata:
        """The converter's custom string as ``custom_metadata_map["rknn_custom_string"]``."""
        custom = self._core.loaded.custom_string
        return ModelMetadata({"rknn_custom_string": custom} if custom else {})

    def get_providers(self) -> list[str]:
        """["RKNPU2ExecutionProvider"], or ["CPUExecutionProvider"] if the ONNX runs in its place."""
        return [self._core.loaded.provider]

    def get_provider_options(self) -> dict[str, Mapping[str, Any]]:
        """The options that were given, by provider."""
        return {self._core.loaded.provider: dict(self._given) if self._core.loaded.provider != CPU else {}}

    # The end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for submitted calls, including callbacks, and release everything. Idempotent."""
        self._core.end_from_anywhere()

    def __enter__(self) -> InferenceSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        core = self.__dict__.get("_core")  # not there if __init__ raised
        if core is not None:
            core.end_from_anywhere()

    def __reduce__(self) -> Any:
        raise TypeError("a session cannot be pickled: make one in the other process")


def _lender(other: Any) -> SessionCore | None:
    if other is None:
        return None
    if not isinstance(other, InferenceSession):
        raise TypeError(f"use_weight_from must be an InferenceSession of this package; got {type(other).__name__}")
    other._core.check_open()
    if not isinstance(other._core.calls, NpuCalls):
        raise RuntimeError("use_weight_from must refer to an RKNPU2 session; that one runs on the CPU")
    return other._core
