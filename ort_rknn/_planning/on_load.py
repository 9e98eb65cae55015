"""Compiles an ONNX that has no fitting compiled model, if the session asks for it."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import replace

from .facts import Facts, judge
from .in_parts import judge_parts
from .request import Request

log = logging.getLogger("ort_rknn")


def compiled_on_load(request: Request, facts: Facts) -> Facts:
    """``facts``, with the model that was compiled now or earlier, or with the reason why none was.

    Does nothing if the option ``convert`` is off, if a compiled model fits or was named, or if the NPU will not be used
    anyway.
    """
    wanted = request.options.convert == "on_load" and request.wants_npu
    hopeless = request.after_cpu or bool(request.must_stay) or facts.onnx_problem is not None
    if not wanted or hopeless or facts.kind != "onnx" or facts.found is None or facts.onnx is None:
        return facts
    if request.options.rknn_model is not None or any(candidate.fit for candidate in facts.candidates):
        return facts
    if not isinstance(facts.model, str):
        return replace(facts, not_compiled="a model in memory is not compiled: give its path")
    from .._compile.on_load import NotCompiled, compile_on_load

    soc = facts.found.device.soc
    try:
        path = compile_on_load(facts.model, soc, request.options.convert_shapes, lambda text: _say(facts.label, text))
    except NotCompiled as error:
        return replace(facts, not_compiled=str(error))
    in_parts = path.endswith(".onnx")
    found = judge_parts(path, soc, facts.model, facts.onnx) if in_parts else judge(path, soc, facts.model)
    return facts if found is None else replace(facts, candidates=(*facts.candidates, found))


def _say(label: str, text: str) -> None:
    """Report a step in the log, and to a person at a terminal."""
    log.info("convert=on_load, %s: %s", label, text)
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"ort_rknn compiles {os.path.basename(label)}: {text}", file=sys.stderr)
