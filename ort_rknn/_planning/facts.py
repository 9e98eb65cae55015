"""The facts a plan is based on: the model given, the device found, the files beside the model.

Only what the request needs is examined: a session that stays on the CPU asks no adapter and looks for no twin.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from .._errors import FAIL, INVALID_PROTOBUF, OptionError, bare_message, ort_error
from .._executor.declared import declared_by_onnx
from .._regular import open_regular
from ..adapter.contract import Absence, ModelSource, Query
from ..adapter.plugins import Found
from ..files import (
    Disagreement,
    OnnxFileError,
    OnnxModel,
    RknnFile,
    RknnFileError,
    find_twins,
    is_onnx,
    is_rknn,
    is_rknpu3,
    is_there,
    judge_twin,
    left_out,
    onnx_twin_names,
    read_onnx,
    read_rknn,
    twin_names,
    why_unreadable,
)
from ..files.compiled_places import context_model_names, find_context_models, pick_in_folder
from ..files.twins import for_other_socs
from .candidate import Candidate
from .discovery import query_for, survey
from .in_parts import judge_parts
from .request import OUR_NAMES, Request

Kind = Literal["onnx", "rknn", "ep_context", "other"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What :func:`ort_rknn._planning.plan.plan` examines, besides the request."""

    kind: Kind
    """Determined by the first bytes, not by the name. "other": left to onnxruntime (its own format, a missing file, a
    wrong type)."""
    model: Any
    """The user's model: a path as str, or bytes."""
    found: Found | None = None
    absence: Absence | None = None
    """Why there is no device."""
    machine_has_npu: bool = False
    """The device is real, not virtual."""
    onnx: OnnxModel | None = None
    """The ONNX, or the twin of a given ``.rknn``."""
    onnx_source: str | bytes | None = None
    """The path or the bytes of that ONNX."""
    onnx_problem: str | None = None
    """Why this ONNX can never run on an NPU."""
    candidates: tuple[Candidate, ...] = ()
    """Compiled models, best first. For a given ``.rknn``: that one only."""
    looked_for: tuple[str, ...] = ()
    """Names of the twins that were looked for."""
    for_others: tuple[str, ...] = ()
    """Names of the ONNX's compiled models for other SoCs, if there is none for this one."""
    not_compiled: str = ""
    """Why the ONNX was not compiled, if compiling was asked for."""
    also: tuple[str, ...] = ()
    """Other adapters that see a device."""

    @property
    def label(self) -> str:
        """The model's name, for messages."""
        return os.path.basename(self.model) if isinstance(self.model, str) else f"{self.kind} model in memory"


def kind_of(model: Any) -> Kind:
    """What a model argument is. Reads 64 bytes of a file.

    Determined by the first bytes. The name matters only if these fit neither format: then a ``.rknn`` gets our error
    message, because onnxruntime's ("Protobuf parsing failed", say for a broken download) would mislead; and so does one
    that this user may not read.
    """
    named_rknn = False
    if isinstance(model, bytes):
        head = model[:64]
    elif isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        if not isinstance(path, str) or path.lower().endswith(".ort"):
            return "other"
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return "other"  # a pipe can be read only once: leave it to onnxruntime
            named_rknn = path.lower().endswith(".rknn")
            with open_regular(path) as file:
                head = file.read(64)
        except PermissionError:
            return "rknn" if named_rknn else "other"
        except (OSError, ValueError):
            return "other"
    else:
        return "other"
    if is_rknn(head) or is_rknpu3(head) or (named_rknn and not is_onnx(head)):
        return "rknn"
    return "onnx" if head else "other"


def gather(model: Any, request: Request, why_unavailable: str | None, query: Query | None = None) -> Facts:
    """Gather the facts that the request needs.

    ``why_unavailable``: why the provider cannot exist in this process. ``query``: asked of the adapters in place of the
    request's own query. Raises InvalidProtobuf for a given ``.rknn`` that is damaged, Fail if it may not be read;
    OptionError for an adapter that is not installed, a device that does not exist, or a named file that cannot be read.
    """
    facts = _gather(model, request, why_unavailable, query)
    if request.wants_npu and request.options.rknn_model is not None and facts.kind in ("onnx", "other"):
        _check_readable(request.options.rknn_model)
    return facts


def _gather(model: Any, request: Request, why_unavailable: str | None, query: Query | None) -> Facts:
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    folder = isinstance(model, str) and os.path.isdir(model)
    if folder:
        model = os.fspath(pick_in_folder(model, None) or model)
    kind = kind_of(model)
    if kind == "other":
        return Facts(kind, model, onnx_problem=_foreign(model))
    if not request.wants_npu:
        return _look(kind, model, request, None, None)
    if why_unavailable is not None:
        return _look(kind, model, request, None, Absence("", why_unavailable))
    report = survey(query or query_for(request.options), request.options.adapter)
    if not report.found:
        return _look(kind, model, request, None, report.why_none())
    found, *others = report.found
    if folder:
        model = os.fspath(pick_in_folder(os.path.dirname(model), found.device.soc) or model)
    facts = _look(kind, model, request, found, None)
    return replace(facts, also=tuple(o.adapter.name for o in others)) if others else facts


