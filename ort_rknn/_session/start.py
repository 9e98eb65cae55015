"""Creates a session: plan, load, and start onnxruntime's session on what was planned."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import onnxruntime

from .._ep import registration, support
from .._errors import FAIL, INVALID_ARGUMENT, ort_error, status_code, warn_of_fallback
from .._interrupts import need_stack
from .._options import SIGNATURE_OPTIONS
from .._planning.decision import Decision, Limits, decide, load_first
from .._planning.facts import gather
from .._planning.load import load_planned
from .._planning.plan import Plan
from .._planning.request import NO_CPU, Request, check_keywords, names_ours, read_request
from .._planning.session_options import SAVE_CONTEXT, config_entry, has_providers, overridden_dims, replaced_weights
from ..adapter.contract import Model
from ..files import OnnxModel, OnnxValue
from ..files.compatibility import FAIL_ON_SUBOPTIMAL
from ..files.feedable import feedable
from ..files.pinned import FileChangedError, PinnedModel
from .closed import declare_shapes
from .device_gone import cpu_fallback, fed_session, let_nodes_fall_back
from .fed_calls import FedCalls, attach, declare
from .load import lender_of, version_notes
from .native import Given, start_on_cpu, start_on_nodes, start_on_npu, start_on_their_providers
from .state import State

log = logging.getLogger("ort_rknn")
log.addHandler(logging.NullHandler())


def make(given: Given) -> State:
    """Decide first, then start onnxruntime's session accordingly. Leaves nothing open if it raises.

    onnxruntime's own fallback is disabled for our provider: it would print a block to stdout and hide the cause. The
    user's setting still applies here: with ``enable_fallback=0`` a model that does not load on the NPU is an error.
    """
    so, model = given.so, given.model
    if given.kwargs:
        check_keywords(given.kwargs, _keywords(given.kwargs))
    if so and has_providers(so) and not names_ours(given.providers):  # else the named ones win, as in onnxruntime
        start_on_their_providers(given)
        return State(given.kwargs, given.again, path=absolute(model))
    lender = lender_of(given.kwargs)
    request = _request(given)
    if request.wants_npu:
        need_stack(_FRAMES)
    facts = gather(model, request, support.why_unavailable() if request.wants_npu else None)
    decision = decide(request, facts, Limits(partial(_why_not_exchanged, so)) if so else _NO_LIMITS)
    state = State(given.kwargs, given.again, decision, notes=[*request.notes], path=absolute(model))
    with ExitStack() as held, state.released_on_error():
        if decision.plan.where != "cpu":
            state.pinned = _pin(state, decision)
        decision = _load(held, given, state, decision, lender)
        if state.executor is not None:
            _finish_on_npu(given, state, decision, lender)
        elif decision.plan.where == "cpu":
            start_on_cpu(given, state, decision)
            _report_fallback(decision.plan)
        if decision.plan.where != "cpu" and decision.facts.onnx is not None and decision.facts.onnx.overridable:
            _serve_fed_calls(given, state, decision)
        if config_entry(so, SAVE_CONTEXT) == "1":
            _save(given.session, state, so)
    if decision.plan.where == "cpu":
        state.unpin()
    if decision.plan.where != "cpu" or facts.kind in ("rknn", "ep_context") or given.session._model_bytes is not None:
        in_memory = isinstance(model, bytes)
        given.session._model_path = None if in_memory else os.fspath(model)
        given.session._model_bytes = model if in_memory else None
    return state


def _request(given: Given) -> Request:
    must_stay = _OPTIMIZED if given.so and getattr(given.so, "optimized_model_filepath", "") else ""
    no_cpu = config_entry(given.so, NO_CPU) == "1"
    return read_request(given.providers, given.provider_options, no_cpu=no_cpu, must_stay=must_stay)


def _why_not_exchanged(so: Any, onnx: OnnxModel) -> str | None:
    weights = replaced_weights(so, onnx)
    return None if weights is None else f"{weights}, but a compiled model has its weights inside"


_NO_LIMITS = Limits()


@contextmanager
def model_again(state: State | None, given: str | bytes) -> Iterator[str | bytes]:
    """The session's original model, for planning again inside the ``with`` block; ``given`` is what the user passed.
    Raises Fail if its file was modified in place."""
    if isinstance(given, bytes) or state is None or state.path is None:
        yield given
    elif state.pinned is None:
        yield state.path
    else:
        try:
            with state.pinned.at_a_path(with_all=True) as path:
                yield path
        except FileChangedError as error:
            raise ort_error(FAIL, str(error)) from error


def absolute(model: Any) -> str | None:
    """The absolute path of a model given as a path; None for a model in memory, or if there is no absolute path."""
    if not isinstance(model, (str, os.PathLike)):
        return None
    try:
        return os.path.abspath(os.fsdecode(model))
    except (OSError, ValueError, TypeError):  # the working directory was deleted, or onnxruntime rejects the path
        return None


def _pin(state: State, decision: Decision) -> PinnedModel | None:
    """The files of a session that is to run on the NPU; None for a model in memory."""
    facts, made = decision.facts, decision.plan
    if state.path is None:
        return None
    onnx = facts.onnx
    parts = list(onnx.external_data) if onnx is not None else []
    for node in onnx.ep_context_nodes if onnx is not None else ():
        if node.cache_context is not None:
            parts.append(node.cache_context.decode(errors="replace"))
    folder = os.path.dirname(state.path)
    used = [facts.onnx_source, *(candidate.source.path for candidate in facts.candidates if candidate.fit)]
    beside = [os.path.relpath(path, folder) for path in used if isinstance(path, str)]
    if made.candidate is not None and (model := made.candidate.context_model) is not None:
        # Copies, if the originals are gone: a node may not name a file behind a link that leads out of the folder.
        parts += [os.path.basename(made.candidate.source.path or ""), *model.external_data]
        parts += [n.cache_context.decode(errors="replace") for n in model.ep_context_nodes if n.cache_context]
    try:
        return PinnedModel(state.path, parts, beside)
    except (OSError, ValueError):
        return None  # deleted at this moment: the loader reports it


def _load(held: ExitStack, given: Given, state: State, decision: Decision, lender: Model | None) -> Decision:
    """Load the decision, or the next one that loads. Returns the decision that loaded; it is for the CPU if none did.
    ``held`` keeps the provider registered."""
    so = given.so

    def load(this: Decision) -> None:
        state.decide(this)
        facts, made = this.facts, this.plan
        assert made.found is not None
        # First, because some systems refuse to open any library, which only shows here.
        held.enter_context(registration.held(made.found.device))
        if made.where == "npu":
            fixed = overridden_dims(so, facts.onnx.inputs) if so and made.use_onnx and facts.onnx else {}
            options = this.request.options
            state.executor = load_planned(facts, made, options, lender, fixed, so, optimal_only=given.optimal_only)
        else:
            start_on_nodes(given, state, this)
            let_nodes_fall_back(given, this, state.of_nodes)

    def may_fall_back(this: Decision, error: Exception) -> bool:
        return given.wants_fallback and _may_fall_back(this, error)

    if decision.plan.where == "cpu":
        return decision
    decision = load_first(decision, load, may_fall_back)
    if decision.plan.where == "cpu":
        state.decide(decision)
    return decision


def _may_fall_back(decision: Decision, error: Exception) -> bool:
    """Whether a failure to load permits a fallback to the CPU. EPContext nodes that the user provided fall back to
    their original model, or raise their own error."""
    if f"{FAIL_ON_SUBOPTIMAL}=1" in str(error):  # raised by a node; onnxruntime passes on only its text
        return False
    if decision.plan.where == "npu" or decision.plan.candidate is not None:
        return True
    return decision.facts.onnx_source is not None and status_code(error) != INVALID_ARGUMENT


def _finish_on_npu(given: Given, state: State, decision: Decision, lender: Model | None) -> None:
    """Start onnxruntime's session on the loaded model, and set what the session reports."""
    facts, made, executor = decision.facts, decision.plan, state.executor
    assert executor is not None
    state.notes += version_notes(made, executor)
    unchanged = decision.request.unchanged and executor.options.on_missing_shape == "cpu"
    if unchanged and made.use_onnx and facts.onnx is not None:
        executor.feedable = feedable(facts.onnx.overridable)
    if made.stand_in:
        log.warning("%s: %s", facts.label, made.stand_in)
    if given.kwargs.get("use_weight_from") is not None and lender is None:
        state.notes.append("use_weight_from: that session runs on the CPU, so this one has weights of its own")
    executor.cpu_fallback = cpu_fallback(given, decision, executor, state.pinned)
    start_on_npu(given, state, decision, executor)
    if executor.feedable:
        shapes = {value.name: list(value.dims or ()) for value in executor.feedable}
        declare_shapes(given.session, shapes)


