"""Checks of a model: its file, its compiled twins, and what would run where."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..adapter.findings import Finding, State

if TYPE_CHECKING:
    from .._planning.facts import Facts
    from ..files import RknnFile

_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")


def examine(path: str, device: str | None, runtime: str | None) -> Iterator[Finding]:
    """The findings on the model at ``path``. ``device`` as the provider option; ``runtime``: its version, if known."""
    from .._ep.support import why_unavailable
    from .._errors import bare_message
    from .._planning.facts import gather
    from .._planning.request import read_request

    try:
        request = read_request(None, [{"device": device}] if device else None, no_cpu=False)
        facts = gather(path, request, why_unavailable())
    except Exception as error:  # onnxruntime's classes and OptionError: all say what is wrong
        yield Finding("model file", "failure", bare_message(error), "Give an .onnx or .rknn file that is whole.")
        return
    yield _file(facts)
    if facts.kind == "other":
        return
    yield from _weights(facts, path)
    yield from _compiled(facts, path, runtime)
    yield _where(facts, path, request.strict)


def _file(facts: Facts) -> Finding:
    if facts.kind == "other":
        seen = facts.onnx_problem or "neither an ONNX nor a compiled model"
        return Finding("model file", "failure", f"{facts.label}: {seen}", "Give an .onnx or .rknn file.")
    kinds = {"onnx": "an ONNX model", "rknn": "a compiled model", "ep_context": "an ONNX with compiled parts"}
    if facts.onnx_problem is not None:
        remedy = (
            "The NPU cannot take this ONNX."
            if facts.kind == "onnx"
            else "Without its ONNX, names, shapes and dtypes come from the compiled model."
        )
        return Finding("model file", "warning", f"{facts.label}: {facts.onnx_problem}", remedy)
    return Finding("model file", "ok", f"{facts.label}, {kinds[facts.kind]}")


def _weights(facts: Facts, path: str) -> Iterator[Finding]:
    """Files with an ONNX's weights that are not where it says. A compiled model on a board does without them."""
    from ..files import OnnxFileError, read_onnx

    if facts.kind != "onnx":
        return
    try:
        names = (facts.onnx or read_onnx(path)).external_data
    except (OnnxFileError, OSError):  # without a device, the ONNX is not read yet: onnxruntime judges it
        return
    missing = [name for name in names if not os.path.isfile(os.path.join(os.path.dirname(path), name))]
    if missing:
        state: State = "warning" if any(candidate.fit for candidate in facts.candidates) else "failure"
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        seen = f"{facts.label} has weights in {named}, which is not there"
        yield Finding("weights", state, seen, "Put all files of the ONNX in one folder.")


def _compiled(facts: Facts, path: str, runtime: str | None) -> Iterator[Finding]:
    soc = facts.found.device.soc if facts.found is not None else None
    convert = f"ort-rknn convert {shlex.quote(path)}" + (f" --target {soc}" if soc else "")
    if facts.kind == "ep_context" or facts.found is None:
        return
    if not facts.candidates:
        names = ", ".join(facts.looked_for)
        seen = f"no compiled model beside {facts.label}" + (f" (looked for {names})" if names else "")
        if facts.for_others:
            seen += f"; there are those for other SoCs: {', '.join(facts.for_others)}"
        yield Finding("compiled model", "failure", seen, f"Convert it for {soc}.", convert)
    for candidate in facts.candidates:
        if not candidate.fit:
            others = any(other.fit for other in facts.candidates)
            state: State = "warning" if others else "failure"
            seen = f"{candidate.name} does not fit: {'; '.join(candidate.reasons)}"
            yield Finding("compiled model", state, seen, "Convert the ONNX again.", convert)
            continue
        parts = ", in parts" if candidate.context_model is not None else ""
        notes = "".join(f"; {note}" for note in candidate.notes)
        stamp = re.search(r"`(ort-rknn stamp [^`]+)`", notes)
        if stamp:
            remedy = "A record of the ONNX lets a session see that it has changed."
            yield Finding("compiled model", "warning", f"{candidate.name}{parts}{notes}", remedy, stamp.group(1))
        else:
            yield Finding("compiled model", "ok", f"{candidate.name}{parts}{notes}")
        if candidate.file is not None:
            yield _versions(candidate.file, candidate.name, runtime)
        break


def _versions(file: RknnFile, name: str, runtime: str | None) -> Finding:
    made, runs = _numbers(file.toolkit_version), _numbers(runtime)
    versions = f"{name} was made with rknn-toolkit2 {file.toolkit_version or 'of an unknown version'}"
    if made is None or runs is None:
        return Finding(
            "versions", "ok", f"{versions}; the runtime's version is {runtime or 'not known before it loads'}"
        )
    seen = f"{versions}, the runtime is {runtime}"
    if made[:2] > runs[:2]:
        remedy = f"Install librknnrt.so {file.toolkit_version} or newer, or convert with rknn-toolkit2 {runtime}."
        return Finding("versions", "failure", f"{seen}, which is older", remedy, "ort-rknn toolkit status")
    if made[:2] != runs[:2]:
        remedy = "Runtimes have been seen to crash on models of another version: convert again if it does."
        return Finding("versions", "warning", f"{seen}: they differ", remedy, "ort-rknn toolkit status")
    return Finding("versions", "ok", seen)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    match = _VERSION.search(text) if text else None
    return tuple(map(int, match.group().split("."))) if match else None


def _where(facts: Facts, path: str, strict: bool) -> Finding:
    """What a session with this model would do: the planner's own answer, as in the fallback warning."""
    from .._errors import NpuUnavailable, bare_message
    from .._planning.load import make_stand_in
    from .._planning.plan import plan
    from .._planning.request import read_request

    command = f"ort-rknn explain {shlex.quote(path)}"
    try:
        made = plan(read_request(None, None, no_cpu=False), facts)
    except NpuUnavailable as error:
        return Finding("runs", "failure", f"no session: {bare_message(error)}", "", command)
    if made.fallback is not None:
        return Finding("runs", "failure", f"on the CPU: {made.fallback.reason}", made.fallback.remedy, command)
    if made.where == "cpu":
        return Finding("runs", "failure", f"on the CPU: {'; '.join(made.story)}", "", command)
    assert made.found is not None
    if made.stand_in:
        try:
            make_stand_in(facts, made.found)
        except Exception as error:  # onnxruntime's Fail, which a session takes as the reason for the CPU
            return Finding("runs", "failure", f"on the CPU: {bare_message(error)}", "", command)
        return Finding("runs", "warning", made.stand_in, "Convert the model.", f"ort-rknn convert {shlex.quote(path)}")
    where = "in parts, NPU and CPU" if made.where == "as it is" else "whole"
    kind = "the virtual NPU" if made.found.device.virtual else "the NPU"
    return Finding("runs", "ok", f"on {kind} {made.found.device.name}, {where}")
