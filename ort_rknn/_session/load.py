"""The compiled model of a plan: loading it, and the wrapper that represents it in onnxruntime."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._errors import OptionError
from .._executor.executor import Executor
from .._options import PROVIDER
from .._planning.facts import Facts
from .._planning.plan import Plan
from ..adapter.contract import Model
from ..files import ModelFields, ep_context_model, judge_twin

log = logging.getLogger("ort_rknn")

_NOTHING: Any = object()


def lender_of(kwargs: Mapping[str, Any]) -> Model | None:
    """The model of the session given as ``use_weight_from``; None if that session has none on the NPU."""
    other = kwargs.get("use_weight_from")
    if other is None:
        return None
    state = getattr(other, "_npu", _NOTHING)
    if state is _NOTHING:
        raise OptionError(f"use_weight_from: expected an ort_rknn.InferenceSession, got {type(other).__name__}")
    executor = state.executor if state is not None else None
    if executor is not None and executor.closed:
        raise OptionError("use_weight_from: that session was closed")
    if executor is None:
        return None
    executor.open_here()  # after a fork, the child may not have opened it yet
    lender: Model = executor.model
    return lender


@dataclass(frozen=True, slots=True)
class _FileFields:
    """A model's metadata, if there is no ONNX."""

    graph_name: str
    metadata: Mapping[str, str]
    producer_name: str = "ort_rknn"
    producer_version: str = ""
    domain: str = ""
    model_version: int | None = None
    doc_string: str = ""
    graph_doc_string: str = ""


def fields_of(facts: Facts, made: Plan) -> ModelFields:
    """A model's metadata: the ONNX's if there is one, else the compiled model's."""
    if made.use_onnx:
        assert facts.onnx is not None
        return facts.onnx
    file = made.candidate.file if made.candidate is not None else None
    custom = file.custom_string if file is not None else None
    metadata = {"rknn_custom_string": custom} if custom else {}
    return _FileFields(os.path.splitext(facts.label)[0], metadata)


def wrapper_of(facts: Facts, made: Plan, executor: Executor, token: bytes) -> bytes:
    """The ONNX that onnxruntime loads in place of the compiled model: one EPContext node containing ``token``, with the
    signature of ``executor`` and the metadata of the ONNX."""
    return ep_context_model(
        model=fields_of(facts, made),
        inputs=executor.signature.inputs,
        outputs=executor.signature.outputs,
        source=PROVIDER,
        cache_context=token,
        node_name=executor.label,
        feedable=executor.feedable,
        unread=[port.name for port in executor.signature.inputs if not port.on_npu],
    )


def version_notes(made: Plan, executor: Executor) -> list[str]:
    """Notes about the runtime's version. It is known only after the model has loaded, so it deserves a note, not an
    error."""
    file = made.candidate.file if made.candidate is not None else None
    if file is None or made.found is None:
        return []
    version = executor.model.versions.get("runtime")
    verdict = judge_twin(file, soc=made.found.device.soc, runtime_version=version, onnx_path=None)
    return [f"the runtime loaded it, but: {reason}" for reason in verdict.reasons]
