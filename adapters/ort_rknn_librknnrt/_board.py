"""Identifies the board: its SoC and the device node of its NPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ort_rknn.adapter import SOC_CORES, Absence, is_soc, soc_family, soc_note
from ort_rknn.adapter.device_tree import (
    SOC_VARIABLE,
    SocUnknownError,
    device_tree,
    soc_in_device_tree,
    soc_in_environment,
)

from ._library import ADAPTER

_MAX_READ: Final = 4096
_KNOWN: Final = ", ".join(SOC_CORES)


@dataclass(frozen=True, slots=True)
class Soc:
    """A SoC, and how it was identified. ``note`` is a remark on its variant."""

    name: str
    source: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """The NPU's device node, readable and writable. ``note`` is a remark for later errors."""

    path: str
    note: str = ""


def find_soc(root: Path, environ: Mapping[str, str]) -> Soc | Absence:
    """The SoC: ``ORT_RKNN_SOC``, else the first known name in the device tree. Variants count as their SoC."""
    name = soc_in_environment(environ)
    if name:
        if not is_soc(name):
            return Absence(ADAPTER, f"{SOC_VARIABLE} is {name!r}, which is not a known SoC", f"Known are {_KNOWN}.")
        return Soc(soc_family(name), SOC_VARIABLE, soc_note(name))
    path = device_tree(root)
    try:
        name, entry = soc_in_device_tree(root)
    except SocUnknownError as problem:
        if problem.readable:
            remedy = f"Where the NPU is one of a known SoC, set {SOC_VARIABLE} to one of {_KNOWN}."
        elif in_container(root):
            remedy = (
                "Containers hide this file: start with --security-opt systempaths=unconfined, "
                f"or set {SOC_VARIABLE} to one of {_KNOWN}."
            )
        else:
            remedy = f"Where this is a Rockchip board after all, set {SOC_VARIABLE} to one of {_KNOWN}."
        return Absence(ADAPTER, str(problem), remedy, (str(path),))
    return Soc(soc_family(name), f"{path}: {entry}", soc_note(name))


def find_node(root: Path) -> DeviceNode | Absence:
    """The device node of the rknpu driver, checked for read and write permission.

    Candidates in order: a DRM render node whose driver is rknpu, renderD129 if its driver is unknown, and
    ``/dev/rknpu``, which kernels without DRM GEM have.
    """
    tried = []
    chosen: Path | None = None
    undecided: Path | None = None
    for node in sorted((root / "dev/dri").glob("renderD*")):
        driver = _driver(root / "sys/class/drm" / node.name)
        tried.append(f"{node} (driver {driver or 'unknown'})")
        if driver == "rknpu":
            chosen = node
            break
        if node.name == "renderD129" and not driver:
            undecided = node
    legacy = root / "dev/rknpu"
    chosen = chosen or undecided or (legacy if os.path.exists(legacy) else None)
    if chosen is None:
        tried = [*tried, str(root / "dev/dri/renderD129"), str(legacy)]
        return Absence(ADAPTER, "the NPU has no device node", _remedy_without_node(root), tuple(dict.fromkeys(tried)))
    effective = os.access in os.supports_effective_ids
    if not os.access(chosen, os.R_OK | os.W_OK, effective_ids=effective):
        return Absence(
            ADAPTER,
            f"this user may not read and write the NPU's device node {chosen}",
            _remedy_without_permission(root, chosen),
            (str(chosen),),
        )
    note = ""
    if chosen != legacy and os.path.islink(legacy):
        note = f"{legacy} is a link, which makes some runtimes take a path that fails with ENOTTY: remove it"
    return DeviceNode(str(chosen), note)


def driver_version(root: Path) -> str:
    """The version of the loaded rknpu driver, "" if the kernel does not show it to every user."""
    try:
        return _read(root / "sys/module/rknpu/version").strip()
    except OSError:
        return ""


def driver_of(root: Path) -> str:
    """The NPU's driver: "rknpu", "rocket" (the mainline one), "" if there is no sign of either."""
    nodes = [*(root / "sys/class/drm").glob("renderD*"), *(root / "sys/class/accel").glob("accel*")]
    names = [_driver(node) for node in nodes]
    places = (root / "sys/module/rknpu", root / "sys/bus/platform/drivers/RKNPU", root / "dev/rknpu")
    if "rknpu" in names or any(os.path.exists(place) for place in places):
        return "rknpu"
    return "rocket" if "rocket" in names else ""


def lacks_login(node: Path) -> str:
    """The device node's group if the account is a member but this login is not yet; else ""."""
    import grp
    import pwd

    try:
        group = grp.getgrgid(node.stat().st_gid)
        name = pwd.getpwuid(os.geteuid()).pw_name
    except (KeyError, OSError):
        return ""
    mine = {os.getegid(), *os.getgroups()}
    return group.gr_name if name in group.gr_mem and group.gr_gid not in mine else ""


def in_container(root: Path) -> bool:
    """Whether this looks like a Docker or Podman container."""
    return os.path.exists(root / ".dockerenv") or os.path.exists(root / "run/.containerenv")


def _driver(device: Path) -> str:
    """The driver in lower case, "" if it is unknown."""
    try:
        lines = _read(device / "device/uevent").splitlines()
    except OSError:
        return ""
    return next((line[7:].strip().lower() for line in lines if line.startswith("DRIVER=")), "")


def _read(path: Path) -> str:
    with open(path, "rb") as file:
        return file.read(_MAX_READ).decode("utf-8", "replace")


def _remedy_without_node(root: Path) -> str:
    if in_container(root):
        return "Start the container with --device /dev/dri (the NPU is usually /dev/dri/renderD129)."
    if any(_driver(node) == "rocket" for node in (root / "sys/class/accel").glob("accel*")):
        return (
            "This kernel drives the NPU with the mainline 'rocket' driver, which librknnrt does not use: boot the "
            "board vendor's kernel, which has the rknpu driver."
        )
    return (
        "Boot a kernel whose rknpu driver is enabled (dmesg | grep -i rknpu shows it) and whose device tree enables "
        "the NPU."
    )


def _remedy_without_permission(root: Path, node: Path) -> str:
    import grp  # POSIX only, and only needed here

    try:
        group = grp.getgrgid(node.stat().st_gid).gr_name
    except (KeyError, OSError):
        group = ""
    groups = group if group not in ("", "root") else "render,video"
    if in_container(root):
        return f"Start the container with --device {node}, and with --group-add for the group that owns it ({groups})."
    return f"Add the user to the groups that may: sudo usermod -aG {groups} $USER; then log in again."
