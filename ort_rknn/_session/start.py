"""Making a session: plan, load, and start onnxruntime's session on what was planned."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import onnxruntime

from .._concurrency.interrupts import is_from_a_handler, need_stack
from .._ep import handoff, registration, support
from .._errors import (
    FAIL,
    INVALID_ARGUMENT,
    NpuUnavailable,
    OptionError,
    ort_error,
    status_code,
    warn_of_fallback,
)
from .._executor.dispatch import MOST_READY, resolve
from .._executor.executor import Executor
from .._options import PROVIDER, SIGNATURE_OPTIONS
from .._planning.facts import Facts, gather
from .._planning.load import load_planned
from .._planning.on_load import compiled_on_load
from .._planning.parts_form import parts_form
from .._planning.plan import Plan, plan, plan_after
from .._planning.request import NO_CPU, check_keywords, names_ours, policy, read_request, strict_policy
from .._planning.session_options import (
    EMPTY_MODEL,
    SAVE_CONTEXT,
    WEIGHTS_FOLDER,
    config_entry,
    copy_options,
    cpu_session,
    has_providers,
    overridden_dims,
    replaced_weights,
)
from ..adapter.contract import Model
from ..files import OnnxFileError
from ..files.compatibility import FAIL_ON_SUBOPTIMAL
from ..files.pinned import FileChangedError, PinnedModel
from .device_gone import cpu_fallback
from .load import lender_of, version_notes, wrapper_of
from .stack import check_the_stack
from .state import State

log = logging.getLogger("ort_rknn")
log.addHandler(logging.NullHandler())


def make(
    session: Any,
    parent: Callable[..., None],
    model: Any,
    so: Any,
    providers: Any,
    provider_options: Any,
    kwargs: dict[str, Any],
    *,
    again: bool = False,
) -> State:
    """Plan first, then ``parent`` (onnxruntime's constructor, bound to ``session``). Leaves nothing open when it
    raises.

    onnxruntime's own fallback is kept off for our provider: it would print a block to stdout and hide the cause. The
    user's wish about it is kept here: with ``enable_fallback=0`` a model that does not load on the NPU is an error.
    """
    if kwargs:
        check_keywords(kwargs, _keywords(kwargs))
    if so and has_providers(so) and not names_ours(providers):  # else those named here win, as in onnxruntime
        return _start_on_their_providers(session, parent, model, so, providers, provider_options, kwargs, again)
    lender = lender_of(kwargs)
    must_stay = _OPTIMIZED if so and getattr(so, "optimized_model_filepath", "") else ""
    no_cpu = config_entry(so, NO_CPU) == "1"
    request = read_request(providers, provider_options, no_cpu=no_cpu, must_stay=must_stay)
    if request.wants_npu:
        need_stack(_FRAMES)
    facts = gather(model, request, support.why_unavailable() if request.wants_npu else None)
    facts = compiled_on_load(request, facts)
    made = plan(request, facts)
    if so and made.where != "cpu" and facts.kind == "onnx":
        assert facts.onnx is not None
        weights = replaced_weights(so, facts.onnx)
        if weights is not None:
            problem = f"{weights}, but a compiled model has its weights inside"
            facts = replace(facts, onnx_problem=problem, candidates=())
            made = plan(request, facts)
    state = State(kwargs, again, request, facts, made, notes=[*request.notes], path=absolute(model))
    with ExitStack() as held, state.released_on_error():
        if made.where != "cpu":
            state.pinned = _pin(state)
        made = _load(held, session, parent, state, so, lender)
        if state.executor is not None:
            state.notes += version_notes(made, state.executor)
            if made.use_onnx and facts.onnx is not None and facts.onnx.overridable:
                names = ", ".join(value.name for value in facts.onnx.overridable[:10])
                state.notes.append(
                    f"initializers that could be fed on the CPU ({names}) were compiled in: feeding one, or an active "
                    "LoRA adapter for one, is an error"
                )
            if made.stand_in:
                log.warning("%s: %s", facts.label, made.stand_in)
            if kwargs.get("use_weight_from") is not None and lender is None:
                state.notes.append("use_weight_from: that session runs on the CPU, so this one has weights of its own")
            state.executor.cpu_fallback = cpu_fallback(session, request, made, facts, state.executor, state.pinned, so)
            _start_on_npu(session, parent, state, so, state.executor)
        elif made.where == "cpu":
            _start_on_cpu(session, parent, state, so)
            _tell(made)
        if config_entry(so, SAVE_CONTEXT) == "1":
            _save(session, state, so)
    if made.where == "cpu":
        state.unpin()
    if made.where != "cpu" or facts.kind in ("rknn", "ep_context") or session._model_bytes is not None:
        in_memory = isinstance(model, bytes)
        session._model_path = None if in_memory else os.fspath(model)
        session._model_bytes = model if in_memory else None
    return state


def _start_on_their_providers(
    session: Any,
    parent: Callable[..., None],
    model: Any,
    so: Any,
    providers: Any,
    provider_options: Any,
    kwargs: dict[str, Any],
    again: bool,
) -> State:
    """The user chose devices or a policy on the SessionOptions themselves: onnxruntime's business."""
    with registration.held():
        parent(model, so, providers, provider_options, **kwargs)
    if policy() == "only" and session._providers[0] != PROVIDER:
        raise NpuUnavailable(
            f"the SessionOptions chose {session._providers[0]} themselves (no fallback to the CPU: {strict_policy()})"
        )
    return State(kwargs, again, path=absolute(model))


@contextmanager
def model_again(state: State | None, given: str | bytes) -> Iterator[str | bytes]:
    """The model that a session was made from, to plan from it again inside the ``with``; ``given`` is as the user gave
    it. Raises Fail where its file was changed in place."""
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
    """The absolute path of a model that is given as a path; None for one in memory, and where there is none."""
    if not isinstance(model, (str, os.PathLike)):
        return None
    try:
        return os.path.abspath(os.fsdecode(model))
    except (OSError, ValueError, TypeError):  # the working directory was deleted; a path that onnxruntime refuses
        return None


def _pin(state: State) -> PinnedModel | None:
    """The files of a session that shall run on the NPU; None for a model in memory."""
    facts = state.facts
    if state.path is None or facts is None:
        return None
    onnx = facts.onnx
    parts = list(onnx.external_data) if onnx is not None else []
    for node in onnx.ep_context_nodes if onnx is not None else ():
        if node.cache_context is not None:
            parts.append(node.cache_context.decode(errors="replace"))
    folder = os.path.dirname(state.path)
    used = [facts.onnx_source, *(candidate.source.path for candidate in facts.candidates if candidate.fit)]
    beside = [os.path.relpath(path, folder) for path in used if isinstance(path, str)]
    made = state.plan
    if made is not None and made.candidate is not None and (model := made.candidate.context_model) is not None:
        # Copies where the originals are gone: a node may not name a file behind a link out of the folder.
        parts += [os.path.basename(made.candidate.source.path or ""), *model.external_data]
        parts += [n.cache_context.decode(errors="replace") for n in model.ep_context_nodes if n.cache_context]
    try:
        return PinnedModel(state.path, parts, beside)
    except (OSError, ValueError):
        return None  # deleted this very moment: whoever loads it says so


def _load(
    held: ExitStack, session: Any, parent: Callable[..., None], state: State, so: Any, lender: Model | None
) -> Plan:
    """Load what the plan has for the NPU. Where that fails, the plan becomes the next one: another compiled model that
    fits, else the CPU. Returns the plan that it came to. ``held`` keeps the provider registered."""
    request, facts, made = state.request, state.facts, state.plan
    assert request is not None and facts is not None and made is not None
    while made.where != "cpu":
        assert made.found is not None
        try:
            # First: a host may let no library be opened, which only shows here.
            held.enter_context(registration.held(made.found.device))
            if made.where == "npu":
                fixed = overridden_dims(so, facts.onnx.inputs) if so and made.use_onnx and facts.onnx else {}
                state.executor = load_planned(
                    facts, made, request.options, lender, fixed, so, optimal_only=_optimal_only(so)
                )
            else:
                _start_on_nodes(session, parent, state, so)
            return made
        except Exception as error:
            if is_from_a_handler(error) or not (_wants_fallback(state.kwargs) and _may_fall_back(made, facts, error)):
                raise
            facts, made = plan_after(request, facts, made, error)
        state.facts, state.plan = facts, made
        state.of_nodes.clear()
        state.notes[:] = request.notes
    return made


def _optimal_only(so: Any) -> bool:
    return config_entry(so, FAIL_ON_SUBOPTIMAL) == "1"


def _may_fall_back(made: Plan, facts: Facts, error: Exception) -> bool:
    """Whether a failure to load is a reason to run on the CPU: what the user got wrong is none. Nodes of the user's own
    have their original to fall back on, or their own error."""
    if isinstance(error, (OptionError, NpuUnavailable, RecursionError)):
        return False
    if f"{FAIL_ON_SUBOPTIMAL}=1" in str(error):  # a node's, which comes through onnxruntime as its text
        return False
    if made.where == "npu" or made.candidate is not None:
        return True
    return facts.onnx_source is not None and status_code(error) != INVALID_ARGUMENT


def _save(session: Any, state: State, so: Any) -> None:
    """Write the model with its compiled nodes; where that fails, the session is not made."""
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


def _start_on_cpu(session: Any, parent: Callable[..., None], state: State, so: Any) -> None:
    """onnxruntime's own session, on the user's ONNX: with nodes around its graph where options ask for another form."""
    assert state.request is not None and state.facts is not None and state.plan is not None
    request, facts, model = state.request, state.facts, state.plan.parent_model
    others = request.other_providers
    if request.named and not others:
        others = ["CPUExecutionProvider"]
    form, unread = None, None
    if any(key in request.options.given for key in SIGNATURE_OPTIONS):
        from .cpu_form import cpu_form

        try:
            form = cpu_form(facts, request.options, model) if facts.kind != "other" else None
            unread = facts.onnx_problem or "it is no ONNX" if facts.kind == "other" else None
        except (OnnxFileError, OSError) as error:
            unread = str(error)
    options = so
    if form is not None:
        model, state.raw = form.model, form.quantization
        state.notes += form.notes
        if form.folder is not None:
            options = copy_options(so, EMPTY_MODEL)
            options.add_session_config_entry(WEIGHTS_FOLDER, form.folder)
    parent(model, options, others, request.other_options, **state.kwargs)
    if options is not so:
        session._sess_options_initial = so
    if unread is not None:  # onnxruntime's own words come first
        key = next(key for key in SIGNATURE_OPTIONS if key in request.options.given)
        raise OptionError(f"provider option {key!r} cannot be kept on the CPU: {facts.label}: {unread}")


def _start_on_npu(session: Any, parent: Callable[..., None], state: State, so: Any, executor: Executor) -> None:
    assert state.facts is not None and state.plan is not None
    token = handoff.offer(executor)
    try:
        wrapper = wrapper_of(state.facts, state.plan, executor, token)
        options = copy_options(so, wrapper)
        _set_threads(options, so, executor.dispatch.contexts)
        # Little but one node: nothing to run side by side, and a run stays on its caller's thread.
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        _start_with_provider(session, parent, state, so, options, wrapper)
    except BaseException:
        executor.close()
        raise
    finally:
        handoff.withdraw(token)


def _start_on_nodes(session: Any, parent: Callable[..., None], state: State, so: Any) -> None:
    """onnxruntime's session on a model that holds EPContext nodes of ours, and nodes for the CPU perhaps."""
    assert state.plan is not None and state.plan.found is not None
    assert state.request is not None and state.facts is not None
    content, device, candidate = state.plan.parent_model, state.plan.found.device, state.plan.candidate
    onnx = candidate.context_model if candidate is not None else state.facts.onnx
    label = candidate.name if candidate is not None else state.facts.label
    assert onnx is not None
    # What is wrong with the options is found here, where it can be told from what is wrong with a model.
    dispatch = resolve(state.request.options, device.soc, device.cores)
    chosen = state.request.options._replace(device=state.request.options.device or device.name)
    form = parts_form(content, onnx, chosen, label)
    options = copy_options(so, content if isinstance(content, bytes) else EMPTY_MODEL)
    if not so or so.log_severity_level < 0:
        # onnxruntime warns, in yellow and twice, that nodes are on the CPU: a model in parts is just that. Its errors
        # are raised, too. The default logger's own severity, which has no getter, may be as high already.
        options.log_severity_level = _FATAL
    if onnx.node_count == len(onnx.ep_context_nodes):
        _set_threads(options, so, dispatch.contexts)
    if onnx.node_count == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    elif options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL:
        state.parallel = True
        state.notes.append(
            "execution_mode=ORT_PARALLEL: nodes run on onnxruntime's threads, so calls of submit, map ... take their "
            "cores in the order in which their nodes begin, not in the order of the calls"
        )
    model_path = ""
    if form.content is not None and isinstance(content, str):
        model_path, content = content, form.content
        options.add_session_config_entry(WEIGHTS_FOLDER, os.path.dirname(os.path.abspath(model_path)))
    elif form.content is not None:
        content = form.content
    original = state.facts.onnx_source
    making = handoff.Making(
        state.of_nodes,
        original if isinstance(original, str) else None,
        partial(cpu_session, so, as_it_was=copy_options(so, EMPTY_MODEL) if so else None, any_shape=True),
        form,
        model_path,
        _optimal_only(so),
    )
    with handoff.collected(making):
        _start_with_provider(session, parent, state, so, options, content)


def _start_with_provider(
    session: Any, parent: Callable[..., None], state: State, so: Any, options: Any, content: Any
) -> None:
    """onnxruntime's session with our provider on it, by name or (before 1.25.1) by device."""
    request, made = state.request, state.plan
    assert request is not None and made is not None and made.found is not None
    given = request.options.as_strings()
    given.setdefault("device", made.found.device.name)
    if config_entry(options, SAVE_CONTEXT) == "1":
        options.add_session_config_entry(SAVE_CONTEXT, "0")
    if request.overtaken:
        state.notes.append(f"{PROVIDER} comes first, though {', '.join(request.overtaken)} was named before it")
    kwargs = {**state.kwargs, "enable_fallback": 0}
    if support.by_name():
        ours, others = (PROVIDER, given), _with_options(request.other_providers, request.other_options)
        try:
            parent(content, options, [ours, *others], **kwargs)
        except (RuntimeError, ValueError) as error:
            # onnxruntime's constructor forgives mistakes about providers, but not its set_providers.
            if not others or state.again or not _wants_fallback(state.kwargs):
                raise
            parent(content, options, [ours], **kwargs)
            state.notes.append(f"{request.other_providers!r} are not used: {error}")
    else:
        devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER]
        options.add_provider_for_devices(devices[:1], given)
        others = [p for p in request.other_providers or () if p != "CPUExecutionProvider"]
        if others:
            state.notes.append(
                f"{others} are not used: onnxruntime {onnxruntime.__version__} takes us by device, alone"
            )
        parent(content, options, **kwargs)
    # What the user chose is what the session tells, though one node has nothing to run in parallel.
    session._sess_options.execution_mode = (so or options).execution_mode
    # onnxruntime before 1.26 does not repeat a plugin's options.
    session._provider_options = {**session._provider_options, PROVIDER: given}
    session._sess_options_initial = so
    session._enable_fallback = _wants_fallback(state.kwargs)
    check_the_stack(session)


