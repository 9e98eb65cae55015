"""Finds NPUs by asking the adapters."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .._environment import switched_on
from .._errors import OptionError, did_you_mean
from .._options import DECLARED, Options, from_environment
from .._rknpu import SOC_CORES, is_soc
from ..adapter.contract import Absence, Device, Query
from ..adapter.plugins import Found, adapters, is_built_in


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """All devices, best first, and why the other adapters see none."""

    found: tuple[Found, ...]
    absences: tuple[Absence, ...]

    def why_none(self) -> Absence:
        """The first failed check of the adapter with the highest priority."""
        if self.absences:
            return self.absences[0]
        return Absence("", "no adapter is installed", "reinstall ort-rknn")


def survey(query: Query, adapter: str | None = None) -> DeviceReport:
    """Ask all adapters, or only the one named (None and "auto": all). Raises OptionError if it is not installed."""
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
    if adapter is not None and not found and not absences:  # only the named adapter's reasons matter
        if query.device is None:
            reason, remedy = "has no device that is not asked for by name", "Name one with the option device."
        else:
            reason, remedy = f"has no device {query.device!r}", "Leave one of the two options out."
        absences.append(Absence(adapter, f"the adapter {adapter!r} {reason}", remedy))
    if not found and query.device is not None and all(not a.adapter or is_built_in(a.adapter) for a in absences):
        _check_device(query.device, DECLARED["device"].environment if query.device_by_environment else None)
    return DeviceReport(tuple(found), tuple(absences))


def _check_device(name: str, variable: str | None) -> None:
    """Raise OptionError for a device name that, as far as the installed adapters know, can never exist."""
    word = name.strip().lower()
    kind, colon, soc = word.partition(":")
    if word == "npu" or is_soc(word) or (kind == "virtual" and (not colon or is_soc(soc))):
        return
    known = ("npu", *SOC_CORES, "virtual", *(f"virtual:{soc}" for soc in SOC_CORES))
    what = f"environment variable {variable}" if variable else "provider option device"
    raise OptionError(f"{what}={name!r}: there is no such device{did_you_mean(name, known)}; known: {', '.join(known)}")


def query_for(options: Options) -> Query:
    """The device query that provider options and environment ask for. Raises OptionError for a runtime library whose
    path is not absolute or cannot be read."""
    library = options.runtime_library
    if library is not None:
        _check_library(library)
    by_environment = from_environment("device")
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
    """The NPUs that a session could use now, best first; empty if there are none.

    Virtual NPUs are listed only if ``ORT_RKNN_DEVICE`` asks for one.
    """
    if switched_on("ORT_RKNN_DISABLE"):
        return []
    from .request import default_options

    options = default_options()
    return [f.device for f in survey(query_for(options), options.adapter).found]
