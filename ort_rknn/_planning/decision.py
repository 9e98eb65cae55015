"""Decides what runs where: tries candidates in order, and moves on when one is ruled out or fails to load.

Shared by our sessions and by the provider in a session of the unmodified onnxruntime. They differ in what they can do
with a plan, which they describe as :class:`Limits`, and in how they load it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .._errors import NpuUnavailable, OptionError
from .._executor.dispatch import resolve
from .._interrupts import from_a_handler
from ..files import OnnxModel
from .facts import Facts
from .on_load import compiled_on_load
from .plan import Plan, plan, plan_after, plan_without
from .request import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """What a session cannot do with a compiled model."""

    of_onnx: Callable[[OnnxModel], str | None] = lambda onnx: None
    """Why no compiled model may replace this ONNX; None if one may."""
    in_parts: Callable[[str], str | None] = lambda path: None
    """Why the model in parts at this path may not be used; None if it may."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan, with the request and the facts it is based on."""

    request: Request
    facts: Facts
    plan: Plan


def decide(request: Request, facts: Facts, limits: Limits) -> Decision:
    """Decide what to load first. Compiles the ONNX if the request asks for it.

    Raises NpuUnavailable if the request is strict, or if nothing can replace the NPU; OptionError if the options name a
    core that the device lacks.
    """
    if request.options.convert == "on_load":
        facts = _within(limits, facts)  # checked first, so that nothing is compiled in vain
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
    if made.where == "cpu" and facts.found is not None:
        # A core that the device lacks is an error, whether or not a compiled model would use it.
        resolve(request.options, facts.found.device.soc, facts.found.device.cores)
    return Decision(request, facts, made)


def _within(limits: Limits, facts: Facts) -> Facts:
    """``facts``, with the reason why the ONNX may not be replaced, if there is one."""
    if facts.kind != "onnx" or facts.onnx is None or facts.found is None:
        return facts
    problem = limits.of_onnx(facts.onnx)
    return facts if problem is None else replace(facts, onnx_problem=problem, candidates=())


def load_first(
    decision: Decision,
    load: Callable[[Decision], None],
    may_fall_back: Callable[[Decision, Exception], bool] = lambda decision, error: True,
) -> Decision:
    """Call ``load`` with the decision; if that fails, with the next compiled model that fits.

    Returns the decision that loaded, or one for the CPU if none did. Raises what ``load`` raised if the error is the
    user's to handle: a bad option, a request for the NPU alone, a RecursionError, an exception from a signal handler,
    or whatever ``may_fall_back`` rejects. Also raises as :func:`decide` does.
    """
    while decision.plan.where != "cpu":
        try:
            load(decision)
            return decision
        except Exception as error:
            interrupt = from_a_handler(error)
            if interrupt is not None and interrupt is not error:
                raise interrupt from interrupt.__cause__
            for_the_user = interrupt is not None or isinstance(error, (OptionError, NpuUnavailable, RecursionError))
            if for_the_user or not may_fall_back(decision, error):
                raise
            facts, made = plan_after(decision.request, decision.facts, decision.plan, error)
        decision = replace(decision, facts=facts, plan=made)
    return decision
