"""The hooks of ort_rknn. A package provides adapters or commands through an entry point to a module with these
functions, marked with :data:`hookimpl`.

The entry point's group is ``ort_rknn`` for adapters and ``ort_rknn_commands`` for commands, so that a session imports
no command. The built-in ones are found the same way: see ``docs/adapters.md``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pluggy

from .command import Command
from .contract import Adapter

hookspec = pluggy.HookspecMarker("ort_rknn")
hookimpl = pluggy.HookimplMarker("ort_rknn")


@hookspec
def ort_rknn_adapters() -> Iterable[Adapter]:  # type: ignore[empty-body]
    """The adapters of this plugin. Called once per process; must be cheap and must not touch the NPU."""


@hookspec
def ort_rknn_names() -> Iterable[tuple[str, Any]]:  # type: ignore[empty-body]
    """Names that ``ort_rknn`` exports from a package that is not imported before one of them is used. For the packages
    of this distribution."""


@hookspec
def ort_rknn_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """The commands of this plugin. Called when the command line starts; must be cheap."""
