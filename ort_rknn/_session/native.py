"""Starts onnxruntime's session under ours: on the CPU, on one compiled model, or on a model with compiled nodes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnxruntime

from .._ep import handoff, registration, support
from .._errors import NpuUnavailable, OptionError
from .._executor.dispatch import MOST_READY, resolve
from .._executor.executor import Executor
from .._options import PROVIDER, SIGNATURE_OPTIONS
from .._planning.decision import Decision
from .._planning.parts_form import parts_form
from .._planning.request import policy, strict_policy
from .._planning.session_options import (
    EMPTY_MODEL,
    SAVE_CONTEXT,
    WEIGHTS_FOLDER,
    config_entry,
    copy_options,
    cpu_session,
)
from ..files import OnnxFileError
from ..files.compatibility import FAIL_ON_SUBOPTIMAL
from .load import wrapper_of
from .stack import check_the_stack
from .state import State

_FATAL = 4
_SPINNING = "session.intra_op.allow_spinning"


@dataclass(frozen=True, slots=True)
class Given:
    """The arguments of a session's constructor or of ``set_providers``."""

    session: Any
    parent: Callable[..., None]
    """onnxruntime's constructor, bound to ``session``."""
    model: Any
    so: Any
    """The user's SessionOptions."""
    providers: Any
    provider_options: Any
    kwargs: dict[str, Any]
    again: bool = False
    """Called by set_providers, not by the constructor."""

    @property
    def wants_fallback(self) -> bool:
        """onnxruntime's keyword ``enable_fallback``."""
        return int(self.kwargs.get("enable_fallback", 1)) == 1

    @property
    def optimal_only(self) -> bool:
        """Whether a compiled model that onnxruntime would call suboptimal is an error."""
        return config_entry(self.so, FAIL_ON_SUBOPTIMAL) == "1"


def start_on_their_providers(given: Given) -> None:
    """Start on the devices or policy that the user chose on the SessionOptions, which onnxruntime handles."""
    with registration.held():
        given.parent(given.model, given.so, given.providers, given.provider_options, **given.kwargs)
    chosen = given.session._providers[0]
    if policy() == "only" and chosen != PROVIDER:
        raise NpuUnavailable(
            f"the SessionOptions chose {chosen} themselves (no fallback to the CPU: {strict_policy()})"
        )


def start_on_cpu(given: Given, state: State, decision: Decision) -> None:
    """Start onnxruntime's own session on the user's ONNX, with extra nodes around its graph if options ask for another
    form."""
    request, facts, model = decision.request, decision.facts, decision.plan.parent_model
    others = request.other_providers
    if request.named and not others:
        others = ["CPUExecutionProvider"]
    if request.options.native_layout:
        made = decision.plan
        raise NpuUnavailable(
            f"provider option {request.options.native_layout}='native' cannot be kept on the CPU, because it is how "
            f"the NPU stores tensors; and this session runs on the CPU: {made.fallback or '; '.join(made.story)}"
        )
    form, unread = None, None
    if any(key in request.options.given for key in SIGNATURE_OPTIONS):
        from .cpu_form import cpu_form

        try:
            form = cpu_form(facts, request.options, model) if facts.kind != "other" else None
            unread = facts.onnx_problem or "it is no ONNX" if facts.kind == "other" else None
        except (OnnxFileError, OSError) as error:
            unread = str(error)
    options = given.so
    if form is not None:
        model, state.raw = form.model, form.quantization
        state.notes += form.notes
        if form.folder is not None:
            options = copy_options(given.so, EMPTY_MODEL)
            options.add_session_config_entry(WEIGHTS_FOLDER, form.folder)
    given.parent(model, options, others, request.other_options, **given.kwargs)
    if options is not given.so:
        given.session._sess_options_initial = given.so
    if unread is not None:  # onnxruntime's own message comes first
        key = next(key for key in SIGNATURE_OPTIONS if key in request.options.given)
        raise OptionError(f"provider option {key!r} cannot be kept on the CPU: {facts.label}: {unread}")


def start_on_npu(given: Given, state: State, decision: Decision, executor: Executor) -> None:
    """Start onnxruntime's session on the wrapper of one compiled model. Closes ``executor`` if it raises."""
    token = handoff.offer(executor)
    try:
        wrapper = wrapper_of(decision.facts, decision.plan, executor, token)
        options = copy_options(given.so, wrapper)
        _set_threads(options, given.so, executor.dispatch.contexts)
        # The model is a single node: nothing runs in parallel, and a run stays on its caller's thread.
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        _start_with_provider(given, state, decision, options, wrapper)
    except BaseException:
        executor.close()
        raise
    finally:
        handoff.withdraw(token)