def _check_readable(path: str) -> None:
    """Raise OptionError if a compiled model was named but cannot be opened. Its content is judged later."""
    try:
        with open_regular(path):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise OptionError(f"provider option rknn_model={path!r} cannot be read: {why}") from error


def _look(kind: Kind, model: Any, request: Request, found: Found | None, absence: Absence | None) -> Facts:
    """The facts about a model, given the device or the reason why there is none."""
    has_npu = found is not None and not found.device.virtual
    if kind == "rknn":
        _refuse("rknn_model", request, model, "is a compiled model itself")
        return _rknn_facts(model, request, found, absence, has_npu)
    if found is None and not _may_be_ep_context(model):
        _refuse("onnx_model", request, model, "is the ONNX itself")
        return Facts("onnx", model, None, absence, has_npu, onnx_source=model)
    try:
        onnx = read_onnx(model)
    except (OnnxFileError, OSError) as error:
        # onnxruntime reports what is wrong with it, or runs what this reader does not understand.
        return Facts("other", model, onnx_problem=f"it is not read as ONNX: {error}")
    if any(node.source in OUR_NAMES for node in onnx.ep_context_nodes):
        _refuse("rknn_model", request, model, "holds its compiled model, or names it")
        return _ep_context_facts(model, request, found, absence, has_npu, onnx)
    _refuse("onnx_model", request, model, "is the ONNX itself")
    candidates: list[Candidate] = []
    looked_for: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    if found is not None:
        soc = found.device.soc
        if request.options.rknn_model is not None:
            looked_for = (request.options.rknn_model,)
            candidates.append(judge(request.options.rknn_model, soc, model if isinstance(model, str) else None))
        elif isinstance(model, str):
            names = twin_names(model, soc), context_model_names(model, soc)
            looked_for = tuple(path.name for path in (*names[0], *names[1]))
            candidates = _beside(model, soc, onnx, (names[0][-1], names[1][-1]))
            if not candidates:
                folder = os.path.dirname(model)
                others = tuple(os.path.relpath(path, folder or ".") for path in for_other_socs(model, soc))
    problem = onnx_problem(onnx)
    return Facts("onnx", model, found, absence, has_npu, onnx, model, problem, tuple(candidates), looked_for, others)


def _beside(model: str, soc: str, onnx: OnnxModel, defaults: tuple[Path, Path]) -> list[Candidate]:
    """The compiled models beside an ONNX, whole or in parts; those named after the SoC first, then ``defaults``: the
    names of a whole model and of one in parts without a SoC."""
    whole, in_parts = find_twins(model, soc), find_context_models(model, soc)
    plain = [path for path in whole if path == defaults[0]]
    default = [path for path in in_parts if path == defaults[1]]
    named = [path for path in (*whole, *in_parts) if path not in plain and path not in default]
    judged = [
        judge_parts(os.fspath(path), soc, model, onnx) if path in in_parts else judge(os.fspath(path), soc, model)
        for path in (*named, *plain, *default)
    ]
    return [candidate for candidate in judged if candidate is not None]


def _refuse(key: Literal["rknn_model", "onnx_model"], request: Request, model: Any, why: str) -> None:
    """Raise OptionError for an option that would have no effect on this model."""
    value = getattr(request.options, key)
    if value is not None:
        name = os.path.basename(model) if isinstance(model, str) else "the model in memory"
        raise OptionError(f"provider option {key}={value!r} has no effect here: {name} {why}; leave it out")


def _foreign(model: Any) -> str | None:
    """Why a model of kind "other" cannot run on an NPU; None if onnxruntime cannot load it either."""
    if isinstance(model, str) and model.lower().endswith(".ort") and os.path.isfile(model):
        return "it is in onnxruntime's own format, which has no compiled twin"
    return None


def _may_be_ep_context(model: str | bytes) -> bool:
    """Whether an ONNX may contain our EPContext nodes, so that the CPU needs another model. Cheap; may return a false
    True."""
    if isinstance(model, bytes):
        return b"EPContext" in model
    try:
        if os.path.getsize(model) > 4 << 20:
            return any(True for _ in read_onnx(model).ep_context_nodes)
        with open_regular(model) as file:
            return b"EPContext" in file.read()
    except (OnnxFileError, OSError):
        return False


def onnx_problem(onnx: OnnxModel) -> str | None:
    """Why this ONNX cannot run on the NPU; None if it can."""
    try:
        declared_by_onnx((*onnx.inputs, *onnx.outputs))
    except Exception as error:
        return bare_message(error)
    if not onnx.inputs:
        return "it has no inputs"
    both = {v.name for v in onnx.inputs} & {v.name for v in onnx.outputs}
    if both:
        return f"{sorted(both)[0]!r} is an input and an output at once"
    return None


