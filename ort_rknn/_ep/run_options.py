"""What a call's RunOptions say while it is under way.

onnxruntime shows them to a provider when a call starts. The C API has no getter for ``terminate``, so its place is
looked for: the one byte that setting it changes.
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import CFUNCTYPE, c_bool, c_void_p
from typing import Any

from .._executor import termination
from .abi import Api
from .callbacks import guarded, keep_for_ever

log = logging.getLogger("ort_rknn")

#: The structure is longer than this in every release from 1.23 to 1.32, and the flag was byte 40 in all of them.
_LOOKED_AT = 96
_offset: int | None = None


def watch(api: Api, table: ctypes.Structure) -> None:
    """Let the calls of the session whose OrtEp this is be terminated while they run."""
    global _offset
    if _offset is None:
        _offset = _find(api)
    if _offset < 0:
        return
    for name, callback in _callbacks.items():
        setattr(table, name, ctypes.cast(callback, c_void_p).value)


def _find(api: Api) -> int:
    """The place of the flag; -1 where it is not clear, which is logged."""
    options = api.pointer("CreateRunOptions")
    assert options
    try:
        seen = []
        for change in ("RunOptionsSetTerminate", "RunOptionsUnsetTerminate"):
            before = ctypes.string_at(options, _LOOKED_AT)
            api.check(getattr(api, change)(options))
            after = ctypes.string_at(options, _LOOKED_AT)
            seen.append([(k, a, b) for k, (a, b) in enumerate(zip(before, after)) if a != b])
    finally:
        api.ReleaseRunOptions(options)
    place = seen[0][0][0] if seen[0] else -1
    if seen != [[(place, 0, 1)], [(place, 1, 0)]]:
        log.warning("RunOptions.terminate cannot be seen during a run with onnxruntime %s", api.version)
        return -1
    return place


def _start(this: int, options: int) -> None:
    if options and _offset is not None:
        termination.begin(c_bool.from_address(options + _offset))


def _end(this: int, options: int, sync: bool) -> None:
    termination.end()


_callbacks: dict[str, Any] = {
    "OnRunStart": CFUNCTYPE(c_void_p, c_void_p, c_void_p)(guarded(_start)),
    "OnRunEnd": CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_bool)(guarded(_end)),
}
keep_for_ever(_callbacks)
