"""Errors in onnxruntime's own classes.

    Exception
    ├── onnxruntime InvalidArgument ── OptionError (also a ValueError): a provider option is unknown or has a bad value
    ├── onnxruntime Fail            ── NpuUnavailable: the NPU is required and cannot be used
    │                               └─ QueueFull: a call found no place in the queue in time
    ├── onnxruntime Fail, NoSuchFile, InvalidProtobuf, RuntimeException ...: as onnxruntime raises them
    ├── ort_rknn.adapter.AdapterError ── RknnError, SettingError: what adapters raise; the session turns a SettingError
    │                                  into OptionError, the others into Fail or RuntimeException
    └── ValueError ── files.RknnFileError, files.OnnxFileError: a model file that cannot be read

onnxruntime's classes are direct subclasses of Exception; their messages begin with ``[ONNXRuntimeError] : <code> :
<NAME> :``, and so do ours.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable

from onnxruntime.capi import onnxruntime_pybind11_state as _state

FAIL = 1
INVALID_ARGUMENT = 2
NO_SUCHFILE = 3
RUNTIME_EXCEPTION = 6
INVALID_PROTOBUF = 7
NOT_IMPLEMENTED = 9
EP_FAIL = 11

#: Status code -> (name in the message, exception class). EP_FAIL is omitted on purpose: for it,
#: ``InferenceSession.run`` rebuilds the session on the CPU and the cause is lost.
_KINDS: dict[int, tuple[str, type[Exception]]] = {
    FAIL: ("FAIL", _state.Fail),
    INVALID_ARGUMENT: ("INVALID_ARGUMENT", _state.InvalidArgument),
    NO_SUCHFILE: ("NO_SUCHFILE", _state.NoSuchFile),
    RUNTIME_EXCEPTION: ("RUNTIME_EXCEPTION", _state.RuntimeException),
    INVALID_PROTOBUF: ("INVALID_PROTOBUF", _state.InvalidProtobuf),
    NOT_IMPLEMENTED: ("NOT_IMPLEMENTED", _state.NotImplemented),
}


_PREFIX = "[ONNXRuntimeError] : "


def _text(code: int, message: str) -> str:
    if message.startswith(_PREFIX):  # unpickling calls the constructor with the whole message
        return message
    return f"{_PREFIX}{code} : {_KINDS[code][0]} : {message}"


def ort_error(code: int, message: str) -> Exception:
    """The onnxruntime exception for a status code, with onnxruntime's prefix before ``message``."""
    return _KINDS[code][1](_text(code, message))


class OptionError(_state.InvalidArgument, ValueError):  # type: ignore[misc]
    """A provider option is unknown, has an invalid value, or asks for something that the device does not have."""

    def __init__(self, message: str) -> None:
        super().__init__(_text(INVALID_ARGUMENT, message))


class NpuUnavailable(_state.Fail):  # type: ignore[misc]
    """The NPU is required (strict mode, or nothing can replace it) and cannot be used."""

    def __init__(self, message: str) -> None:
        super().__init__(_text(FAIL, message))


class QueueFull(_state.Fail):  # type: ignore[misc]
    """A call found no place in the queue within ``submit_timeout_ms``: the session is busy. The call may be retried."""

    def __init__(self, message: str) -> None:
        super().__init__(_text(FAIL, message))


class FallbackWarning(UserWarning):
    """The NPU comes first, but the session runs on the CPU. The message names the first failed check and its remedy."""


def status_code(error: BaseException) -> int:
    """The onnxruntime status code under which an exception raised inside a kernel reaches the caller.

    onnxruntime's own classes keep their code, FileNotFoundError becomes NO_SUCHFILE, ValueError and TypeError become
    INVALID_ARGUMENT, everything else RUNTIME_EXCEPTION. Never EP_FAIL.
    """
    for code, (_, kind) in _KINDS.items():
        if isinstance(error, kind):
            return code
    if isinstance(error, FileNotFoundError):
        return NO_SUCHFILE
    if isinstance(error, (ValueError, TypeError)):
        return INVALID_ARGUMENT
    return RUNTIME_EXCEPTION


def bare_message(error: BaseException) -> str:
    """The exception's message without onnxruntime's prefix (which onnxruntime adds again)."""
    text = str(error) or type(error).__name__
    if text.startswith(_PREFIX):
        return text.split(" : ", 3)[-1]
    return text


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """ "; did you mean 'schedule'?" if one of ``known`` is close to ``word``, ignoring case; else ""."""
    import difflib

    if not isinstance(word, str):
        return ""
    names = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.strip().casefold(), names, 1, 0.7)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def warn_of_fallback(text: str, *packages: str) -> None:
    """Issue one FallbackWarning, at the line of the first caller outside ort_rknn, its adapters and faces
    (``ort_rknn_...``) and ``packages``. Constructors of subclasses count as the user's code."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None:
        root = str(frame.f_globals.get("__name__")).partition(".")[0]
        if root != "ort_rknn" and not root.startswith("ort_rknn_") and root not in packages:
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(text, FallbackWarning, stacklevel=level)
