"""The plan: what runs where, and why. A pure function of the request and the facts.

| given           | NPU usable        | virtual device asked for      | neither                            |
|-----------------|-------------------|-------------------------------|------------------------------------|
| ``model.onnx``  | the compiled twin | the twin, else a stand-in     | the CPU on ``model.onnx``          |
|                 | (whole, in parts) |                               |                                    |
| ``model.rknn``  | itself            | itself                        | the ONNX twin on the CPU, or error |
| EPContext nodes | as it is          | as it is                      | the original ONNX, or error        |

:class:`Fallback` says what falls back, warns or raises.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Literal

from .._errors import NpuUnavailable, bare_message
from ..adapter.plugins import Found
from .candidate import Candidate
from .facts import Facts
from .request import Request

log = logging.getLogger("ort_rknn")

Where = Literal["npu", "cpu", "as it is"]


@dataclass(frozen=True, slots=True)
class Fallback:
    """The NPU comes first but is not used: the first failed check, and its remedy.

    Reported as a warning and a log record if the user asked for the NPU or the machine has one, else as an INFO record.
    """

    reason: str
    remedy: str
    loud: bool

    def __str__(self) -> str:
        return f"{self.reason}. {self.remedy}" if self.remedy else self.reason


@dataclass(frozen=True, slots=True)
class Plan:
    """What a session does."""

    where: Where
    """"npu": a wrapper around a compiled model; "cpu": onnxruntime's own session; "as it is": onnxruntime's session
    with the provider, on a model with EPContext nodes."""
    parent_model: Any = None
    """For "cpu" and "as it is": the model that onnxruntime loads."""
    found: Found | None = None
    candidate: Candidate | None = None
    """For "npu": the compiled model; None: a stand-in is to be built. For "as it is": the model in parts that replaces
    the ONNX; None if the user gave one."""
    use_onnx: bool = False
    """For "npu": the ONNX provides the signature and metadata (and a virtual NPU's numbers)."""
    fallback: Fallback | None = None
    story: tuple[str, ...] = ()
    """The reasons that led to this plan, for ``explain()``."""

    @property
    def stand_in(self) -> str:
        """The note about a stand-in that runs in place of a compiled model; "" if there is none."""
        return _STAND_IN if self.where == "npu" and self.candidate is None else ""


#: Reported wherever a stand-in is used: a board has none.
_STAND_IN = (
    "no compiled twin, so the virtual NPU runs a stand-in made from the signature, with the ONNX's numbers; on a board "
    "this session would run on the CPU"
)


def plan(request: Request, facts: Facts) -> Plan:
    """The plan for a session. Raises NpuUnavailable if the request is strict, or if nothing can replace the NPU."""
    if facts.kind == "other":
        if request.wants_npu and facts.onnx_problem is not None:
            return fall_back(request, facts, f"{facts.label}: {facts.onnx_problem}", "", ())
        return Plan("cpu", facts.model, story=("onnxruntime itself judges this model",))
    if not request.wants_npu:
        return _on_cpu(request, facts, None, ("the providers that were named do not include the NPU",))
    if facts.found is None:
        absence = facts.absence
        assert absence is not None
        story = tuple(f"looked at {tried}" for tried in absence.tried)
        return fall_back(request, facts, f"no NPU: {absence.reason}", absence.remedy, story)
    device = facts.found.device
    cores = f"{device.cores} core{'s' if device.cores > 1 else ''}"
    story = (
        f"device {device.name} ({cores}) through adapter {device.adapter}",
        *(f"adapter {name} sees a device too; the provider option adapter='{name}' selects it" for name in facts.also),
    )
    if request.must_stay:
        return fall_back(request, facts, request.must_stay, "", story)
    if facts.kind == "ep_context":
        return Plan("as it is", facts.model, facts.found, story=(*story, "the model holds EPContext nodes of ours"))
    if facts.kind == "rknn":
        return _given_rknn(request, facts, story)
    return _given_onnx(request, facts, story)


def _given_onnx(request: Request, facts: Facts, story: tuple[str, ...]) -> Plan:
    assert facts.found is not None and facts.onnx is not None
    device = facts.found.device
    in_parts = any(candidate.context_model is not None for candidate in facts.candidates)
    if facts.onnx_problem is not None and not in_parts:
        return fall_back(request, facts, f"{facts.label}: {facts.onnx_problem}", "", story)
    if request.after_cpu:
        reason = "CPUExecutionProvider was named before the NPU's provider and takes every node, as in onnxruntime"
        return fall_back(request, facts, reason, "Name the NPU's provider first", story)
    for candidate in facts.candidates:
        if candidate.fit and candidate.context_model is not None:
            story = (*story, f"compiled model {candidate.name}, in parts", *candidate.notes)
            path = candidate.source.path
            return Plan("as it is", path, facts.found, candidate=candidate, story=story)
        if facts.onnx_problem is not None and candidate.context_model is None:
            story = (*story, f"{candidate.name} is not used: {facts.onnx_problem}")
            continue
        if candidate.fit:
            story = (*story, f"compiled model {candidate.name}", *candidate.notes)
            return Plan("npu", found=facts.found, candidate=candidate, use_onnx=True, story=story)
        story = (*story, f"{candidate.name} is not used: {'; '.join(candidate.reasons)}")
    if facts.not_compiled:
        story = (*story, f"it was not compiled at load: {facts.not_compiled}")
    twins = facts.candidates or facts.for_others or facts.not_compiled
    if device.virtual and request.options.rknn_model is None and not twins:
        free = _free_dims(facts)
        if not free:
            return Plan("npu", found=facts.found, use_onnx=True, story=(*story, _STAND_IN))
        return fall_back(
            request,
            facts,
            f"{facts.label}: {free}, but an NPU runs shapes that were compiled",
            "Convert it with rknn-toolkit2 for the shapes you need and put the .rknn beside it",
            story,
        )
    reasons = [f"{c.name} does not fit: {'; '.join(c.reasons)}" for c in facts.candidates]
    if not reasons:
        names = ", ".join(facts.looked_for)
        reasons = [
            f"no compiled twin of {facts.label} (looked for {names})" if names else "a model in memory has no twin"
        ]
        if facts.for_others:
            reasons[0] += f"; there are those for other SoCs: {', '.join(facts.for_others)}"
    if facts.onnx_problem is not None:
        reasons.append(f"{facts.label}: {facts.onnx_problem}")
    if facts.not_compiled:
        return fall_back(request, facts, f"{reasons[0]}, and compiling it failed: {facts.not_compiled}", "", story)
    remedy = (
        f"Convert it for {device.soc} with rknn-toolkit2 and put the .rknn beside it, or name it with the provider "
        "option rknn_model"
    )
    return fall_back(request, facts, reasons[0], remedy, story)


def _free_dims(facts: Facts) -> str:
    """The free dims that a stand-in does not support; "" if only leading axes of inputs and lengths of outputs are
    free."""
    assert facts.onnx is not None
    for what, values in (("input", facts.onnx.inputs), ("output", facts.onnx.outputs)):
        for value in values:
            if value.dims is None:
                return f"{what} {value.name!r} has no fixed rank"
    for value in facts.onnx.inputs:
        free = [str(d if d is not None else "?") for d in (value.dims or ())[1:] if not isinstance(d, int)]
        if free:
            return f"input {value.name!r} has the free dimensions {', '.join(free)}"
    return ""


def _given_rknn(request: Request, facts: Facts, story: tuple[str, ...]) -> Plan:
    assert facts.found is not None
    candidate = facts.candidates[0]
    if not candidate.fit:
        return fall_back(request, facts, f"{candidate.name} does not fit: {'; '.join(candidate.reasons)}", "", story)
    use_onnx = facts.onnx is not None and facts.onnx_problem is None and _same_names(candidate, facts)
    if use_onnx:
        story = (*story, f"signature and metadata from its ONNX twin {facts.onnx_source!r}")
    else:
        story = (*story, "signature from the .rknn itself" + (f" ({facts.onnx_problem})" if facts.onnx_problem else ""))
        if facts.found.device.virtual:
            story = (*story, "no ONNX twin: the virtual NPU's numbers are a deterministic function of the inputs")
    return Plan("npu", found=facts.found, candidate=candidate, use_onnx=use_onnx, story=(*story, *candidate.notes))


def _same_names(candidate: Candidate, facts: Facts) -> bool:
    """Whether the ONNX beside a given ``.rknn`` has its inputs and outputs. It may have more; the facts judge that."""
    file, onnx = candidate.file, facts.onnx
    if file is None or onnx is None or not file.inputs or not file.outputs:
        return onnx is not None
    return {t.name for t in file.inputs} <= {v.name for v in onnx.inputs} and {t.name for t in file.outputs} <= {
        v.name for v in onnx.outputs
    }


def plan_after(request: Request, facts: Facts, made: Plan, error: Exception) -> tuple[Facts, Plan]:
    """Facts and plan after loading on the NPU failed: the next compiled model that fits, else the CPU.

    Raises as :func:`plan` does, with the failure as the cause.
    """
    reason = bare_message(error)
    try:
        after, other = plan_without(request, facts, made, reason)
    except Exception as refusal:
        raise refusal from error
    if other.where != "cpu":
        log.warning("trying another compiled model: %s", reason)
    return after, other


def plan_without(request: Request, facts: Facts, made: Plan, reason: str) -> tuple[Facts, Plan]:
    """Facts and plan after ``reason`` ruled out the current plan. Raises as :func:`plan` does."""
    others = tuple(
        replace(c, fit=False, reasons=(*c.reasons, reason)) if c is made.candidate else c for c in facts.candidates
    )
    if any(candidate.fit for candidate in others):
        facts = replace(facts, candidates=others)
        return facts, plan(request, facts)
    return facts, fall_back(request, facts, reason, "", made.story)


def fall_back(request: Request, facts: Facts, reason: str, remedy: str, story: tuple[str, ...]) -> Plan:
    """A plan for the CPU, with its reason. Raises NpuUnavailable as :func:`plan` does."""
    text = f"{reason}. {remedy}" if remedy else reason
    if request.strict:
        raise NpuUnavailable(f"{text} (no fallback to the CPU: {request.strict_by})")
    return _on_cpu(request, facts, Fallback(reason, remedy, request.asked or facts.machine_has_npu), story)


def _on_cpu(request: Request, facts: Facts, fallback: Fallback | None, story: tuple[str, ...]) -> Plan:
    if facts.kind in ("onnx", "other"):
        return Plan("cpu", facts.model, fallback=fallback, story=story)
    if facts.onnx_source is not None:
        story = (*story, f"the CPU runs {facts.onnx_source!r} in place of {facts.label}")
        return Plan("cpu", facts.onnx_source, fallback=fallback, story=story)
    why = f"{fallback}".rstrip(". ") if fallback else "the named providers cannot run it"
    names = ", ".join(facts.looked_for)
    looked = f"looked for {names}" if names else "the model names none, and its own name does not end in _ctx.onnx"
    if not names and isinstance(facts.model, bytes):
        looked = "a model in memory has no file beside it"
    what = "a compiled model runs on an NPU only" if facts.kind == "rknn" else "its EPContext nodes run on an NPU only"
    raise NpuUnavailable(
        f"{facts.label}: {why}. And {what}, while no ONNX was found that the CPU could run instead ({looked}); "
        "put the ONNX beside it or name it with the provider option onnx_model"
    )
