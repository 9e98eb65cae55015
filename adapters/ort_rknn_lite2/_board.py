"""Checks in advance what the vendor's package will check, without importing it."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ort_rknn.adapter import Absence, Query, soc_family
from ort_rknn.adapter.device_tree import (
    SOC_VARIABLE,
    SocUnknownError,
    device_tree,
    soc_in_device_tree,
    soc_in_environment,
)

ADAPTER: Final = "lite2"
DISTRIBUTION: Final = "rknn-toolkit-lite2"
#: The only place where rknn-toolkit-lite2 2.5.0 looks; it ignores LD_LIBRARY_PATH and the linker's cache.
LIBRARY: Final = "usr/lib/librknnrt.so"


def find_package() -> str | Absence:
    """The version of the installed package ("unknown" if its metadata are missing). Imports nothing of it."""
    module = sys.modules.get("rknnlite")
    if module is not None and module.__name__ != "rknnlite":
        reason = f"the module rknnlite is {module.__name__} in this process, and not {DISTRIBUTION}"
        return Absence(ADAPTER, reason, "Use the adapter 'librknnrt', which needs no package of the vendor's.")
    spec: importlib.machinery.ModuleSpec | None
    try:
        spec = importlib.util.find_spec("rknnlite")
    except ValueError:  # a module without __spec__, as created by tests of other programs
        spec = None
    if spec is None and module is None:
        here = f"{platform.machine()} and Python {sys.version_info[0]}.{sys.version_info[1]}"
        remedy = (
            f"pip install 'ort-rknn[lite2]', on a board: the vendor publishes {DISTRIBUTION} for aarch64 and "
            f"Python < 3.13 only, and this is {here}."
        )
        return Absence(ADAPTER, f"{DISTRIBUTION} is not installed", remedy, ("the Python module rknnlite",))
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def check_library(library: Path, query: Query) -> Absence | None:
    """Why the package would not open ``library``, or None."""
    named, _ = query.named_library or ("", "")
    if named and os.path.realpath(named) != os.path.realpath(library):
        reason = f"the runtime library {named} was named, but {DISTRIBUTION} opens {library} only"
        return Absence(ADAPTER, reason, "Use the adapter 'librknnrt', or do not name a library.", (named,))
    if not library.is_file():
        remedy = f"Install the board's librknnrt.so there: {DISTRIBUTION} looks nowhere else."
        return Absence(ADAPTER, f"{library} does not exist", remedy, (str(library),))
    return None


def check_node(root: Path) -> Absence | None:
    """Why there is no device for the library to open, or None. The package itself checks only in containers."""
    places = [*sorted((root / "dev/dri").glob("renderD*")), root / "dev/rknpu"]
    if any(os.path.exists(place) for place in places):
        return None
    remedy = "Boot a kernel with the rknpu driver; start a container with --device /dev/dri."
    return Absence(ADAPTER, "the NPU has no device node", remedy, (str(root / "dev/dri/renderD129"), str(places[-1])))


def find_soc(root: Path, environ: Mapping[str, str]) -> str | Absence:
    """The SoC as the package will find it: in the device tree, and nowhere else."""
    path = device_tree(root)
    try:
        name, _ = soc_in_device_tree(root)
    except SocUnknownError as problem:
        remedy = f"{DISTRIBUTION} needs this file; in a container: --security-opt systempaths=unconfined."
        return Absence(ADAPTER, str(problem), "" if problem.readable else remedy, (str(path),))
    soc = soc_family(name)
    named = soc_in_environment(environ).lower()
    if named and soc_family(named) != soc:
        reason = f"{SOC_VARIABLE} is {named!r}, but {DISTRIBUTION} takes the SoC from {path}, which says {soc}"
        return Absence(ADAPTER, reason, f"Unset {SOC_VARIABLE}, or use the adapter 'librknnrt'.", (str(path),))
    return soc
