"""Which NPUs there are: asks the adapters, which are found through pluggy."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from .._errors import OptionError
from .._options import Options
from ..adapter.contract import Absence, Adapter, Device, Query

log = logging.getLogger("ort_rknn")

#: Distributions' modules that are loaded even with ``ORT_RKNN_NO_PLUGINS=1``.
BUILT_IN = ("ort_rknn_librknnrt", "ort_rknn_lite2", "ort_rknn_virtual")


@dataclass(frozen=True, slots=True)
class Found:
    """A device and the adapter that serves it."""

    device: Device
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """All devices, best first, and the reasons of the adapters that see none."""

    found: tuple[Found, ...]
    absences: tuple[Absence, ...]

    def why_none(self) -> Absence:
        """The first check that failed, of the adapter with the highest priority."""
        if self.absences:
            return self.absences[0]
        return Absence("", "no adapter is installed", "reinstall ort-rknn")


@functools.cache
def adapters() -> Mapping[str, Adapter]:
    """The installed adapters by name, highest priority first.

    Found through the entry points of the group ``ort_rknn``; with ``ORT_RKNN_NO_PLUGINS=1`` only the built-in ones. A
    plugin that fails to load is logged as an error and left out; two adapters of one name: the built-in one, else the
    first, is kept and the other logged.
    """
    import importlib
    import importlib.metadata

    import pluggy

    from ..adapter import hookspecs

    manager = pluggy.PluginManager("ort_rknn")
    manager.add_hookspecs(hookspecs)
    names = list(BUILT_IN)
    if os.environ.get("ORT_RKNN_NO_PLUGINS") != "1":
        points = importlib.metadata.entry_points(group="ort_rknn")
        names += [p.value for p in points if p.value not in names]
    found: list[Adapter] = []
    for name in names:
        try:
            plugin = importlib.import_module(name.partition(":")[0])
            manager.register(plugin, name)
            brought = list(
                manager.subset_hook_caller("ort_rknn_adapters", [p for p in manager.get_plugins() if p is not plugin])()
            )
        except Exception as error:
            log.error("plugin %s of ort_rknn does not load and is left out: %s: %s", name, type(error).__name__, error)
            continue
        for adapter in (a for group in brought for a in group):
            if any(a.name == adapter.name for a in found):
                log.error("plugin %s brings another adapter named %r; it is left out", name, adapter.name)
            else:
                found.append(adapter)
    found.sort(key=lambda a: -a.priority)
    return {a.name: a for a in found}


def survey(query: Query, adapter: str | None = None) -> DeviceReport:
    """Ask the adapters, or the one named (None and "auto": all). Raises OptionError for one that is not installed."""
    known = adapters()
    if adapter == "auto":
        adapter = None
    if adapter is not None and adapter not in known:
        raise OptionError(f"provider option adapter={adapter!r}: installed are {', '.join(map(repr, known)) or 'none'}")
    found: list[Found] = []
    absences: list[Absence] = []
    for name, candidate in known.items():
        if adapter is not None and name != adapter:
            continue
        answer = candidate.find(query)
        found += [Found(device, candidate) for device in answer.devices]
        absences += answer.absences
    if adapter is not None and not found and not absences:  # what is wanted is another adapter's business
        if query.device is None:
            reason, remedy = "has no device that is not asked for by name", "Name one with the option device."
        else:
            reason, remedy = f"has no device {query.device!r}", "Leave one of the two options out."
        absences.append(Absence(adapter, f"the adapter {adapter!r} {reason}", remedy))
    return DeviceReport(tuple(found), tuple(absences))


def query_for(options: Options) -> Query:
    """What provider options and environment say about devices."""
    return Query(
        device=options.device or os.environ.get("ORT_RKNN_DEVICE") or None,
        runtime_library=options.runtime_library,
    )


def devices() -> list[Device]:
    """The NPUs that a session could use now, best first; empty where there is none.

    Virtual ones are listed only when ``ORT_RKNN_DEVICE`` asks for one.
    """
    if os.environ.get("ORT_RKNN_DISABLE") == "1":
        return []
    from .request import default_options

    options = default_options()
    return [f.device for f in survey(query_for(options), options.adapter).found]
