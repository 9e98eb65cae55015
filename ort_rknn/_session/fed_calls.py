"""Calls that feed initializers which the session's graph does not declare: they run on the ONNX, on the CPU.

Only under the import swap with policy ``prefer``. A wrapper of a single compiled model declares most such initializers
itself (:mod:`ort_rknn.files.feedable`); for the others, and for a model in parts, ``run``, ``run_async`` and
``run_with_ort_values`` look at the names in the feed, and :mod:`.fed_bindings` at those that are bound. The names that
an active LoRA adapter feeds cannot be seen, but onnxruntime's error names one.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from .._concurrency.forks import watch
from ..files import OnnxValue
from .closed import Closed, ClosedNodeArg
from .fed_bindings import FedBinding
from .feeds import in_native_order

log = logging.getLogger("ort_rknn")

_run_with_ort_values: Any = onnxruntime.InferenceSession.run_with_ort_values
_io_binding: Any = onnxruntime.InferenceSession.io_binding


class FedCalls:
    """``names``: the initializers that calls may feed. ``make_session`` creates onnxruntime's CPU session on the ONNX
    at the first such call. Thread-safe."""

    def __init__(self, names: Sequence[str], label: str, make_session: Callable[[], Any]) -> None:
        self.names = frozenset(names)
        self.runs = 0
        """Calls served on the CPU so far."""
        self.listed = ", ".join(sorted(names)[:10])
        self._label = label
        self._warned = threading.Lock()
        self._make_session = make_session
        self._session: Any = None

    def are_in(self, feed: Any) -> bool:
        """Whether a feed contains one of the names."""
        return hasattr(feed, "keys") and not self.names.isdisjoint(feed)

    def fed_by_adapter(self, error: Exception) -> bool:
        """Whether onnxruntime's error says that a LoRA adapter feeds one of the names."""
        name = str(error).partition("Invalid input name: ")[2].strip()
        return name in self.names

    def session(self) -> Any:
        """The CPU session, for a call. Raises what creating it raises."""
        session = self.made()
        if self._warned.acquire(blocking=False):  # never released
            log.info("%s: calls that feed an initializer (%s) run on the ONNX, on the CPU", self._label, self.listed)
        self.runs += 1
        return session

    def made(self) -> Any:
        """The CPU session. Raises what creating it raises."""
        session = self._session
        if session is None:
            # Two threads may both create one; a lock would be held by no one in a forked child.
            session = self._make_session()
            if (native := getattr(session, "_sess", None)) is not None:
                watch(native)
            self._session = session
        return session

    def run(self, output_names: Any, feed: Any, run_options: Any) -> list[Any]:
        """As onnxruntime's ``run``."""
        session = self.session()
        results: list[Any]
        if hasattr(session, "run_with_ort_values"):
            results = session.run(output_names, in_native_order(feed), run_options)
        else:  # with custom operators: a native session
            results = session.run(output_names or [one.name for one in session.get_outputs()], in_native_order(feed))
        return results

    def run_with_ort_values(self, output_names: Any, feed: Any, run_options: Any) -> Any:
        """As onnxruntime's ``run_with_ort_values``."""
        session = self.session()
        if hasattr(session, "run_with_ort_values"):
            return session.run_with_ort_values(output_names, feed, run_options)
        arrays = {name: value.numpy() for name, value in feed.items()}
        results = self.run(output_names, arrays, run_options)
        return [onnxruntime.OrtValue.ortvalue_from_numpy(result) for result in results]

    def let_go(self) -> None:
        """Drop the CPU session. A call that uses it finishes normally."""
        self._session = None


def _served(
    fed: FedCalls,
    otherwise: Callable[[Any, Any, Any, Any], Any],
    on_cpu: Callable[[Any, Any, Any], Any],
    session: Any,
    output_names: Any,
    feed: Any,
    run_options: Any,
) -> Any:
    """The call on the CPU if it feeds one of the names, by the feed or by an active adapter; else ``otherwise``."""
    if fed.are_in(feed):
        return on_cpu(output_names, feed, run_options)
    try:
        return otherwise(session, output_names, feed, run_options)
    except InvalidArgument as error:
        if run_options is None or not fed.fed_by_adapter(error):
            raise
    return on_cpu(output_names, feed, run_options)


class FedRuns:
    """What ``run`` of a session calls: the CPU for calls that feed one of the names, else ``otherwise``."""

    __slots__ = ("_fed", "_otherwise")

    def __init__(self, fed: FedCalls, otherwise: Callable[[Any, Any, Any, Any], Any]) -> None:
        self._fed = fed
        self._otherwise = otherwise

    def __call__(self, session: Any, output_names: Any, feed: Any, run_options: Any) -> Any:
        fed = self._fed
        return _served(fed, self._otherwise, fed.run, session, output_names, feed, run_options)


class _RunWithOrtValues:
    """``run_with_ort_values`` of one session. An attribute of the session, since our class does not override it."""

    __slots__ = ("_fed", "_session")

    def __init__(self, session: Any, fed: FedCalls) -> None:
        self._session = weakref.ref(session)  # the session that has this attribute
        self._fed = fed

    def __call__(self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None) -> Any:
        session, on_cpu = self._session(), self._fed.run_with_ort_values
        assert session is not None
        call = (session, output_names, input_dict_ort_values, run_options)
        if isinstance(session._sess, Closed):
            return _run_with_ort_values(*call)  # raises
        return _served(self._fed, _run_with_ort_values, on_cpu, *call)


class _IOBinding:
    """``io_binding`` of one session, likewise."""

    __slots__ = ("_fed", "_session")

    def __init__(self, session: Any, fed: FedCalls) -> None:
        self._session = weakref.ref(session)  # the session that has this attribute
        self._fed = fed

    def __call__(self) -> onnxruntime.IOBinding:
        session = self._session()
        assert session is not None
        return _io_binding(session) if isinstance(session._sess, Closed) else FedBinding(session, self._fed)


_METHODS: dict[str, tuple[type[Any], Callable[..., Any]]] = {
    "run_with_ort_values": (_RunWithOrtValues, _run_with_ort_values),
    "io_binding": (_IOBinding, _io_binding),
}


def attach(session: Any, fed: FedCalls | None) -> None:
    """Let the methods of ``session`` serve these calls; None: no longer. A method of the user's stays."""
    for name, (serving, method) in _METHODS.items():
        if isinstance(session.__dict__.get(name), serving):
            del session.__dict__[name]
        own = name in session.__dict__ or getattr(type(session), name) is not method
        if fed is not None and not own:
            session.__dict__[name] = serving(session, fed)


def declare(session: Any, initializers: Sequence[OnnxValue]) -> None:
    """Let ``get_overridable_initializers`` report the ONNX's."""
    session.__dict__["_overridable_initializers"] = [
        ClosedNodeArg(
            value.name,
            list(value.dims or ()),
            value.type_text,
            f"NodeArg(name={value.name!r}, type={value.type_text!r}, shape={list(value.dims or ())})",
        )
        for value in initializers
    ]
