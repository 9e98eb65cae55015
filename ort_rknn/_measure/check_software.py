"""Checks of the installed packages, and of this process's environment."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Mapping

from .._cache import cache_folder, why_unsafe
from ..adapter.findings import Finding

_REGISTER = (
    "import sys, ort_rknn, onnxruntime\n"
    "ort_rknn.register(device=sys.argv[1] or None)\n"
    "print(sum(d.ep_name == 'RKNNExecutionProvider' for d in onnxruntime.get_ep_devices()))\n"
)
#: Distributions that all install a package ``onnxruntime``, overwriting each other.
_RIVALS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-qnn",
    "onnxruntime-silicon",
    "ort-nightly",
)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment(environ: Mapping[str, str]) -> Finding:
    """Our environment variables that change what sessions do."""
    from .._environment import switched_on

    if environ is os.environ and switched_on("ORT_RKNN_DISABLE"):
        seen = "ORT_RKNN_DISABLE is set: sessions are plain onnxruntime's, and no NPU is looked for"
        return Finding("environment", "failure", seen, "Unset it.", "unset ORT_RKNN_DISABLE")
    ours = sorted(name for name in environ if name.startswith("ORT_RKNN_"))
    return Finding("environment", "ok", f"{', '.join(f'{n}={environ[n]}' for n in ours) or 'no ORT_RKNN_ variable'}")


def vendor_package() -> Finding:
    """The vendor's Python package, which is not needed."""
    lite = _installed("rknn-toolkit-lite2")
    if lite is None:
        return Finding("vendor package", "ok", "rknn-toolkit-lite2 is not installed, and not needed")
    seen = f"rknn-toolkit-lite2 {lite}, which only the adapter lite2 needs"
    if sys.version_info >= (3, 13):
        return Finding("vendor package", "ok", f"{seen}; it has no build for this Python")
    return Finding("vendor package", "ok", seen)


def onnxruntime() -> Finding:
    """A single onnxruntime, and new enough."""
    import onnxruntime as ort

    from .._ep.registration import may_open_a_library
    from .._ep.support import why_unavailable

    upgrade = f"{sys.executable} -m pip install -U onnxruntime"
    reason = why_unavailable()
    if reason is not None:
        return Finding("onnxruntime", "failure", reason, "Install one that runs plugin providers.", upgrade)
    rivals = [f"{name} {version}" for name in _RIVALS if (version := _installed(name))]
    if len(rivals) > 1:
        others = " ".join(name.split()[0] for name in rivals)
        return Finding(
            "onnxruntime",
            "warning",
            f"{' and '.join(rivals)} are installed over each other; {ort.__version__} is imported",
            "Remove them, and install the one that you want.",
            f"{sys.executable} -m pip uninstall {others}",
        )
    if not may_open_a_library():
        return Finding(
            "onnxruntime",
            "failure",
            "this host does not let a library be opened (neither memfd_create nor a temporary file)",
            "Name a folder that is not mounted noexec.",
            "export TMPDIR=$HOME/tmp",
        )
    return Finding("onnxruntime", "ok", ort.__version__)


def provider_registers(device: str | None) -> Finding:
    """Whether the provider registers: tried in a separate process, which may crash. ``device`` as the option."""
    name = "provider"
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", _REGISTER, device or ""],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name, "warning", f"not tried: {type(error).__name__}: {error}")
    lines = done.stderr.strip().splitlines()
    if done.returncode == 0 and done.stdout.strip().isdigit() and int(done.stdout) > 0:
        return Finding(name, "ok", f"RKNNExecutionProvider registers, with {done.stdout.strip()} device(s)")
    why = lines[-1] if lines else f"its process ended with {done.returncode}"
    command = "python -c 'import ort_rknn; ort_rknn.register()'"
    return Finding(name, "failure", f"RKNNExecutionProvider does not register: {why}", "See the error.", command)


def compiler() -> Finding:
    """The vendor's converter, which is needed only for converting."""
    from .._compile.toolkit import ToolkitError, find_toolkit, toolkit_folder

    try:
        found = find_toolkit()
    except ToolkitError as error:
        folder = toolkit_folder()
        if folder.exists() or os.environ.get("ORT_RKNN_TOOLKIT"):
            return Finding("compiler", "warning", str(error).splitlines()[0], "Install it again.", _INSTALL)
        return Finding("compiler", "ok", "rknn-toolkit2 is not installed; only `ort-rknn convert` needs it")
    return Finding("compiler", "ok", f"rknn-toolkit2 {found.version}, {found.chosen_by}")


_INSTALL = "ort-rknn toolkit install"


def cache() -> Finding:
    """Whether the user's cache is writable, and only by the user."""
    folder = cache_folder()
    if folder is None:
        seen = "there is no home folder for a cache"
    else:
        place = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):
            seen = f"{folder} cannot be written by this user"
        elif (problem := why_unsafe(place)) is not None:
            seen = f"{folder} is not used: {problem}"
        else:
            return Finding("cache", "ok", f"{folder} can be written")
    remedy = "The virtual NPU and the converter keep their results there: name another folder."
    return Finding("cache", "warning", seen, remedy, "export XDG_CACHE_HOME=/tmp/cache-$USER")
