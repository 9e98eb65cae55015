"""Loading one plugin: the object that an entry point names, and what its hook gives."""

from __future__ import annotations

import importlib
import operator
from typing import Any

import pluggy


def load_plugin(manager: pluggy.PluginManager, value: str, hook: str) -> list[Any]:
    """What the function ``hook`` of a plugin brings. ``value`` is its entry point's: "package.module" or
    "package.module:object".

    Raises whatever its import raises, AttributeError where there is no such object or it lacks the hook, and pluggy's
    PluginValidationError for a hook that nobody knows, a misspelt one. It is not registered then.
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
