"""The hooks of ort_rknn. A package brings adapters or commands by an entry point that names a module with these
functions, marked with :data:`hookimpl`.

The entry point's group is ``ort_rknn`` for adapters and ``ort_rknn_commands`` for commands, so that a session imports
no command. The built-in ones come through the same door: see ``docs/adapters.md``.
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
    """The adapters that this plugin brings. Called once per process; must be cheap and must not touch the NPU."""


@hookspec
def ort_rknn_names() -> Iterable[tuple[str, Any]]:  # type: ignore[empty-body]
    """Names that ``ort_rknn`` itself offers, of a package that is not imported before one of them is used. For the
    packages of this distribution."""


@hookspec
def ort_rknn_commands() -> Iterable[Command]:  # type: ignore[empty-body]
    """The commands that this plugin brings. Called when the command line starts; must be cheap."""
