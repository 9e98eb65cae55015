"""How ``run`` of a session on the NPU runs a call: past onnxruntime where it can.

onnxruntime would check the feed, allocate the outputs and call our kernel. If the session is one compiled model, the
outcome for a feed of known dtypes and shapes is known too, and a thread that skips these steps has the GIL for half the
time, and starts the next run of its core sooner. The first call of each kind still runs in onnxruntime, so what it
rejects stays rejected, in its words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from .._executor import run_settings
from .._executor.calls import Call
from .._executor.executor import Executor
from .._interrupts import need_stack
from .fed_calls import FedRuns
from .feeds import in_native_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .state import State

_run: Callable[..., Any] = onnxruntime.InferenceSession.run

#: The number of kinds of calls remembered.
_KEPT = 128
#: Calls that a run may nest. With less stack than that it could end halfway, with another thread waiting for its core.
_FRAMES = 16
#: The severity at which onnxruntime logs every run.
_VERBOSE = 0
#: A kind of call: shape and dtype of each input, and the outputs asked for (None: all).
_Kind = tuple[tuple[tuple[tuple[int, ...], np.dtype[Any]], ...], "tuple[str, ...] | None"]


@dataclass(frozen=True, slots=True)
class _Route:
    """How a kind of call runs."""

    call: Call
    chosen: tuple[int, ...] | None
    """The results that were asked for, in that order; None: all, in the executor's order."""


class DirectCalls:
    """Runs calls whose kind has run in onnxruntime before. Thread-safe.

    ``declared``: the names of the session's outputs, in its order, which may differ from the executor's.
    """

    def __init__(self, executor: Executor, declared: Sequence[str]) -> None:
        self._executor = executor
        self._inputs = [port.name for port in executor.signature.inputs]
        self._outputs = [port.name for port in executor.signature.outputs]
        self._declared = tuple(declared)
        #: None: such calls always run in onnxruntime.
        self._routes: dict[_Kind, _Route | None] = {}

    def __call__(self, session: Any, output_names: Any, feed: Any, run_options: Any) -> Any:
        """What onnxruntime's ``session.run`` returns or raises, and errors of :meth:`Executor.execute`."""
        # Settings of this thread belong to another call, perhaps to one that was interrupted: onnxruntime begins anew.
        plain = run_options is None and run_settings.current() is None
        arrays = self._arrays(feed) if plain else None
        if arrays is None or (output_names and not _are_names(output_names)):
            return in_onnxruntime(session, output_names, feed, run_options)
        kind = (
            tuple([(array.shape, array.dtype) for array in arrays]),
            tuple(output_names) if output_names else None,
        )
        route = self._routes.get(kind)
        if route is None:
            results = in_onnxruntime(session, output_names, feed, run_options)
            # If set_providers() changed the session during this call, another model may have run it.
            if kind not in self._routes and session._npu is not None and session._npu.executor is self._executor:
                self._learn(kind, results)
            return results
        need_stack(_FRAMES)
        fresh = self._executor.run_call(route.call, arrays)
        return fresh if route.chosen is None else [fresh[place] for place in route.chosen]

    def _arrays(self, feed: Any) -> list[NDArray[Any]] | None:
        """The feed's arrays in the executor's order; None if onnxruntime has to look at the feed."""
        if type(feed) is not dict or len(feed) != len(self._inputs):
            return None
        arrays: list[NDArray[Any]] = []
        for name in self._inputs:
            array = feed.get(name)
            if type(array) is not np.ndarray or not array.flags.c_contiguous or not array.flags.aligned:
                return None
            arrays.append(array)
        return arrays

    def _learn(self, kind: _Kind, results: Sequence[Any]) -> None:
        """Remember how a kind of call runs, after onnxruntime has run one."""
        if len(self._routes) >= _KEPT:
            self._routes.clear()
        self._routes[kind] = self._route(kind, results)

    def _route(self, kind: _Kind, results: Sequence[Any]) -> _Route | None:
        kinds, names = kind
        signature = self._executor.signature
        if any(dtype.name != port.dtype or not dtype.isnative for (_, dtype), port in zip(kinds, signature.inputs)):
            return None
        call = self._executor.call_for(tuple(shape for shape, _ in kinds))
        if call is None:  # the ONNX serves this shape
            return None
        names = self._declared if names is None else names
        if len(set(names)) < len(names):  # one array must not be returned twice
            return None
        chosen = tuple(self._outputs.index(name) for name in names)
        for result, place in zip(results, chosen):
            shape, dtype = call.output_shapes[place], signature.outputs[place].dtype
            if type(result) is not np.ndarray or result.shape != shape or result.dtype.name != dtype:
                return None
        return _Route(call, None if chosen == tuple(range(len(self._outputs))) else chosen)


def _are_names(names: object) -> bool:
    return type(names) in (list, tuple) and all(type(name) is str for name in names)  # type: ignore[attr-defined]


def in_onnxruntime(session: Any, output_names: Any, feed: Any, run_options: Any) -> Any:
    """onnxruntime's own ``session.run``, which does not check the byte order of arrays."""
    return _run(session, output_names, in_native_order(feed), run_options)


def runner(session: Any, state: State) -> Callable[[Any, Any, Any, Any], Any]:
    """What a new session on the NPU calls to run. Holds no reference to the session."""
    run = _runner(session, state)
    return run if state.fed is None else FedRuns(state.fed, run)


def _runner(session: Any, state: State) -> Callable[[Any, Any, Any, Any], Any]:
    """Always :func:`in_onnxruntime` if the model has other nodes besides a compiled one, or if onnxruntime profiles or
    logs every run."""
    executor = state.executor
    options = session.get_session_options()
    if executor is None or executor.feedable or options.enable_profiling or options.log_severity_level == _VERBOSE:
        return in_onnxruntime
    given = [value.name for value in session.get_inputs()]
    declared = [value.name for value in session.get_outputs()]
    signature = executor.signature
    if sorted(given) != sorted(port.name for port in signature.inputs):
        return in_onnxruntime
    if sorted(declared) != sorted(port.name for port in signature.outputs):
        return in_onnxruntime
    return DirectCalls(executor, declared)
