"""The decision what runs where: candidates in order, and the next one if one is ruled out or does not load.

Sessions of ours and the provider on a session of the unmodified onnxruntime decide here. They differ in what they can
do with a plan, which they say as :class:`Limits`, and in how they load it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .._concurrency.interrupts import is_from_a_handler
from .._errors import NpuUnavailable, OptionError
from ..files import OnnxModel
from .facts import Facts
from .on_load import compiled_on_load
from .plan import Plan, plan, plan_after, plan_without
from .request import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session cannot do with a compiled model, whichever it is."""

    of_onnx: Callable[[OnnxModel], str | None] = lambda onnx: None
    """Why no compiled model may run in this ONNX's place; None if one may."""
    in_parts: Callable[[str], str | None] = lambda path: None
    """Why the model in parts at this path may not; None if it may."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan with what it rests on."""

    request: Request
    facts: Facts
    plan: Plan


def decide(request: Request, facts: Facts, limits: Limits) -> Decision:
    """What to load first. Compiles the ONNX where that was asked for.

    Raises NpuUnavailable if the request is strict, or nothing could stand in for the NPU.
    """
    if request.options.convert == "on_load":
        facts = _within(limits, facts)  # before: nothing is compiled in vain
    facts = compiled_on_load(request, facts)
    made = plan(request, facts)
    if made.where != "cpu" and (within := _within(limits, facts)) is not facts:
        facts, made = within, plan(request, within)
    while made.where == "as it is" and made.candidate is not None:
        path = made.candidate.source.path
        assert path is not None
        reason = limits.in_parts(path)
        if reason is None:
            break
        facts, made = plan_without(request, facts, made, reason)
    return Decision(request, facts, made)


def _within(limits: Limits, facts: Facts) -> Facts:
    """``facts`` with what keeps the ONNX from being exchanged."""
    if facts.kind != "onnx" or facts.onnx is None or facts.found is None:
        return facts
    problem = limits.of_onnx(facts.onnx)
    return facts if problem is None else replace(facts, onnx_problem=problem, candidates=())


def load_first(
    decision: Decision,
    load: Callable[[Decision], None],
    may_fall_back: Callable[[Decision, Exception], bool] = lambda decision, error: True,
) -> Decision:
    """``load`` what was decided; where that fails, the next compiled model that fits. Returns the decision that it came
    to, one for the CPU where none loads.

    Raises what ``load`` raised where that is for the user: a bad option, a request for the NPU alone, the end of the
    stack, an error of a signal handler, and what ``may_fall_back`` says. Raises as :func:`decide` does, too.
    """
    while decision.plan.where != "cpu":
        try:
            load(decision)
            return decision
        except Exception as error:
            for_the_user = isinstance(error, (OptionError, NpuUnavailable, RecursionError)) or is_from_a_handler(error)
            if for_the_user or not may_fall_back(decision, error):
                raise
            facts, made = plan_after(decision.request, decision.facts, decision.plan, error)
        decision = replace(decision, facts=facts, plan=made)
    return decision
