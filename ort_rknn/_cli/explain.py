"""``ort-rknn explain``: creates a session and says what runs where, and why."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..adapter.command import Command
from ..adapter.json_output import device_as_json
from . import schemas
from .arguments import add_device_options, add_key_values, device_options, key_values
from .output import (
    FAILED,
    FINE,
    USAGE,
    Mistake,
    about_model,
    add_json_option,
    check_file,
    say,
    say_json,
    session_errors,
)

if TYPE_CHECKING:
    from .._session.session import InferenceSession


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an .onnx or .rknn file")
    add_device_options(parser)
    parser.add_argument("--schedule", metavar="CORES", help="cores for successive runs: 0,1,2 or auto (throughput)")
    parser.add_argument("--threads-per-core", metavar="N", help="contexts per core")
    parser.add_argument("--tp-mode", metavar="MODE", help="split each run: auto, all, 0, 1, 2, 0,1 or 0,1,2 (latency)")
    parser.add_argument("--rknn-model", metavar="PATH", help="the compiled model to use")
    parser.add_argument("--onnx-model", metavar="PATH", help="the ONNX from which a given .rknn was compiled")
    add_key_values(parser, "--option", "any other provider option; may be repeated")
    add_json_option(parser)


def run(given: argparse.Namespace) -> int:
    import warnings

    from .._errors import FallbackWarning, OptionError, bare_message
    from .._session.session import InferenceSession

    options = device_options(given)
    for key in ("schedule", "threads_per_core", "tp_mode", "rknn_model", "onnx_model"):
        if (value := getattr(given, key)) is not None:
            options[key] = value
    options |= key_values("--option", given.option)
    check_file(given.model, or_export=True)
    expected: tuple[type[Exception], ...] = (*session_errors(), OSError, ValueError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)  # explain() reports it
            session = InferenceSession(given.model, provider_options=[options] if options else None)
    except OptionError as error:
        raise Mistake(bare_message(error), USAGE) from None
    except expected as error:
        raise Mistake(about_model(given.model, error)) from None
    with session:
        found = _as_json(given.model, session)
    if given.json:
        say_json("explain", found)
    else:
        say(found["text"])
    return FINE if found["fell_back"] is None else FAILED


def _str_or_none(verdict: object) -> str | None:
    return None if verdict is None else str(verdict)


def _as_json(model: str, session: InferenceSession) -> dict[str, Any]:
    from .._session.explain import cannot_run

    state = session._npu
    plan = state.plan if state is not None else None
    models = [
        {
            "model": executor.label,
            "versions": dict(executor.model.versions),
            "compatibility": _str_or_none(executor.provenance.compatibility),
            "dispatch": executor.dispatch.describe(),
            "contexts": executor.dispatch.contexts,
        }
        for executor in (state.executors if state is not None else ())
    ]
    return {
        "model": model,
        "runs": "onnxruntime" if plan is None else plan.where,
        "fell_back": None if plan is None or plan.fallback is None else str(plan.fallback),
        "device": None if plan is None or plan.found is None else device_as_json(plan.found.device),
        "models": models,
        "because": [] if plan is None else list(plan.story),
        "notes": [] if state is None else [*state.notes, *cannot_run(state)],
        "text": session.explain(),
    }


COMMAND = Command(
    name="explain",
    summary="create a session and say what runs where, and why",
    description="Creates a session like InferenceSession(MODEL, provider_options=...) and prints its explain(). The "
    "options are the provider options of the same names. Exit code 1 if the NPU was requested and the session fell "
    "back to the CPU.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.EXPLAIN,
)
