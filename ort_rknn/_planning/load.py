"""Opens an executor for the compiled model that a plan chose."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from .._errors import FAIL, ort_error
from .._executor.declared import declared_by_file, declared_by_onnx
from .._executor.executor import Executor
from .._executor.opening import CompiledModel, OnnxBehind, open_executor
from .._options import Options
from ..adapter.contract import AdapterError, Model, ModelSource
from ..adapter.plugins import Found
from ..files import Dimension
from ..files.twins import NO_RECORD
from .facts import Facts
from .plan import Plan
from .session_options import EMPTY_MODEL, copy_options, cpu_session

log = logging.getLogger("ort_rknn")


def load_planned(
    facts: Facts,
    made: Plan,
    options: Options,
    lender: Model | None,
    overridden: Mapping[str, tuple[Dimension, ...]],
    so: Any = None,
    *,
    optimal_only: bool = False,
) -> Executor:
    """The executor for a plan that uses the NPU.

    ``overridden``: dims of inputs that the user's SessionOptions ``so`` fix. ``optimal_only``: see
    :func:`open_executor`. Raises OptionError for options that do not fit the model or the device, Fail if the model
    does not load.
    """
    found, candidate = made.found, made.candidate
    assert found is not None
    if candidate is None:
        source, file = make_stand_in(facts, found), None
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
    # The session for missing shapes is created when the first one occurs. By then the user may have reused the options
    # for another session.
    as_it_was = copy_options(so, EMPTY_MODEL) if so and options.on_missing_shape == "cpu" else None
    onnx = OnnxBehind(
        facts.onnx_source if made.use_onnx else None,
        cpu_session=partial(cpu_session, so, as_it_was=as_it_was, any_shape=bool(overridden)),
        stand_in=candidate is None,
    )
    executor = open_executor(
        found,
        CompiledModel(source, label, file, inputs, outputs, overridden, onnx=onnx),
        options,
        share_with=lender,
        optimal_only=optimal_only,
    )
    for note in candidate.notes if candidate is not None else ():
        if note.startswith(NO_RECORD):
            log.info("%s: %s", label, note)
    return executor


def make_stand_in(facts: Facts, found: Found) -> ModelSource:
    """A model made from the ONNX's signature, for a virtual NPU. Raises Fail if it cannot have one."""
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
