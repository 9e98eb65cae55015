"""Hints on error codes: the advice in an RknnError."""

from __future__ import annotations

import functools
import os
from typing import BinaryIO, Final

from ort_rknn.adapter import SOC_CORES, Device, ModelSource, why_impossible
from ort_rknn.adapter.device_tree import SOC_VARIABLE
from ort_rknn.files import NotRknnError, read_rknn

_MAX_LIBRARY: Final = 256 << 20
_MARK: Final = b"librknnrt version: "
_AROUND: Final = len(_MARK) + 40
_PART: Final = 1 << 20


def init_hint(code: int, device: Device, library: str, source: ModelSource) -> str:
    """For ``rknn_init`` and ``rknn_dup_context``: which versions or targets do not match."""
    model = describe_model(source)
    runtime = describe_runtime(library)
    if code == -3:
        node = device.details.get("node", "/dev/dri/renderD129")
        note = device.details.get("note")
        return f"The NPU did not open: check that {node} exists and that this user may read and write it" + (
            f"; {note}." if note else "."
        )
    if code == -4:
        return "Not enough memory for the NPU: use fewer contexts (threads_per_core), share weights, close sessions."
    if code in (-6, -11, -12):
        return (
            f"{model}; {runtime}. Convert the model with the toolkit of the runtime's version, or install that version "
            "of librknnrt."
        )
    if code == -10:
        return f"{runtime} and the kernel's rknpu driver do not fit: update the board's image, or use an older runtime."
    if code == -13:
        if f"for {device.soc}" in model:
            origin = device.details.get("soc source", "the board")
            return f"{model}; this device is {device.soc} according to {origin}, but not to the runtime: correct that."
        return f"{model}; this device is {device.soc}. Convert the model for {device.soc}."
    if code in (-14, -15, -16):
        return "The model is encrypted, which this adapter does not support: convert it without a key."
    if code == -2:
        return "The NPU did not answer: it may hang; dmesg may say why."
    return f"{model}; {runtime}. RKNN_LOG_LEVEL=4 in the environment makes the runtime say more."


def mask_hint(mask: int, code: int, device: Device) -> str:
    """For ``rknn_set_core_mask``."""
    cores = SOC_CORES.get(device.soc, device.cores)
    if why := why_impossible(mask, device.soc, cores):
        return why
    if code in (-5, -13):
        has = f"{device.soc} has {cores} core{'s' * (cores > 1)}"
        return (
            f"{has}, so core mask {mask:#x} should be possible: the SoC may be detected wrongly ({SOC_VARIABLE}), or "
            "the board's runtime and driver are too old for it."
        )
    return run_hint("rknn_set_core_mask", code, 0)


def run_hint(call: str, code: int, timeout_ms: int) -> str:
    """For the calls of a run."""
    if code == -2:
        bound = f"within run_timeout_ms={timeout_ms}" if timeout_ms else "in the driver's own time"
        return f"The NPU did not finish {bound}: it is busy, hangs, or the bound is too small."
    if code == -3:
        return "The NPU is gone: dmesg may say why; load the model again."
    if code == -4:
        return "Not enough memory for the NPU: use fewer contexts, or close sessions."
    if code == -5 and call == "rknn_inputs_set":
        return "An input buffer is smaller than the model's input, or the runtime cannot convert its dtype."
    if code == -5 and call == "rknn_outputs_get":
        return "An output buffer is smaller than the model's output."
    if code == -7:
        return "The context is not valid any more: load the model again."
    if call == "rknn_set_input_shapes":
        return "The runtime does not accept this set of input shapes: it must be one that the model was compiled for."
    return "RKNN_LOG_LEVEL=4 in the environment makes the runtime say more."


def describe_model(source: ModelSource) -> str:
    """Who made the model and for what, as far as the file says; for error messages, so it never raises."""
    unknown = "It is not known which toolkit made the model"
    if source.path is None and not source.data:
        return unknown
    try:
        found = read_rknn(source.path if source.path is not None else source.data or b"")
    except NotRknnError:
        return "The file is not an RKNN model (no RKNN magic)"
    except (OSError, ValueError):
        return unknown
    if found.toolkit_version is None:
        return unknown
    text = f"The model was made by toolkit {found.toolkit_version[:40]}"
    if found.targets:
        text += f" for {', '.join(target[:16] for target in found.targets[:8])}"
    return text


def describe_runtime(path: str) -> str:
    """The version of a runtime library, from the text inside it, because no context exists yet to query. Never
    raises."""
    version = version_inside(path)
    return f"the runtime {path} is {version}" if version else f"the runtime is {path}"


def knows_renice_flag(path: str) -> bool:
    """Whether a runtime knows the flag that keeps it from changing the process's priority: those of 2.3.2 and later do.
    What older ones do with it is unknown, so it is not passed to them. Never raises."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return _is_recent(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8)
def _is_recent(path: str, *_: int) -> bool:
    numbers = version_inside(path).split(".")
    return all(part.isdigit() for part in numbers) and tuple(map(int, numbers)) >= (2, 3, 2)


def version_inside(path: str) -> str:
    """The text after the first mark, up to a space; "" if there is none, or the file cannot be read."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _MAX_LIBRARY:
                return ""
            words = _after_mark(file).split(b"\0")[0].split()
    except OSError:
        return ""
    return words[0].decode() if words and words[0].isascii() else ""


def _after_mark(file: BinaryIO) -> bytes:
    """The 40 bytes after the first mark; b"" if there is none. Reads a megabyte at a time."""
    content = b""
    while part := file.read(_PART):
        content = content[-_AROUND:] + part
        start = content.find(_MARK)
        if start >= 0:
            return (content[start:] + file.read(_AROUND))[len(_MARK) : _AROUND]
    return b""
