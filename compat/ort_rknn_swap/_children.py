"""Fresh processes started by multiprocessing ("spawn", "forkserver"): they start with the swap of their parent.

A forked child has it anyway. The data sent to a fresh process before it imports the program's main module gets an
additional entry; unpickling that entry installs the swap.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from multiprocessing import spawn
from typing import Any

from ort_rknn._planning.request import Policy

_KEY = "ort_rknn_swap"  # multiprocessing ignores unknown keys

#: The parent's sys.path is set first: multiprocessing itself does so only after reading everything.
_BEGIN = "import sys; sys.path[:] = path; import ort_rknn_swap; ort_rknn_swap.install(policy, options=options)"

Settings = Callable[[], tuple[Policy | None, Mapping[str, object]]]


class _Installs:
    """Installs the swap when unpickled; the result is None."""

    def __init__(self, policy: Policy | None, options: Mapping[str, object]) -> None:
        self._names = {"path": list(sys.path), "policy": policy, "options": dict(options)}

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (_BEGIN, self._names)


class Children:
    """Active from creation; :meth:`undo` removes it."""

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
