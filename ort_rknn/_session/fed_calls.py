"""Calls that feed initializers which the session's graph does not declare: they run on the ONNX, on the CPU.

Only under the import swap with policy ``prefer``. A wrapper of a single compiled model declares most such initializers
itself (:mod:`ort_rknn.files.feedable`); for the others, and for a model in parts, the session's own methods look at the
names in the feed. onnxruntime's IOBinding rejects those names.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import onnxruntime

from .._concurrency.forks import watch
from ..files import OnnxValue
from .closed import Closed, ClosedNodeArg
from .feeds import in_native_order
from .under_way import run_in_child

log = logging.getLogger("ort_rknn")


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

    def session(self) -> Any:
        """The CPU session. Raises what creating it raises."""
        session = self._session
        if session is None:
            # Two threads may both create one; a lock would be held by no one in a forked child.
            session = self._make_session()
            if (native := getattr(session, "_sess", None)) is not None:
                watch(native)
            self._session = session
        if self._warned.acquire(blocking=False):  # never released
            log.info("%s: calls that feed an initializer (%s) run on the ONNX, on the CPU", self._label, self.listed)
        self.runs += 1
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


class _Method:
    """A method of one session, as an attribute of it, which overrides that of its class."""

    __slots__ = ("__func__", "_fed", "_session")
    _name = ""

    def __init__(self, session: Any, fed: FedCalls) -> None:
        self._session = weakref.ref(session)  # the session that has this attribute
        self._fed = fed
        self.__func__ = getattr(type(session), self._name)

    def _owner(self, feed: Any) -> tuple[Any, bool]:
        """The session, and whether the CPU serves a call with this feed."""
        session = self._session()
        assert session is not None
        return session, self._fed.are_in(feed) and not isinstance(session.__dict__.get("_sess"), Closed)

    def _run(self, output_names: Any, feed: Any, run_options: Any) -> Any:
        session, served = self._owner(feed)
        if served:
            return getattr(self._fed, self._name)(output_names, feed, run_options)
        return self.__func__(session, output_names, feed, run_options)


class _Run(_Method):
    __slots__ = ()
    _name = "run"

    def __call__(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        return self._run(output_names, input_feed, run_options)


class _RunAsync(_Method):
    __slots__ = ()
    _name = "run_async"

    def __call__(
        self, output_names: Any, input_feed: Any, callback: Any, user_data: Any, run_options: Any = None
    ) -> None:
        session, served = self._owner(input_feed)
        if served:
            run_in_child(session, output_names, input_feed, callback, user_data, run_options)
        else:
            self.__func__(session, output_names, input_feed, callback, user_data, run_options)


class _RunWithOrtValues(_Method):
    __slots__ = ()
    _name = "run_with_ort_values"

    def __call__(self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None) -> Any:
        return self._run(output_names, input_dict_ort_values, run_options)


_METHODS = (_Run, _RunAsync, _RunWithOrtValues)


def attach(session: Any, fed: FedCalls | None) -> None:
    """Let ``session`` serve these calls; None: no longer. A ``run`` that the user has set stays if it need not."""
    for method in _METHODS:
        if isinstance(session.__dict__.get(method._name), _Method):
            del session.__dict__[method._name]
        if fed is not None:
            session.__dict__[method._name] = method(session, fed)


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
