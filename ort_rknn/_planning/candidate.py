"""A compiled model beside an ONNX, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass

from ..adapter.contract import ModelSource
from ..files import OnnxModel, RknnFile


@dataclass(frozen=True, slots=True)
class Candidate:
    """A compiled model that might be used, and what speaks against it."""

    source: ModelSource
    name: str
    file: RknnFile | None
    fit: bool
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    context_model: OnnxModel | None = None
    """Where it is a model in parts: an ONNX with EPContext nodes of ours, which onnxruntime loads."""