def judge(path: str, soc: str, onnx_path: str | None) -> Candidate:
    """The compiled model at ``path``, and the reasons against using it for ``soc`` and the ONNX."""
    source, name = ModelSource(path=path), os.path.basename(path)
    try:
        file = read_rknn(path)
    except (RknnFileError, OSError) as error:
        return Candidate(source, name, None, False, (why_unreadable(path, error),))
    verdict = judge_twin(file, soc=soc, runtime_version=None, onnx_path=onnx_path, rknn_path=path)
    return Candidate(source, name, file, verdict.fit, tuple(verdict.reasons), tuple(verdict.notes))


def _unreadable(path: str, error: Exception) -> OptionError:
    return OptionError(f"provider option onnx_model={path!r} cannot be read: {why_unreadable(path, error)}")


def _lacking(file: RknnFile, onnx: OnnxModel, source: str) -> str | None:
    """What the ONNX has, the compiled model lacks, and a session needs. None if nothing is missing, or if the two have
    no names in common, which is judged elsewhere."""
    have = [t.name for t in file.inputs], [t.name for t in file.outputs]
    want = {v.name for v in onnx.inputs}, {v.name for v in onnx.outputs}
    if (
        not all(have)
        or not all(set(h) <= w for h, w in zip(have, want))
        or all(set(h) == w for h, w in zip(have, want))
    ):
        return None
    try:
        left_out(source, *have)
    except Disagreement as error:
        return str(error)
    return None


def _rknn_facts(
    model: str | bytes, request: Request, found: Found | None, absence: Absence | None, has_npu: bool
) -> Facts:
    try:
        file = read_rknn(model)
    except PermissionError as error:
        raise ort_error(FAIL, why_unreadable(os.fsdecode(model), error)) from None
    except RknnFileError as error:
        raise ort_error(INVALID_PROTOBUF, str(error)) from error
    in_memory = isinstance(model, bytes)
    soc = found.device.soc if found else (file.targets[0] if file.targets else "")
    source = ModelSource(data=model) if isinstance(model, bytes) else ModelSource(path=model)
    name = "rknn model in memory" if in_memory else os.path.basename(os.fsdecode(model))
    looked_for: tuple[str, ...] = ()
    onnx_source: str | None = None
    if request.options.onnx_model is not None:
        looked_for = (request.options.onnx_model,)
        onnx_source = request.options.onnx_model
    elif isinstance(model, str):
        paths = [os.fspath(p) for p in onnx_twin_names(model, soc)]
        looked_for = tuple(os.path.basename(p) for p in paths)
        # A compiled model may be named .onnx: then it is not its own twin.
        itself = os.path.realpath(model)
        onnx_source = next((p for p in paths if is_there(p) and os.path.realpath(p) != itself), None)
    onnx, problem = None, None
    if onnx_source is not None:
        try:
            onnx = read_onnx(onnx_source)
            problem = onnx_problem(onnx) or _lacking(file, onnx, onnx_source)
        except (OnnxFileError, OSError) as error:
            if request.options.onnx_model is not None:
                raise _unreadable(request.options.onnx_model, error) from error
            problem = f"{onnx_source} cannot be read: {why_unreadable(onnx_source, error)}"
            onnx_source = None
    candidate = Candidate(source, name, file, True)
    if found is not None:
        verdict = judge_twin(file, soc=found.device.soc, runtime_version=None, onnx_path=None)
        candidate = Candidate(source, name, file, verdict.fit, tuple(verdict.reasons), tuple(verdict.notes))
    return Facts("rknn", model, found, absence, has_npu, onnx, onnx_source, problem, (candidate,), looked_for)


def _ep_context_facts(
    model: str | bytes, request: Request, found: Found | None, absence: Absence | None, has_npu: bool, onnx: OnnxModel
) -> Facts:
    """The facts about a model with EPContext nodes. The original ONNX is named by an option, by the node or by the
    metadata, or lies beside the model (``model_ctx.onnx``)."""
    looked_for: list[str] = []
    original: str | None = None
    if request.options.onnx_model is not None:
        original = request.options.onnx_model
        looked_for.append(original)
        try:
            read_onnx(original)
        except (OnnxFileError, OSError) as error:
            raise _unreadable(original, error) from error
    elif isinstance(model, str):
        folder = os.path.dirname(os.path.abspath(model))
        names = [n.onnx_model_filename for n in onnx.ep_context_nodes if n.onnx_model_filename]
        names += [v for k, v in onnx.metadata.items() if k == "onnx_model_filename"]
        stem = os.path.splitext(os.path.basename(model))[0]
        names += [stem[: -len(end)] + ".onnx" for end in ("_ctx", "-ctx", ".ctx") if stem.endswith(end)]
        for name in dict.fromkeys(names):
            looked_for.append(name)
            # Only beside the model: a file name stored in a model is untrusted input.
            path = os.path.join(folder, os.path.basename(name))
            if os.path.basename(name) == name and os.path.isfile(path) and not os.path.samefile(path, model):
                original = original or path
    return Facts("ep_context", model, found, absence, has_npu, onnx, original, None, (), tuple(looked_for))
