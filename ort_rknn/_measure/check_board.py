"""Checks of the machine: its type, clock and temperature, and which processes use its NPU."""

from __future__ import annotations

import platform
import struct
import sys
from pathlib import Path

from ..adapter.findings import Finding
from . import board

#: Degrees Celsius above which boards are known to lower the NPU's clock.
_HOT = 85.0


def machine(name: str) -> Finding:
    """Whether this machine could have the NPU. ``name``: from ``platform.machine()``."""
    what = f"{name}, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    if not sys.platform.startswith("linux"):
        return Finding("machine", "failure", what, "Rockchip's runtime is for Linux: run on the board.", _VIRTUAL)
    if struct.calcsize("P") != 8 or name.startswith("armv"):
        return Finding("machine", "failure", f"{what}, 32 bits", "Use a 64-bit system and Python.", "uname -m")
    if name != "aarch64":
        remedy = "Rockchip boards are aarch64: run on the board, or try things on a virtual NPU."
        return Finding("machine", "failure", what, remedy, _VIRTUAL)
    return Finding("machine", "ok", what)


_VIRTUAL = "export ORT_RKNN_DEVICE=virtual:rk3588"


def clock(root: Path) -> Finding:
    """Whether the governor lets the NPU run fast."""
    found = board.clock(root)
    if found is None:
        return Finding("clock", "ok", "the kernel shows no clock of the NPU")
    now = f"{found.now / 1e6:.0f} MHz" if found.now is not None else "an unknown clock"
    highest = f" of {found.highest / 1e6:.0f}" if found.highest else ""
    seen = f"governor {found.governor or 'unknown'}, {now}{highest}"
    held = found.now is not None and found.highest is not None and found.now < found.highest
    if found.governor == "powersave" or (found.governor == "userspace" and held):
        return Finding(
            "clock",
            "warning",
            f"{seen}: the NPU is kept slow",
            "Let the governor raise the clock.",
            f"echo performance | sudo tee {found.folder}/governor",
        )
    return Finding("clock", "ok", seen)


def temperature(root: Path) -> Finding:
    """Whether it is hot enough for the kernel to slow the NPU down."""
    found = board.temperature(root)
    if found is None:
        return Finding("temperature", "ok", "the kernel shows no temperature of the NPU")
    zone, degrees = found
    seen = f"{degrees:.0f} C ({zone})"
    if degrees >= _HOT:
        remedy = "The kernel lowers the clock at such temperatures: cool the board."
        return Finding("temperature", "warning", seen, remedy, "watch -n 1 cat /sys/class/thermal/thermal_zone*/temp")
    return Finding("temperature", "ok", seen)


def other_users(root: Path) -> Finding:
    """Which other processes have the NPU open, and the load reported by the driver."""
    loads = board.load(root)
    driver = "" if loads is None else f"; the driver reports a load of {', '.join(f'{x} %' for x in loads)}"
    node = board.node_of(root)
    users = board.users(root, node) if node else []
    if not users:
        return Finding("other users", "ok", f"none that this user may see{driver}")
    names = ", ".join(f"{user.name} ({user.pid})" for user in users)
    return Finding(
        "other users",
        "warning",
        f"{names}{driver}: they share the NPU's time",
        "Runs of several programs wait for each other in the driver.",
        "sudo cat /sys/kernel/debug/rknpu/load",
    )
