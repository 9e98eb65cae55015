"""Which commands there are: the files beside this one, and those that plugins bring."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping

import pluggy

from .._options import switched_on
from ..adapter import hookspecs
from ..adapter.command import Command
from ..adapter.plugins import load_plugin
from . import convert, devices, explain, info, stamp, toolkit
from .output import printable

#: The group of entry points for commands.
GROUP = "ort_rknn_commands"
_DISTRIBUTION = "ort-rknn"


def commands() -> Mapping[str, Command]:
    """All commands by name: our own, then those of plugins in alphabetical order.

    Plugins of other distributions are left alone with ``ORT_RKNN_NO_PLUGINS=1``. One that fails to load, or brings a
    name that is taken, is left out with a line on stderr.
    """
    own = (convert, devices, explain, info, stamp, toolkit)
    found = {command.name: command for command in (module.COMMAND for module in own)}
    for plugin, brought in sorted(_from_plugins(), key=lambda pair: pair[1].name):
        if brought.name in found:
            _complain(f"plugin {plugin} brings another command {brought.name!r}, which is left out")
        else:
            found[brought.name] = brought
    return found


def _from_plugins() -> Iterator[tuple[str, Command]]:
    manager = pluggy.PluginManager("ort_rknn")
    manager.add_hookspecs(hookspecs)
    for point in importlib.metadata.entry_points(group=GROUP):
        ours = point.dist is not None and point.dist.name == _DISTRIBUTION
        if not ours and switched_on("ORT_RKNN_NO_PLUGINS"):
            continue
        try:
            brought = load_plugin(manager, point.value, "ort_rknn_commands")
        except Exception as error:
            _complain(f"plugin {point.value} does not load and is left out: {type(error).__name__}: {error}")
            continue
        yield from ((point.value, each) for each in brought)


def _complain(text: str) -> None:
    print(f"ort-rknn: {printable(text, sys.stderr)}", file=sys.stderr)
