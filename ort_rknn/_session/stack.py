"""Room on the stack for callbacks.

A callback at the end of the stack returns a status that was made before, and what ctypes returns to C where there is
none left is not defined. Nor is it for a callback that has no room for its first frame, on Pythons that count calls of
C functions towards the recursion limit. So both are found in Python code of onnxruntime's own methods, before they go
into C.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from .._concurrency.interrupts import C_CALLS_COUNT, need_stack
from .._ep import callbacks


def check_the_stack(session: Any) -> None:
    """See that a session on the NPU has room for its callbacks. Its methods stay onnxruntime's."""
    session._inputs_meta = Inputs(session._inputs_meta)
    session.__dict__["run_with_iobinding"] = RunWithIOBinding(session)


def _need_room(frames: int) -> None:
    """Raise RecursionError if callbacks would have no room, or no spare status for want of room."""
    if callbacks.short:
        callbacks.make_spares()
    if C_CALLS_COUNT:
        need_stack(frames)


class Inputs(list[Any]):
    """``run``, ``run_with_ort_values`` and ``run_async`` read a session's inputs before they go into C."""

    def __iter__(self) -> Iterator[Any]:
        _need_room(4)
        return super().__iter__()


class RunWithIOBinding:
    """``run_with_iobinding`` reads nothing that could be asked: this stands before the class's own."""

    __slots__ = ("_session",)

    def __init__(self, session: Any) -> None:
        self._session = weakref.ref(session)  # whose attribute this is

    def __call__(self, iobinding: Any, run_options: Any = None) -> None:
        _need_room(6)
        session = self._session()
        assert session is not None
        type(session).run_with_iobinding(session, iobinding, run_options)