def _serve_fed_calls(given: Given, state: State, decision: Decision) -> None:
    """If the program was written for onnxruntime alone, let the ONNX serve calls that feed initializers which the
    session's graph does not declare."""
    request, facts = decision.request, decision.facts
    assert facts.onnx is not None
    declared = state.executor.feedable if state.executor is not None else ()
    others = [value for value in facts.onnx.overridable if value not in declared]
    # Otherwise the ONNX would take and return another form.
    same_form = not any(key in request.options.given for key in SIGNATURE_OPTIONS)
    serves = request.unchanged and request.options.on_missing_shape == "cpu" and facts.kind == "onnx" and same_form
    if others and serves:
        names = [value.name for value in others]
        state.fed = FedCalls(names, facts.label, fed_session(given, state, decision))
        attach(given.session, state.fed)
        declare(given.session, facts.onnx.overridable)
    if facts.kind != "ep_context":
        state.notes += _of_initializers(declared, others, serves)


def _of_initializers(declared: Sequence[OnnxValue], others: Sequence[OnnxValue], serves: bool) -> Iterator[str]:
    """Notes about initializers that could be fed on the CPU. ``serves``: the ONNX serves calls that feed ``others``."""
    served = "runs the call on the ONNX twin on the CPU"
    for values, what, fed in (
        (declared, "feeding one, or an active LoRA adapter for one,", served),
        (() if serves else others, "feeding one, or an active LoRA adapter for one,", "is an error"),
        (others if serves else (), "feeding one, or an active LoRA adapter for one,", served),
    ):
        if values:
            names = ", ".join(value.name for value in values[:10])
            yield f"initializers that could be fed on the CPU ({names}) were compiled in: {what} {fed}"


