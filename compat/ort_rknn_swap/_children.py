"""Processes that multiprocessing starts afresh ("spawn", "forkserver"): they begin with the swap of their parent.

A forked child has it anyway. What is sent to a fresh one before it imports the program's main module gets one more
entry, and to read that entry is to install the swap.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from multiprocessing import spawn
from typing import Any

from ort_rknn._planning.request import Policy

_KEY = "ort_rknn_swap"  # multiprocessing leaves alone what it does not know

#: The parent's sys.path is set first: multiprocessing itself does so only when all was read.
_BEGIN = "import sys; sys.path[:] = path; import ort_rknn_swap; ort_rknn_swap.install(policy, options=options)"

Settings = Callable[[], tuple[Policy | None, Mapping[str, object]]]


class _Installs:
    """Being unpickled, installs the swap; what comes out is None."""

    def __init__(self, policy: Policy | None, options: Mapping[str, object]) -> None:
        self._names = {"path": list(sys.path), "policy": policy, "options": dict(options)}

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (_BEGIN, self._names)


class Children:
    """In place from the start; :meth:`undo` takes it back."""

    def __init__(self, settings: Settings) -> None:
        theirs = spawn.get_preparation_data

        def get_preparation_data(name: str) -> dict[str, Any]:
            data = theirs(name)
            data[_KEY] = _Installs(*settings())
            return data

        self._theirs, self._mine = theirs, get_preparation_data
        spawn.get_preparation_data = get_preparation_data

    def undo(self) -> None:
        if spawn.get_preparation_data is self._mine:
            spawn.get_preparation_data = self._theirs
