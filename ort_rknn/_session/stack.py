"""Stack space for callbacks.

A callback near the end of the stack returns a status that was allocated in advance. If none is left, what ctypes
returns to C is undefined. It is also undefined if there is no room for the callback's first frame, on Pythons that
count calls of C functions toward the recursion limit. So both are checked from the Python code of onnxruntime's own
methods, before they call into C.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from .._ep import callbacks
from .._interrupts import C_CALLS_COUNT, need_stack
from .fed_bindings import FedBinding


def check_the_stack(session: Any) -> None:
    """Make sure that a session on the NPU has room for its callbacks. Its methods stay onnxruntime's."""
    session._inputs_meta = Inputs(session._inputs_meta)
    session.__dict__["run_with_iobinding"] = RunWithIOBinding(session)


def _need_room(frames: int) -> None:
    """Raise RecursionError if callbacks would lack room, or a spare status."""
    if callbacks.short:
        callbacks.make_spares()
    if C_CALLS_COUNT:
        need_stack(frames)


class Inputs(list[Any]):
    """The list of a session's inputs, which ``run``, ``run_with_ort_values`` and ``run_async`` read before they call
    into C."""

    def __iter__(self) -> Iterator[Any]:
        _need_room(4)
        return super().__iter__()


class RunWithIOBinding:
    """``run_with_iobinding`` reads no such list, so this instance attribute overrides the method of the class."""

    __slots__ = ("_native", "_session")

    def __init__(self, session: Any) -> None:
        self._session = weakref.ref(session)  # the session that has this attribute
        self._native = session._sess  # like a bound method, it works if the program holds nothing else of the session

    def __call__(self, iobinding: Any, run_options: Any = None) -> None:
        _need_room(6)
        session = self._session()
        native = self._native if session is None else session._sess
        if isinstance(iobinding, FedBinding) and iobinding.runs_on_cpu(native):
            iobinding.run(run_options)
        elif session is None:
            native.run_with_iobinding(iobinding._iobinding, run_options)
        else:
            type(session).run_with_iobinding(session, iobinding, run_options)
