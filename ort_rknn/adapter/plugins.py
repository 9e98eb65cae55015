"""Finds and loads the installed plugins, including the adapters and the devices they serve."""

from __future__ import annotations

import functools
import importlib
import logging
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._environment import switched_on
from .contract import Adapter, Device

if TYPE_CHECKING:
    import pluggy

log = logging.getLogger("ort_rknn")

#: The groups of entry points.
ADAPTERS, COMMANDS = "ort_rknn", "ort_rknn_commands"
#: The plugins of this distribution are built in: they are loaded even with ``ORT_RKNN_NO_PLUGINS=1``.
_DISTRIBUTION = "ort-rknn"


@dataclass(frozen=True, slots=True)
class Found:
    """A device and the adapter that serves it."""

    device: Device
    adapter: Adapter


def adapters() -> Mapping[str, Adapter]:
    """The installed adapters by name, highest priority first.

    Found through the entry points of the group ``ort_rknn``; with ``ORT_RKNN_NO_PLUGINS=1`` only the built-in ones. A
    plugin that fails to load is logged as an error and skipped. Of two adapters with the same name, the built-in one
    (else the first) is kept and the other logged.
    """
    return {adapter.name: adapter for adapter, _ in installed_adapters()}


def is_built_in(name: str) -> bool:
    """Whether the adapter of this name belongs to this distribution."""
    return any(built_in and adapter.name == name for adapter, built_in in installed_adapters())


@functools.cache
def installed_adapters() -> tuple[tuple[Adapter, bool], ...]:
    """As :func:`adapters`, each with whether it is built in. Cached."""

    def complain(plugin: str, error: Exception) -> None:
        log.error("plugin %s of ort_rknn does not load and is ignored: %s: %s", plugin, type(error).__name__, error)

    found: dict[str, tuple[Adapter, bool]] = {}
    for plugin, built_in, adapter in provided(ADAPTERS, "ort_rknn_adapters", complain):
        if adapter.name in found:
            log.error("plugin %s provides another adapter named %r, which is ignored", plugin, adapter.name)
        else:
            found[adapter.name] = adapter, built_in
    return tuple(sorted(found.values(), key=lambda pair: -pair[0].priority))


def provided(
    group: str, hook: str, complain: Callable[[str, Exception], None], *, built_in_only: bool = False
) -> Iterator[tuple[str, bool, Any]]:
    """What the installed plugins of a group of entry points provide: (plugin, whether it is built in, object).

    The built-in plugins come first. A plugin that does not load is reported to ``complain`` and skipped.
    """
    import pluggy

    from . import hookspecs

    manager = pluggy.PluginManager("ort_rknn")
    manager.add_hookspecs(hookspecs)
    for value, built_in in plugins(group).items():
        if built_in_only and not built_in:
            continue
        try:
            things = load_plugin(manager, value, hook)
        except Exception as error:
            complain(value, error)
            continue
        yield from ((value, built_in, thing) for thing in things)


def provided_name(name: str) -> Any:
    """The object that the built-in plugins export as a name of ``ort_rknn``. Raises AttributeError if there is none."""
    names = provided(COMMANDS, "ort_rknn_names", lambda plugin, error: None, built_in_only=True)
    for _, _, (known, value) in names:
        if known == name:
            return value
    raise AttributeError(f"no package of ort-rknn provides {name!r}")


def plugins(group: str) -> dict[str, bool]:
    """The values of the group's entry points, built-in ones first: value -> whether it is built in. With
    ``ORT_RKNN_NO_PLUGINS=1``, only those of this distribution."""
    import importlib.metadata

    theirs: list[str] = []
    ours: dict[str, bool] = {}
    for point in importlib.metadata.entry_points(group=group):
        if point.dist is not None and point.dist.name == _DISTRIBUTION:
            ours[point.value] = True
        else:
            theirs.append(point.value)
    if switched_on("ORT_RKNN_NO_PLUGINS"):
        return ours
    return ours | {value: False for value in theirs if value not in ours}


def load_plugin(manager: pluggy.PluginManager, value: str, hook: str) -> list[Any]:
    """What the function ``hook`` of a plugin returns. ``value`` is its entry point's: "package.module" or
    "package.module:object".

    Raises whatever its import raises, AttributeError if there is no such object or it lacks the hook, and pluggy's
    PluginValidationError for an unknown (for example misspelled) hook. The plugin is not registered then.
    """
    module, _, attribute = value.partition(":")
    plugin: Any = importlib.import_module(module.strip())
    if attribute:
        plugin = operator.attrgetter(attribute.strip())(plugin)
    manager.register(plugin, value)
    try:
        manager.check_pending()
        if not any(caller.name == hook for caller in manager.get_hookcallers(plugin) or ()):
            raise AttributeError(f"it has no function {hook} that is marked with hookimpl")
        others = [other for other in manager.get_plugins() if other is not plugin]
        groups: list[Any] = manager.subset_hook_caller(hook, others)()
        return [each for group in groups for each in group]
    except BaseException:
        manager.unregister(plugin)  # else every later one would be blamed for it
        raise
