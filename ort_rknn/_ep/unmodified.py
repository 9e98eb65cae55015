"""What differs in sessions of the unmodified onnxruntime: why a compiled model may not replace an ONNX, and how a
fallback is reported."""

from __future__ import annotations

import logging

from .._errors import warn_of_fallback
from .._planning.decision import Decision, Limits
from ..files import OnnxModel

log = logging.getLogger("ort_rknn")


def _why_not_replaced(onnx: OnnxModel) -> str | None:
    """Why the ONNX may not be replaced: onnxruntime lets a caller, or an active LoRA adapter, feed initializers, and
    ignores those that nothing takes."""
    if not onnx.overridable:
        return None
    names = ", ".join(value.name for value in onnx.overridable[:3])
    return (
        f"its initializers ({names} ...) are also inputs of the graph, but a compiled model ignores what is fed to "
        "them. Take them out of the graph's inputs, or use ort_rknn.InferenceSession, which refuses such a feed"
    )


def _why_not_in_parts(path: str) -> str:
    """Why a model in parts may not replace the ONNX: onnxruntime has loaded the ONNX, whose nodes stay as they are."""
    return (
        f"its compiled model is in parts, in a model of its own that onnxruntime can load: load {path} instead, or use "
        "ort_rknn.InferenceSession, which does so itself"
    )


LIMITS = Limits(_why_not_replaced, _why_not_in_parts)
FROM_MEMORY = "a model from memory stays on the CPU: a compiled twin is found beside a file"


def report_decision(decision: Decision) -> None:
    """Report that the decision is a fallback, if it is one."""
    if decision.plan.fallback is not None:
        report_fallback(f"{decision.facts.model} stays on the CPU: {decision.plan.fallback}")


def report_fallback(text: str) -> None:
    """Report a fallback: it is never silent, because whoever uses the provider in the unmodified onnxruntime asked for
    it."""
    log.warning(text)
    warn_of_fallback(text, "onnxruntime")
