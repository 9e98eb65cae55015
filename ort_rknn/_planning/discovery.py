"""Which NPUs there are: asks the adapters, which are found through pluggy."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from .._errors import OptionError, did_you_mean
from .._options import Options, switched_on
from .._socs import SOC_CORES, is_soc
from ..adapter.contract import Absence, Adapter, Device, Query

log = logging.getLogger("ort_rknn")

#: Distributions' modules that are loaded even with ``ORT_RKNN_NO_PLUGINS=1``.
BUILT_IN = ("ort_rknn_librknnrt", "ort_rknn_lite2", "ort_rknn_virtual")
#: What their adapters are called; "" is nobody's absence.
_BUILT_IN_NAMES = ("librknnrt", "lite2", "virtual", "")


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
    import importlib.metadata

    import pluggy

    from ..adapter import hookspecs
    from ..adapter.plugins import load_plugin

    manager = pluggy.PluginManager("ort_rknn")
    manager.add_hookspecs(hookspecs)
    names = list(BUILT_IN)
    if not switched_on("ORT_RKNN_NO_PLUGINS"):
        points = importlib.metadata.entry_points(group="ort_rknn")
        names += [p.value for p in points if p.value not in names]
    found: list[Adapter] = []
    for name in names:
        try:
            brought = load_plugin(manager, name, "ort_rknn_adapters")
        except Exception as error:
            log.error("plugin %s of ort_rknn does not load and is left out: %s: %s", name, type(error).__name__, error)
            continue
        for adapter in brought:
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
        installed = ", ".join(map(repr, known)) or "none"
        raise OptionError(
            f"provider option adapter={adapter!r}{did_you_mean(adapter, known)}; installed are {installed}"
        )
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
    if not found and query.device is not None and all(a.adapter in _BUILT_IN_NAMES for a in absences):
        _check_device(query.device, "ORT_RKNN_DEVICE" if query.device_by_environment else None)
    return DeviceReport(tuple(found), tuple(absences))


def _check_device(name: str, variable: str | None) -> None:
    """Raise OptionError for a device that no machine could have, as far as the adapters here know."""
    word = name.strip().lower()
    kind, colon, soc = word.partition(":")
    if word == "npu" or is_soc(word) or (kind == "virtual" and (not colon or is_soc(soc))):
        return
    known = ("npu", *SOC_CORES, "virtual", *(f"virtual:{soc}" for soc in SOC_CORES))
    what = f"environment variable {variable}" if variable else "provider option device"
    raise OptionError(f"{what}={name!r}: there is no such device{did_you_mean(name, known)}; known: {', '.join(known)}")


def query_for(options: Options) -> Query:
    """What provider options and environment say about devices. Raises OptionError for a runtime library that is not
    named by an absolute path, or that cannot be read."""
    library = options.runtime_library
    if library is not None:
        _check_library(library)
    by_environment = os.environ.get("ORT_RKNN_DEVICE") or None
    return Query(
        device=options.device or by_environment,
        device_by_environment=options.device is None and by_environment is not None,
        runtime_library=library,
    )


def _check_library(path: str) -> None:
    reason = ""
    if not os.path.isabs(path):
        reason = "it is not an absolute path"
    elif not os.path.isfile(path):
        reason = "it is not a file" if os.path.exists(path) else "there is no such file"
    elif not os.access(path, os.R_OK):
        reason = "this user may not read it"
    if reason:
        raise OptionError(f"provider option runtime_library={path!r}: {reason}; give the library's absolute path")


def devices() -> list[Device]:
    """The NPUs that a session could use now, best first; empty where there is none.

    Virtual ones are listed only when ``ORT_RKNN_DEVICE`` asks for one.
    """
    if switched_on("ORT_RKNN_DISABLE"):
        return []
    from .request import default_options

    options = default_options()
    return [f.device for f in survey(query_for(options), options.adapter).found]
