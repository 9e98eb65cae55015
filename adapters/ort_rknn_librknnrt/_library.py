"""Finds ``librknnrt.so`` without opening it.

A library named by the user is used as is. Otherwise only system folders are searched: never the working directory,
never ``LD_LIBRARY_PATH``, and never a file that any user of the machine could have put there.
"""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ort_rknn.adapter import RUNTIME_LIBRARY_VARIABLE, Absence, Query

ADAPTER: Final = "librknnrt"

#: Where board images keep the library, the vendor's own place first.
USUAL_PLACES: Final = (
    "usr/lib/librknnrt.so",
    "usr/lib/aarch64-linux-gnu/librknnrt.so",
    "usr/lib64/librknnrt.so",
    "usr/local/lib/librknnrt.so",
    "usr/local/lib/aarch64-linux-gnu/librknnrt.so",
    "usr/local/lib64/librknnrt.so",
    "lib/librknnrt.so",
    "lib/aarch64-linux-gnu/librknnrt.so",
    "lib64/librknnrt.so",
    "vendor/lib64/librknnrt.so",
)

#: ``e_machine`` of an ELF header, as ``uname -m`` names it.
_MACHINES: Final[Mapping[int, str]] = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_ELF_HEADER: Final = 20  # bytes up to and including e_machine


@dataclass(frozen=True, slots=True)
class Library:
    """A library that may be opened. ``named``: the user named it; ``passed_over``: candidates rejected before it."""

    path: str
    named: bool = False
    passed_over: tuple[str, ...] = ()


def find_library(root: Path, query: Query) -> Library | Absence:
    """The runtime library: the named one, else the first suitable one in the usual places."""
    if query.named_library is not None:
        return _named(*query.named_library)
    tried: list[str] = []
    refusals: list[str] = []
    for place in USUAL_PLACES:
        path = root / place
        tried.append(str(path))
        if not os.path.lexists(path):
            continue
        refusal = _not_a_library(path) or _writable_by_others(root, path)
        if refusal is None:
            return Library(str(path), passed_over=tuple(refusals))
        refusals.append(f"{path} {refusal}")
    name = "the provider option runtime_library or " + RUNTIME_LIBRARY_VARIABLE
    if refusals:
        return Absence(
            ADAPTER,
            f"the runtime library was refused: {'; '.join(refusals)}",
            f"Put the board's own librknnrt.so in a folder that only root may write, or name it with {name}.",
            tuple(tried),
        )
    machine = process_machine()
    if machine == "aarch64":
        remedy = (
            "Install librknnrt.so from the board's image or package (often rknpu2-rk3588 or librknnrt; a container "
            f"needs it inside, or mounted), or name it with {name}."
        )
    else:
        remedy = (
            f"This machine is {machine}, and Rockchip boards are aarch64. Run on the board, or select a virtual NPU "
            "with device='virtual:rk3588'."
        )
    return Absence(ADAPTER, "librknnrt.so was not found in the usual places", remedy, tuple(tried))


def process_machine() -> str:
    """The machine type of this process ("aarch64"), which on some boards differs from the kernel's."""
    try:
        with open("/proc/self/exe", "rb") as file:
            header = file.read(_ELF_HEADER)
    except OSError:
        header = b""
    return _machine(header) or platform.machine()


def _named(path: str, by: str) -> Library | Absence:
    if not os.path.isabs(path):
        reason = f"the {by} is {path!r}, which is not an absolute path"
        return Absence(ADAPTER, reason, "Give the library's absolute path.", (path,))
    refusal = _not_a_library(Path(path))
    if refusal is not None:
        return Absence(
            ADAPTER,
            f"the {by} names {path}, which {refusal}",
            "Give the path of the librknnrt.so that belongs to this board, or leave it out to search the usual places.",
            (path,),
        )
    return Library(path, named=True)


def _not_a_library(path: Path) -> str | None:
    """Why this process cannot open ``path`` as a library, or None."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "is not a file"
        with open(path, "rb") as file:
            header = file.read(_ELF_HEADER)
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    machine, ours = _machine(header), process_machine()
    if machine is None:
        return "is not a shared library (no ELF header)"
    if machine != ours:
        return f"is for {machine}, this is {ours}"
    if int.from_bytes(header[16:18], "little") != 3:
        return "is an ELF file but not a shared library"
    return None


def _machine(header: bytes) -> str | None:
    if len(header) < _ELF_HEADER or header[:4] != b"\x7fELF" or header[5] != 1:
        return None
    code = int.from_bytes(header[18:20], "little")
    return _MACHINES.get(code, f"ELF machine {code}")


def _writable_by_others(root: Path, path: Path) -> str | None:
    """Why any user could replace the library at ``path``, or None. Links and their targets are both checked."""
    real = Path(os.path.realpath(path))
    for file in dict.fromkeys((path, real)):
        for place in (file, *file.parents):
            mode = os.stat(place).st_mode
            sticky_folder = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
            if mode & stat.S_IWOTH and not sticky_folder:
                return "is writable by every user" if place == file else f"is in {place}, which every user may write"
            if place == root:
                break
    return None