def _tell(made: Plan) -> None:
    """Falling back is never a secret."""
    if made.fallback is None:
        return
    text = f"this session runs on the CPU: {made.fallback}"
    if made.fallback.loud:
        log.warning(text)
        warn_of_fallback(text)
    else:
        log.info(text)


#: Keywords of the session: onnxruntime's since 1.23, and ours.
_KEYWORDS = frozenset(("enable_fallback", "read_config_from_model", "disabled_optimizers", "use_weight_from"))
#: Frames that finding a device and loading a model may need. Where the stack ends amid that, it would look as if there
#: were no NPU.
_FRAMES = 150
_OPTIMIZED = (
    "SessionOptions.optimized_model_filepath asks for onnxruntime's optimized graph, and a session with compiled "
    "nodes cannot be saved"
)
_FATAL = 4
_SPINNING = "session.intra_op.allow_spinning"


def _keywords(kwargs: Mapping[str, Any]) -> Collection[object]:
    """The keywords that a session takes."""
    if kwargs.keys() <= _KEYWORDS:
        return _KEYWORDS
    # A later onnxruntime's too: its constructor looks for them by name.
    return _KEYWORDS.union(c for c in onnxruntime.InferenceSession.__init__.__code__.co_consts if isinstance(c, str))


def _wants_fallback(kwargs: Mapping[str, Any]) -> bool:
    return int(kwargs.get("enable_fallback", 1)) == 1


def _with_options(providers: Any, options: Any) -> list[Any]:
    if not options:
        return list(providers or ())
    return [(p, o) if isinstance(p, str) else p for p, o in zip(providers, options)]


def _set_threads(options: Any, so: Any, contexts: int) -> None:
    """A session that is all on the NPU needs threads for ``run_async`` only, and none that spin."""
    if config_entry(so, _SPINNING) is None:
        options.add_session_config_entry(_SPINNING, "0")
    if not options.intra_op_num_threads and options.use_per_session_threads:
        # onnxruntime counts a caller of run() as one of them. Calls of run_async that wait for a core ready to be run:
        # else it stands still while the thread that ended the last call tells its callback and fetches the next one.
        options.intra_op_num_threads = 1 + contexts + min(contexts, MOST_READY)
