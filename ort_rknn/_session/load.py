"""The compiled model of a plan: loading it, and the wrapper that stands for it in onnxruntime."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._errors import FAIL, OptionError, ort_error
from .._executor.executor import Executor
from .._executor.opening import declared_by_file, declared_by_onnx, open_executor
from .._options import PROVIDER, Options
from .._planning.discovery import Found
from .._planning.facts import Facts
from .._planning.plan import Plan
from ..adapter.contract import AdapterError, Model, ModelSource
from ..files import Dimension, ModelFields, ep_context_model, judge_twin
from ..files.twins import NO_RECORD
from .session_options import EMPTY_MODEL, copy_options, cpu_session

log = logging.getLogger("ort_rknn")

_NOTHING: Any = object()


def lender_of(kwargs: Mapping[str, Any]) -> Model | None:
    """The model of the session that ``use_weight_from`` names; None where that one has none on the NPU."""
    other = kwargs.get("use_weight_from")
    if other is None:
        return None
    state = getattr(other, "_npu", _NOTHING)
    if state is _NOTHING:
        raise OptionError(f"use_weight_from: an ort_rknn.InferenceSession is wanted; got {type(other).__name__}")
    executor = state.executor if state is not None else None
    if executor is not None and executor.closed:
        raise OptionError("use_weight_from: that session was closed")
    if executor is None:
        return None
    executor.open_here()  # in a forked child it may not be open yet
    lender: Model = executor.model
    return lender


def load_planned(
    facts: Facts,
    made: Plan,
    options: Options,
    lender: Model | None,
    overridden: Mapping[str, tuple[Dimension, ...]],
    so: Any = None,
) -> Executor:
    """The executor of a plan for the NPU. ``overridden``: dims of inputs that the user's SessionOptions ``so`` fix.

    Raises OptionError for options that do not fit the model or the device, Fail where the model does not load.
    """
    found, candidate = made.found, made.candidate
    assert found is not None
    twin = facts.onnx_source if made.use_onnx else None
    if candidate is None:
        source, file = _stand_in(facts, found), None
        label = f"stand-in for {facts.label}"
    else:
        source, file, label = candidate.source, candidate.file, candidate.name
    if made.use_onnx:
        assert facts.onnx is not None
        inputs: Any = declared_by_onnx(facts.onnx.inputs)
        outputs: Any = declared_by_onnx(facts.onnx.outputs)
    else:
        declared = declared_by_file(file) if file is not None else None
        inputs, outputs = declared or (None, None)
    # The session for missing shapes is made at the first of them, and the user's options may be another session's then.
    as_it_was = copy_options(so, EMPTY_MODEL) if so and options.on_missing_shape == "cpu" else None
    executor = open_executor(
        found,
        source,
        options,
        inputs=inputs,
        outputs=outputs,
        file=file,
        twin=twin,
        label=label,
        share_with=lender,
        overridden=overridden,
        cpu_session=partial(cpu_session, so, as_it_was=as_it_was, any_shape=bool(overridden)),
        stand_in=candidate is None,
    )
    for note in candidate.notes if candidate is not None else ():
        if note.startswith(NO_RECORD):
            log.info("%s: %s", label, note)
    return executor


def _stand_in(facts: Facts, found: Found) -> ModelSource:
    assert facts.onnx is not None
    make = getattr(found.adapter, "stand_in", None)
    if make is None:
        raise ort_error(FAIL, f"adapter {found.adapter.name} makes no stand-ins; compile a twin of {facts.label}")
    sides = [
        [(v.name, v.dtype, tuple(d if isinstance(d, int) else 1 for d in v.dims or ())) for v in side]
        for side in (declared_by_onnx(facts.onnx.inputs), declared_by_onnx(facts.onnx.outputs))
    ]
    try:
        return ModelSource(data=make(found.device, *sides))
    except AdapterError as error:
        raise ort_error(FAIL, f"no stand-in for {facts.label}: {error}") from error


@dataclass(frozen=True, slots=True)
class _FileFields:
    """A model's metadata where no ONNX tells it."""

    graph_name: str
    metadata: Mapping[str, str]
    producer_name: str = "ort_rknn"
    producer_version: str = ""
    domain: str = ""
    model_version: int | None = None
    doc_string: str = ""
    graph_doc_string: str = ""


def wrapper_of(facts: Facts, made: Plan, executor: Executor, token: bytes) -> bytes:
    """The ONNX that onnxruntime loads in place of the compiled model: one EPContext node that holds ``token``, with the
    signature of ``executor`` and the metadata of the ONNX."""
    fields: ModelFields
    if made.use_onnx:
        assert facts.onnx is not None
        fields = facts.onnx
    else:
        file = made.candidate.file if made.candidate is not None else None
        custom = file.custom_string if file is not None else None
        metadata = {"rknn_custom_string": custom} if custom else {}
        fields = _FileFields(os.path.splitext(facts.label)[0], metadata)
    return ep_context_model(
        model=fields,
        inputs=executor.signature.inputs,
        outputs=executor.signature.outputs,
        source=PROVIDER,
        cache_context=token,
        node_name=executor.label,
    )


def version_notes(made: Plan, executor: Executor) -> list[str]:
    """A runtime's version is known only once it has loaded the model: then it is worth a note, not a refusal."""
    file = made.candidate.file if made.candidate is not None else None
    if file is None or made.found is None:
        return []
    version = executor.model.versions.get("runtime")
    verdict = judge_twin(file, soc=made.found.device.soc, runtime_version=version, onnx_path=None)
    return [f"the runtime loaded it, but: {reason}" for reason in verdict.reasons]
