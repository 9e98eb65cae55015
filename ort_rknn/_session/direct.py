"""A short way for asynchronous calls of a session that is one compiled model: from the feed to the executor.

onnxruntime would check the feed, allocate the outputs and call our kernel. For a feed of known dtypes and shapes the
outcome is known too, and a thread that skips these steps starts the next run of its core sooner. The first call of
each kind still runs in onnxruntime, so what it rejects stays rejected, in its words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._executor.calls import Call
from .._executor.executor import Executor
from .closed import Closed
from .feeds import Feed

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The number of kinds of calls remembered.
_KEPT = 128
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

    def run(
        self, run: Callable[[Any, Any], list[Any]], output_names: Sequence[str] | None, feed: Feed
    ) -> list[NDArray[Any]]:
        """What ``run(output_names, feed.values)`` returns: ``run`` is onnxruntime's, for kinds of calls that it has to
        run. Raises what ``run`` or :meth:`Executor.execute` raises."""
        arrays = self._arrays(feed.values)
        if arrays is None or (output_names and not _are_names(output_names)):
            return feed.without(run(output_names, feed.values))
        kind = (
            tuple([(array.shape, array.dtype) for array in arrays]),
            tuple(output_names) if output_names else None,
        )
        route = self._routes.get(kind)
        if route is None:
            results = feed.without(run(output_names, feed.values))
            if kind not in self._routes:
                self._learn(kind, results)
            return results
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


def direct_calls(session: Any) -> DirectCalls | None:
    """The short way of a session; None if it has none: it is closed or on the CPU, its model has other nodes besides
    the compiled one, or onnxruntime profiles every run."""
    state = session._npu
    if state is None or isinstance(session.__dict__.get("_sess"), Closed):
        return None
    executor = state.executor
    if executor is None or executor.feedable or session.get_session_options().enable_profiling:
        return None
    given = [value.name for value in session.get_inputs()]
    declared = [value.name for value in session.get_outputs()]
    signature = executor.signature
    if sorted(given) != sorted(port.name for port in signature.inputs):
        return None
    if sorted(declared) != sorted(port.name for port in signature.outputs):
        return None
    return DirectCalls(executor, declared)