def start_on_nodes(given: Given, state: State, decision: Decision) -> None:
    """Start onnxruntime's session on a model with our EPContext nodes, and possibly nodes for the CPU."""
    request, facts, made, so = decision.request, decision.facts, decision.plan, given.so
    assert made.found is not None
    content, device, candidate = made.parent_model, made.found.device, made.candidate
    onnx = candidate.context_model if candidate is not None else facts.onnx
    label = candidate.name if candidate is not None else facts.label
    assert onnx is not None
    # Bad options are detected here, where they can be distinguished from a bad model.
    dispatch = resolve(request.options, device.soc, device.cores)
    chosen = request.options._replace(device=request.options.device or device.name)
    form = parts_form(content, onnx, chosen, label)
    options = copy_options(so, content if isinstance(content, bytes) else EMPTY_MODEL)
    if not so or so.log_severity_level < 0:
        # onnxruntime warns, in yellow and twice, that nodes run on the CPU, which is the point of a model in parts. Its
        # errors are raised anyway. The default logger's own severity, which has no getter, may be as high already.
        options.log_severity_level = _FATAL
    if onnx.node_count == len(onnx.ep_context_nodes):
        _set_threads(options, so, dispatch.contexts)
    if onnx.node_count == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    elif options.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL:
        state.parallel = True
        state.notes.append(_PARALLEL)
    model_path = ""
    if form.content is not None and isinstance(content, str):
        model_path, content = content, form.content
        options.add_session_config_entry(WEIGHTS_FOLDER, os.path.dirname(os.path.abspath(model_path)))
    elif form.content is not None:
        content = form.content
    making = handoff.Making(
        state.of_nodes,
        facts.onnx_source if isinstance(facts.onnx_source, str) else None,
        partial(cpu_session, so, as_it_was=copy_options(so, EMPTY_MODEL) if so else None, any_shape=True),
        form,
        model_path,
        given.optimal_only,
    )
    with handoff.collected(making):
        _start_with_provider(given, state, decision, options, content)


def _start_with_provider(given: Given, state: State, decision: Decision, options: Any, content: Any) -> None:
    """Start onnxruntime's session with our provider, by name or (before 1.25.1) by device."""
    session, parent, request, found = given.session, given.parent, decision.request, decision.plan.found
    assert found is not None
    ours = request.options.as_strings()
    ours.setdefault("device", found.device.name)
    if given.so and config_entry(options, SAVE_CONTEXT) == "1":
        options.add_session_config_entry(SAVE_CONTEXT, "0")
    if request.overtaken:
        state.notes.append(f"{PROVIDER} comes first, though {', '.join(request.overtaken)} was named before it")
    kwargs = {**given.kwargs, "enable_fallback": 0}
    if support.by_name():
        others = _with_options(request.other_providers, request.other_options)
        try:
            parent(content, options, [(PROVIDER, ours), *others], **kwargs)
        except (RuntimeError, ValueError) as error:
            # onnxruntime's constructor tolerates mistakes about providers; its set_providers does not.
            if not others or given.again or not given.wants_fallback:
                raise
            parent(content, options, [(PROVIDER, ours)], **kwargs)
            state.notes.append(f"{request.other_providers!r} are not used: {error}")
    else:
        devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER]
        options.add_provider_for_devices(devices[:1], ours)
        others = [p for p in request.other_providers or () if p != "CPUExecutionProvider"]
        if others:
            state.notes.append(
                f"{others} are not used: onnxruntime {onnxruntime.__version__} accepts a plugin "
                "provider by device only, without others"
            )
        parent(content, options, **kwargs)
    # The session reports the user's choice, although a single node has nothing to run in parallel.
    session._sess_options.execution_mode = (given.so or options).execution_mode
    # onnxruntime before 1.26 does not report a plugin's options.
    session._provider_options = {**session._provider_options, PROVIDER: ours}
    session._sess_options_initial = given.so
    session._enable_fallback = given.wants_fallback
    check_the_stack(session)


_PARALLEL = (
    "execution_mode=ORT_PARALLEL: nodes run on onnxruntime's threads, so calls of submit, map ... take their "
    "cores in the order in which their nodes begin, not in the order of the calls"
)


def _with_options(providers: Any, options: Any) -> list[Any]:
    if not options:
        return list(providers or ())
    return [(p, o) if isinstance(p, str) else p for p, o in zip(providers, options)]


def _set_threads(options: Any, so: Any, contexts: int) -> None:
    """Set the number of threads: a session entirely on the NPU needs threads only for ``run_async``, and no spinning
    ones."""
    if config_entry(so, _SPINNING) is None:
        options.add_session_config_entry(_SPINNING, "0")
    if not options.intra_op_num_threads and options.use_per_session_threads:
        # onnxruntime counts a caller of run() as one of them. The last term is for run_async calls that wait, ready to
        # run, for a core: otherwise the core idles while the thread of the last call runs its callback and fetches the
        # next call.
        options.intra_op_num_threads = 1 + contexts + min(contexts, MOST_READY)
