"""A compiled model found for an ONNX, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass

from ..adapter.contract import ModelSource
from ..files import OnnxModel, RknnFile


@dataclass(frozen=True, slots=True)
class Candidate:
    """A compiled model that might be used, and the reasons against it."""

    source: ModelSource
    name: str
    file: RknnFile | None
    fit: bool
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    context_model: OnnxModel | None = None
    """For a model in parts: the ONNX with our EPContext nodes, which onnxruntime loads."""
