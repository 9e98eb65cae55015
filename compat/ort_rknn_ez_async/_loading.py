"""Loads the model of a session: on the NPU, or on the CPU with a warning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ort_rknn._errors import bare_message, warn_of_fallback
from ort_rknn._executor.declared import declared_by_file
from ort_rknn._executor.opening import CompiledModel, OnnxBehind, open_executor
from ort_rknn._planning.discovery import survey
from ort_rknn._planning.facts import Facts, gather
from ort_rknn._planning.plan import Fallback, plan
from ort_rknn._planning.request import Request, read_request
from ort_rknn.adapter import Model, Query
from ort_rknn.adapter.device_tree import SOC_VARIABLE, soc_in_environment
from ort_rknn.files import RknnFile, RknnFileError, is_rknpu3, read_rknn

from ._cpu import CpuCalls
from ._device_values import DeviceValues
from ._npu import NpuCalls
from .options import CPU, RKNPU2, RKNPU3, SessionArguments

_TRUE = ("1", "true", "on", "yes")

Calls = NpuCalls | CpuCalls


@dataclass(frozen=True, slots=True)
class LoadedSession:
    """A loaded model."""

    calls: Calls
    provider: str
    """RKNPU2, or CPU if the ONNX runs in its place."""
    custom_string: str


def load(
    model: Any, arguments: SessionArguments, sess_options: Any, weights_of: Model | None, *, may_fall_back: bool
) -> LoadedSession:
    """Load the model. Raises RuntimeError, naming the model and what was wrong, and then leaves nothing open."""
    content = _content(model)
    head = _head(content)
    _check_family(head, arguments)
    try:
        return _load(content, arguments, sess_options, weights_of, may_fall_back)
    except RuntimeError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base, and are not RuntimeErrors
        raise RuntimeError(bare_message(error)) from error


def _load(
    content: str | bytes, arguments: SessionArguments, sess_options: Any, weights_of: Model | None, may_fall_back: bool
) -> LoadedSession:
    request = read_request(None, arguments.options, no_cpu=not may_fall_back)
    if arguments.provider == CPU:
        request = replace(request, wants_npu=False, strict=False)
    file = _file(content)
    facts = _with_named_library(gather(content, request, None), file, request)
    made = plan(request, facts)
    options = request.options
    if made.where == "npu" and made.candidate is not None:
        candidate, found = made.candidate, made.found
        assert found is not None
        inputs, outputs = (declared_by_file(candidate.file) if candidate.file else None) or (None, None)
        onnx = OnnxBehind(facts.onnx_source if made.use_onnx else None)
        executor = open_executor(
            found,
            CompiledModel(candidate.source, candidate.name, candidate.file, inputs, outputs, onnx=onnx),
            options,
            share_with=weights_of,
        )
        try:
            perf = os.environ.get("ZTU_EZRKNN_ASYNC_PRINT_PERF", "").strip().lower() in _TRUE
            values = DeviceValues(executor.model, found, arguments.zero_copy_layout)
            calls = NpuCalls(executor, candidate.file, options, values, print_perf=perf)
        except BaseException:
            executor.close()
            raise
        custom = (candidate.file.custom_string or "") if candidate.file else ""
        return LoadedSession(calls, RKNPU2, custom)
    reason = made.fallback
    if made.where == "npu":
        reason = Fallback(f"no compiled twin of {facts.label}", "Convert it and put the .rknn beside it", loud=True)
    if weights_of is not None:
        raise RuntimeError(f"use_weight_from: this session would run on the CPU, which shares no weights: {reason}")
    if reason is not None:
        warn_of_fallback(f"this session runs on the CPU: {reason}", "ort_rknn_ez_async")
    source = made.parent_model if made.where == "cpu" else facts.onnx_source
    assert isinstance(source, (str, bytes))
    custom = (file.custom_string or "") if file else ""
    return LoadedSession(CpuCalls(source, sess_options, file, options), CPU, custom)


def _content(model: Any) -> str | bytes:
    if isinstance(model, (bytearray, memoryview)):
        model = bytes(model)
    if isinstance(model, bytes):
        if not model:
            raise RuntimeError("model data must not be empty")
        return model
    if hasattr(model, "getbuffer"):  # io.BytesIO
        return _content(bytes(model.getbuffer()))
    try:
        path = os.fspath(model)
    except TypeError:
        raise RuntimeError(
            f"path_or_bytes must be a path-like object or string, or the model's bytes; got {type(model).__name__}"
        ) from None
    return path if isinstance(path, str) else os.fsdecode(path)


def _head(content: str | bytes) -> bytes:
    if isinstance(content, bytes):
        head = content[:16]
    else:
        if os.path.isdir(content):
            raise RuntimeError(f"RKNN model is too small: {content} (a folder)")
        try:
            with open(content, "rb") as file:
                head = file.read(16)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise RuntimeError(f"Unable to open RKNN model: {content} ({why})") from error
    if len(head) < 4:
        raise RuntimeError("RKNN model is too small to contain a valid header")
    return head


def _check_family(head: bytes, arguments: SessionArguments) -> None:
    if is_rknpu3(head):
        if arguments.provider == RKNPU2:
            raise RuntimeError("Provider/model mismatch: requested RKNPU2 but the model header is RKNPU3")
        raise RuntimeError(
            "the model is for RKNPU3 (RK182x), which is not supported here: sessions drive RKNPU2 (RK35xx)"
        )
    if arguments.provider == RKNPU3:
        raise RuntimeError("Provider/model mismatch: requested RKNPU3 but the model header is RKNPU2")
    known = head.startswith((b"RKNN", b"CYPTRKNN")) or head[0] in _ONNX_FIRST_BYTES
    if not known:
        magic = " ".join(f"{byte:x}" for byte in head[:4])
        raise RuntimeError(f"Unknown RKNN model magic: {magic} (neither an .rknn model nor an ONNX)")


#: The first byte of an ONNX file: the tag of a field of ModelProto, usually ir_version.
_ONNX_FIRST_BYTES = (0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72)


def _file(content: str | bytes) -> RknnFile | None:
    try:
        return read_rknn(content)
    except RknnFileError as error:
        head = _head(content)
        if head.startswith((b"RKNN", b"CYPTRKNN")):
            raise RuntimeError(str(error)) from error
        return None


def _with_named_library(facts: Facts, file: RknnFile | None, request: Request) -> Facts:
    """If the user names the runtime library and the SoC is unknown, use the one that the model was compiled for."""
    options = request.options
    if (
        facts.found is not None
        or facts.absence is None
        or options.runtime_library is None
        or options.device is not None
        or os.environ.get("ORT_RKNN_DEVICE")
        or soc_in_environment(os.environ)
        or file is None
        or not file.targets
    ):
        return facts
    environ: Mapping[str, str] = {**os.environ, SOC_VARIABLE: file.targets[0]}
    report = survey(Query(runtime_library=options.runtime_library, environ=environ), options.adapter)
    return replace(facts, found=report.found[0], machine_has_npu=True, absence=None) if report.found else facts
