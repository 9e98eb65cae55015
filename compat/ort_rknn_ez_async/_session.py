"""The session."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from ort_rknn._concurrency.pipeline import Pipeline
from ort_rknn._concurrency.submitter import Ended
from ort_rknn._options import read_options

from ._binding import SessionIOBinding
from ._core import SessionCore
from ._feeds import Array, arrays_of, places_of, wants_batch
from ._forms import HasTensors
from ._loading import load
from ._nodes import ModelMetadata, NodeArg, Tensor
from ._npu import NpuCalls
from .options import CPU, read_arguments

if TYPE_CHECKING:
    from types import TracebackType

#: Keywords of onnxruntime's sessions that are supported here.
_KEYWORDS = ("use_weight_from", "enable_fallback")


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
        arguments = read_arguments(providers, provider_options)
        lender = _lender(kwargs.get("use_weight_from"))
        if lender is not None and "custom_op_paths" in arguments.options:
            raise RuntimeError("use_weight_from cannot be combined with custom ops")
        loaded = load(
            path_or_bytes,
            arguments,
            sess_options,
            lender.calls.executor.model if lender is not None else None,  # type: ignore[union-attr]
            may_fall_back=bool(kwargs.get("enable_fallback", True)),
        )
        self._core = SessionCore(loaded, read_options(arguments.options))
        self._given = arguments.given
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
