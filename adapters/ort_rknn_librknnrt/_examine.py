"""The checks of a board for ``ort-rknn doctor``: those of ``find()``, one by one, and some only for diagnosis."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from ort_rknn.adapter import RUNTIME_LIBRARY_VARIABLE, Absence, Finding, Query
from ort_rknn.adapter.device_tree import SOC_VARIABLE

from ._board import DeviceNode, Soc, driver_of, driver_version, find_node, find_soc, in_container, lacks_login
from ._hints import version_inside
from ._library import USUAL_PLACES, Library, find_library

#: The oldest driver that later runtimes fully support (airockchip/rknn-toolkit2 issue 138).
_GOOD_DRIVER: Final = (0, 9, 6)
_VERSION: Final = re.compile(r"[0-9]+(?:\.[0-9]+)+")
_OPEN: Final = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).rknn_init"


def examine(root: Path, query: Query) -> Iterator[Finding]:
    """The findings, in the order in which things fail."""
    yield _soc(root, query.environ)
    yield _driver(root)
    yield _node(root)
    container = _container(root)
    if container is not None:
        yield container
    library = find_library(root, query)
    yield _found(library)
    if isinstance(library, Library):
        yield _opens(library)
        yield _others(root, library)


def _failure(check: str, absence: Absence, command: str = "") -> Finding:
    return Finding(check, "failure", absence.reason, absence.remedy, command)


def _soc(root: Path, environ: Mapping[str, str]) -> Finding:
    soc = find_soc(root, environ)
    if isinstance(soc, Soc):
        return Finding("SoC", "ok", f"{soc.name}, according to {soc.source}" + (f"; {soc.note}" if soc.note else ""))
    command = "docker run --security-opt systempaths=unconfined ..." if in_container(root) else ""
    return _failure("SoC", soc, command or f"export {SOC_VARIABLE}=rk3588")


def _driver(root: Path) -> Finding:
    name, version = driver_of(root), driver_version(root)
    if name == "rocket":
        return Finding(
            "kernel driver",
            "failure",
            "the mainline driver 'rocket', which librknnrt does not use",
            "Boot the board vendor's kernel, which has the rknpu driver.",
            "uname -r",
        )
    if name != "rknpu" and not version:
        if in_container(root) or not os.path.isdir(root / "sys/class"):
            return Finding("kernel driver", "ok", "unknown inside this container; the device node decides")
        return Finding(
            "kernel driver",
            "failure",
            "no sign of the rknpu driver in /sys",
            "Boot a kernel whose rknpu driver is enabled and whose device tree enables the NPU.",
            "sudo dmesg | grep -i rknpu",
        )
    numbers = tuple(int(x) for x in re.findall(r"\d+", version)[:3])
    if numbers and numbers < _GOOD_DRIVER:
        return Finding(
            "kernel driver",
            "warning",
            f"rknpu {version}, older than 0.9.6: newer runtimes lose functions on it, some fail",
            "Update the board's kernel; the driver comes with it and cannot be updated alone.",
            "sudo apt update && sudo apt full-upgrade",
        )
    return Finding("kernel driver", "ok", f"rknpu {version}" if version else "rknpu (its version needs root)")


def _node(root: Path) -> Finding:
    node = find_node(root)
    if isinstance(node, Absence):
        path = next(iter(node.tried), "")
        command = "ls -l /dev/dri /dev/rknpu"
        if "may not" in node.reason:
            command = "sudo usermod -aG render,video $USER"
            group = lacks_login(Path(path))
            if in_container(root):
                command = f"docker run --device {path} --group-add $(stat -c %g {path}) ..."
            elif group:
                remedy = f"The account is in the group {group}, but this login began before: log in again."
                return Finding("device node", "failure", node.reason, remedy, f"newgrp {group}")
        elif in_container(root):
            command = "docker run --device /dev/dri ..."
        return _failure("device node", node, command)
    assert isinstance(node, DeviceNode)
    if node.note:
        return Finding("device node", "warning", f"{node.path}; {node.note}", "Remove the link.", "sudo rm /dev/rknpu")
    return Finding("device node", "ok", f"{node.path}, which this user may read and write")


def _container(root: Path) -> Finding | None:
    if not in_container(root):
        return None
    if os.path.exists(root / "proc/device-tree/compatible"):
        return Finding("container", "ok", "inside one, and the device tree can be read")
    return Finding(
        "container",
        "warning",
        "inside one that hides /proc/device-tree: the vendor's own package cannot determine the SoC here",
        "Start it with --security-opt systempaths=unconfined where other programs need it.",
        "docker run --security-opt systempaths=unconfined ...",
    )


def _found(library: Library | Absence) -> Finding:
    if isinstance(library, Absence):
        return _failure("runtime library", library, "sudo find / -name 'librknnrt.so*' -not -path '/proc/*'")
    if library.passed_over:
        return Finding(
            "runtime library",
            "warning",
            f"{library.path}; refused before it: {'; '.join(library.passed_over)}",
            "Remove what was refused, or put it right.",
            f"ls -l {' '.join(text.split(' ')[0] for text in library.passed_over)}",
        )
    return Finding("runtime library", "ok", library.path + (" (named)" if library.named else ""))


def _opens(library: Library) -> Finding:
    """Open the library in a separate process: a crash is a finding too."""
    version = runtime_version(library.path)
    text = f"version {version}" if version else "its file does not contain a version"
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-I", "-c", _OPEN, library.path],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("runtime opens", "warning", f"not tried: {type(error).__name__}: {error}; {text}")
    if done.returncode == 0:
        return Finding("runtime opens", "ok", text)
    lines = done.stderr.strip().splitlines()
    why = lines[-1] if lines and done.returncode > 0 else f"the process that opened it died with {done.returncode}"
    return Finding(
        "runtime opens",
        "failure",
        f"{library.path} cannot be opened ({text}): {why}",
        "Install the librknnrt.so of the board's own image or package.",
        f"ldd {library.path}",
    )


def runtime_version(path: str) -> str | None:
    """The version text in a library's file; None if there is none."""
    match = _VERSION.match(version_inside(path))
    return match.group() if match else None


def _others(root: Path, library: Library) -> Finding:
    mine = os.path.realpath(library.path)
    others: dict[str, str | None] = {}
    for place in USUAL_PLACES:
        path = os.path.realpath(root / place)
        if path != mine and os.path.isfile(path):
            others[path] = runtime_version(path)
    used = runtime_version(library.path)
    different = [f"{path} ({version or 'version unknown'})" for path, version in others.items() if version != used]
    if not different:
        return Finding("one runtime", "ok", "no other librknnrt.so in the usual places")
    return Finding(
        "one runtime",
        "warning",
        f"{library.path} ({used or 'version unknown'}) is used, and there are others: {', '.join(different)}",
        "Other programs may take another one: keep one version, or name it with " + RUNTIME_LIBRARY_VARIABLE + ".",
        f"export {RUNTIME_LIBRARY_VARIABLE}={library.path}",
    )