def _save(session: Any, state: State, so: Any) -> None:
    """Write the model with its compiled nodes. If that fails, so does creating the session."""
    if not state.executors:
        state.notes.append(f"{SAVE_CONTEXT}: nothing is written, because the session runs on the CPU")
        return
    from .save_context import save_context

    try:
        save_context(state, so)
    except BaseException:
        session._sess = None
        for executor in state.executors:
            executor.close()
        raise


def _report_fallback(made: Plan) -> None:
    """Report a fallback: it is never silent."""
    if made.fallback is None:
        return
    text = f"this session runs on the CPU: {made.fallback}"
    if made.fallback.loud:
        log.warning(text)
        warn_of_fallback(text)
    else:
        log.info(text)


#: Keyword arguments of the session: onnxruntime's since 1.23, and ours.
_KEYWORDS = frozenset(("enable_fallback", "read_config_from_model", "disabled_optimizers", "use_weight_from"))
#: Frames that finding a device and loading a model may need. If the stack ended in between, it would look as if there
#: were no NPU.
_FRAMES = 150
_OPTIMIZED = (
    "SessionOptions.optimized_model_filepath asks for onnxruntime's optimized graph, and a session with compiled "
    "nodes cannot be saved"
)


def _keywords(kwargs: Mapping[str, Any]) -> Collection[object]:
    """The keyword arguments that a session accepts."""
    if kwargs.keys() <= _KEYWORDS:
        return _KEYWORDS
    # Also those of a later onnxruntime, whose constructor looks them up by name.
    return _KEYWORDS.union(c for c in onnxruntime.InferenceSession.__init__.__code__.co_consts if isinstance(c, str))
