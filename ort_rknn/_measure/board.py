"""What the kernel reports about the NPU: clock, temperature, load, and which processes have its device node open.

Each reader takes the root of the file system ("/" except in tests) and returns None, or nothing, if the kernel does not
report the value, or not to this user.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MAX_READ = 4096
#: Where root can read the driver's load; some kernels also show it below /proc to everyone.
LOAD_FILES = ("proc/rknpu/load", "sys/kernel/debug/rknpu/load")
_CORE_LOAD = re.compile(r"(?:Core(\d+):\s*)?(\d+)\s*%")


def read_text(path: Path) -> str | None:
    """The first 4 KiB of a small file, stripped; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_READ).decode("utf-8", "replace").strip()
    except OSError:
        return None


def resident_bytes(root: Path = Path("/")) -> int:
    """Resident memory of this process in bytes; 0 if the system does not report it."""
    pages = re.match(r"\d+ (\d+)", read_text(root / "proc/self/statm") or "")
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _number(path: Path) -> int | None:
    text = read_text(path)
    return int(text) if text and re.fullmatch(r"-?\d{1,15}", text) else None


@dataclass(frozen=True, slots=True)
class Clock:
    """The NPU's clock, in Hz."""

    folder: str
    governor: str
    now: int | None
    highest: int | None


def clock(root: Path) -> Clock | None:
    """The NPU's devfreq device: the one whose name ends in ".npu" ("fdab0000.npu")."""
    for folder in sorted((root / "sys/class/devfreq").glob("*npu*")):
        return Clock(
            str(folder),
            read_text(folder / "governor") or "",
            _number(folder / "cur_freq"),
            _number(folder / "max_freq"),
        )
    return None


def temperature(root: Path) -> tuple[str, float] | None:
    """(name of the thermal zone, degrees Celsius): the NPU's zone, else the SoC's."""
    zones: dict[str, float] = {}
    for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = read_text(folder / "type"), _number(folder / "temp")
        if name and value is not None:
            zones.setdefault(name, value / 1000)
    chosen = [name for name in zones if "npu" in name.lower()] or [name for name in zones if "soc" in name.lower()]
    return (chosen[0], zones[chosen[0]]) if chosen else None


def load(root: Path) -> tuple[int, ...] | None:
    """The driver's own load per core in percent, capped at 100: it has been seen to overflow (rknpu2 issue 102)."""
    for name in LOAD_FILES:
        text = read_text(root / name)
        cores = _CORE_LOAD.findall(text) if text else []
        if cores:
            return tuple(min(int(percent[:12]), 100) for _, percent in cores)
    return None


@dataclass(frozen=True, slots=True)
class User:
    """A process that has the NPU's device node open."""

    pid: int
    name: str


def users(root: Path, node: str) -> list[User]:
    """Processes that have ``node`` (a path below ``root``) open, as far as this user can see them, except this one."""
    found = []
    for folder in sorted((root / "proc").glob("[0-9]*")):
        if folder.name == str(os.getpid()) or not folder.name.isdigit():
            continue
        try:
            links = [os.readlink(link) for link in (folder / "fd").iterdir()]
        except OSError:
            continue
        if node in links:
            found.append(User(int(folder.name), read_text(folder / "comm") or "?"))
    return sorted(found, key=lambda user: user.pid)


def node_of(root: Path) -> str | None:
    """The NPU's device node, for :func:`users`: the render node of the rknpu driver, else ``/dev/rknpu``."""
    for folder in sorted((root / "sys/class/drm").glob("renderD*")):
        if "driver=rknpu" in (read_text(folder / "device/uevent") or "").lower():
            return str(root / "dev/dri" / folder.name)
    legacy = root / "dev/rknpu"
    return str(legacy) if legacy.exists() else None
