"""Whether a session may continue without its device, and on what."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .._errors import RUNTIME_EXCEPTION, ort_error
from .._executor.cpu_fallback import CpuFallback, gives_the_same_form, session_of_pinned
from .._executor.executor import Executor
from .._planning.decision import Decision
from .._planning.session_options import EMPTY_MODEL, copy_options, cpu_session, overridden_dims
from ..files.pinned import PinnedModel
from .native import Given
from .state import State


def cpu_fallback(
    given: Given, decision: Decision, executor: Executor, pinned: PinnedModel | None
) -> CpuFallback | None:
    """What runs a session's calls while its device is gone; None if an error is to be raised instead.

    ``pinned`` holds open what the session was given, if that is a file; the ONNX beside a given ``.rknn`` is opened
    here. The session must not be strict. A form that only a compiled model accepts or returns cannot be kept on the
    CPU.
    """
    request, facts, made, so = decision.request, decision.facts, decision.plan, given.so
    source = facts.onnx_source
    if (
        request.strict
        or not made.use_onnx
        or source is None
        or not gives_the_same_form(executor.signature, executor.options)
    ):
        return None
    own: PinnedModel | None = None
    if isinstance(source, str) and (pinned is None or os.path.abspath(source) != pinned.path):
        try:
            own = pinned = PinnedModel(source, facts.onnx.external_data if facts.onnx is not None else ())
        except (OSError, ValueError):
            return None
    fixed = bool(facts.onnx is not None and so and overridden_dims(so, facts.onnx.inputs))
    # By the time of the failure the user may have reused the options for another session.
    as_it_was = copy_options(so, EMPTY_MODEL) if so else None
    fallback = CpuFallback(
        partial(_make_session, source, pinned, partial(cpu_session, so, as_it_was=as_it_was, any_shape=fixed)),
        partial(_may_fall_back, weakref.ref(given.session)),
        own,
    )
    fallback.serves_failures = request.unchanged
    return fallback


def let_nodes_fall_back(given: Given, decision: Decision, executors: Iterable[Executor]) -> None:
    """As :func:`cpu_fallback`, for the nodes of a model whose ONNX the provider has found."""
    for executor in executors:
        fallback = executor.cpu_fallback
        if fallback is not None and decision.request.strict:
            fallback.close()
            executor.cpu_fallback = None
        elif fallback is not None:
            fallback.allowed = partial(_may_fall_back, weakref.ref(given.session))
            fallback.serves_failures = decision.request.unchanged


def fed_session(given: Given, state: State, decision: Decision) -> Callable[[], Any]:
    """Creates the CPU session on the session's ONNX, for calls that feed initializers. The ONNX is that of ``state``,
    which holds it open."""
    facts, so = decision.facts, given.so
    assert facts.onnx_source is not None
    source = facts.onnx_source
    fixed = bool(facts.onnx is not None and so and overridden_dims(so, facts.onnx.inputs))
    as_it_was = copy_options(so, EMPTY_MODEL) if so else None
    make = partial(cpu_session, so, as_it_was=as_it_was, any_shape=fixed)

    def make_fed() -> Any:
        pinned = state.pinned
        if pinned is None and not isinstance(source, bytes):
            raise ort_error(RUNTIME_EXCEPTION, "the session was closed or its providers were changed during this call")
        return _make_session(source, pinned, make)

    return make_fed


def _make_session(source: str | bytes, pinned: PinnedModel | None, make: Any) -> Any:
    if isinstance(source, bytes):
        return make(source)
    assert pinned is not None
    return session_of_pinned(pinned, None, make)


def _may_fall_back(of: weakref.ref[Any]) -> bool:
    """The current setting of onnxruntime's ``enable_fallback()`` and ``disable_fallback()``."""
    session = of()
    return session is not None and bool(session._falls_back)
