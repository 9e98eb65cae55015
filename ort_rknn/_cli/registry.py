"""The available commands: the modules of this package, and those of plugins."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from ..adapter.command import Command
from ..adapter.plugins import COMMANDS, provided
from . import bench, check, convert, devices, doctor, explain, info, selftest, stamp, toolkit, top, trace
from .output import printable


def commands() -> Mapping[str, Command]:
    """All commands by name: our own, then those of plugins in alphabetical order.

    ``ORT_RKNN_NO_PLUGINS=1`` skips plugins of other distributions. A plugin that fails to load, or whose command name
    is already taken, is skipped with a line on stderr.
    """
    own = (bench, check, convert, devices, doctor, explain, info, selftest, stamp, toolkit, top, trace)
    found = {command.name: command for command in (module.COMMAND for module in own)}

    def complain(plugin: str, error: Exception) -> None:
        _complain(f"plugin {plugin} does not load and is ignored: {type(error).__name__}: {error}")

    for plugin, _, command in sorted(provided(COMMANDS, "ort_rknn_commands", complain), key=lambda each: each[2].name):
        if command.name in found:
            _complain(f"plugin {plugin} provides another command {command.name!r}, which is ignored")
        else:
            found[command.name] = command
    return found


def _complain(text: str) -> None:
    print(f"ort-rknn: {printable(text, sys.stderr)}", file=sys.stderr)
