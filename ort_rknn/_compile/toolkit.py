"""Finds the vendor's toolkit: an environment of ours in the user's cache, or an interpreter of the user's.

The toolkit requires old versions of numpy, onnx and others, so it never shares an interpreter with a session.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .._cache import cache_folder, why_unsafe
from .pins import INSTALLED_BYTES, PINS, PYTHONS, TOOLKIT_VERSION

ENVIRONMENT_VARIABLE = "ORT_RKNN_TOOLKIT"
INSTALL_COMMAND = "ort-rknn toolkit install"

#: Asks an interpreter for its versions, without importing the toolkit (which takes seconds).
_PROBE = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": sys.version.split()[0]}
for name in ("rknn-toolkit2", "onnx", "numpy", "setuptools"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


class ToolkitError(Exception):
    """There is no toolkit, it cannot be installed, or an interpreter lacks it. The message says what to do."""


@dataclass(frozen=True, slots=True)
class Toolkit:
    """An interpreter that has rknn-toolkit2."""

    python: str
    """Absolute path."""
    version: str
    """rknn-toolkit2's: "2.5.0"."""
    chosen_by: str
    """For people: "--toolkit", "ORT_RKNN_TOOLKIT", "installed in the cache"."""
    packages: Mapping[str, str]
    """Versions of the relevant packages, and of "python"."""


def clean_environment() -> dict[str, str]:
    """The environment for the toolkit's process: ours, without variables that would make it import our packages."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ORT_RKNN_", "VIRTUAL_ENV"))}


def toolkit_folder() -> Path:
    """The folder of our environment: ``$XDG_CACHE_HOME/ort_rknn/toolkit-<version>``, else below ``~/.cache``.

    Creates nothing. Raises ToolkitError if there is no home folder.
    """
    cache = cache_folder()
    if cache is None:
        raise ToolkitError("there is no home folder for a cache; set XDG_CACHE_HOME to a folder")
    return cache / f"toolkit-{TOOLKIT_VERSION}"


def find_toolkit(python: str | os.PathLike[str] | None = None) -> Toolkit:
    """The toolkit to use: that of the interpreter ``python``, else of ``ORT_RKNN_TOOLKIT``, else the installed one.

    Raises ToolkitError if there is none, saying how to get one, or if the named interpreter lacks it.
    """
    if python is not None:
        return _of_interpreter(os.fspath(python), "--toolkit")
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        return _of_interpreter(named, ENVIRONMENT_VARIABLE)
    ours = toolkit_folder() / "bin" / "python"
    if os.path.exists(ours):
        check_owner(toolkit_folder())
        return _of_interpreter(str(ours), "installed in the cache")
    raise ToolkitError(
        f"converting takes the vendor's rknn-toolkit2, which is not installed: run `{INSTALL_COMMAND}` "
        f"(about {INSTALLED_BYTES / 1e9:.0f} GB), or name an interpreter that has it with --toolkit or "
        f"{ENVIRONMENT_VARIABLE}"
    )


def _of_interpreter(python: str, chosen_by: str) -> Toolkit:
    if not os.path.isabs(python):
        found = shutil.which(python) if os.sep not in python else os.path.abspath(python)
        if found is None:
            raise ToolkitError(f"{chosen_by}: there is no interpreter {python!r}")
        python = found
    try:
        done = subprocess.run(  # noqa: S603  # named by the user, or ours
            [python, "-I", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=60,
            env=clean_environment(),
            check=False,
        )
        packages = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise ToolkitError(f"{chosen_by}: {python} is not a Python interpreter that runs: {error}") from error
    version = packages.get("rknn-toolkit2")
    if version is None:
        raise ToolkitError(f"{chosen_by}: {python} (Python {packages['python']}) has no rknn-toolkit2")
    return Toolkit(python, version, chosen_by, packages)


def check_owner(folder: Path) -> None:
    """Raise ToolkitError if other users could put code or models into ``folder``, through any folder on its path."""
    try:
        problem = why_unsafe(folder)
    except OSError as error:
        problem = str(error)
    if problem is not None:
        raise ToolkitError(
            f"{folder} is not used, because {problem}. Set XDG_CACHE_HOME to a folder of yours. Or remove what "
            "is there, and make all that leads to it yours or root's, and writable for its owner alone (chmod go-w)."
        )


# Installing -----------------------------------------------------------------------------------------------------


def install(
    *, python: str | None = None, say: Callable[[str], None] = print, run: Callable[..., None] | None = None
) -> Toolkit:
    """Create the environment, with ``uv`` if it is on the PATH, else with ``venv`` and pip. Takes three to eight
    minutes.

    ``python``: the interpreter to create it with; None: one from the PATH, of a version for which the toolkit has
    wheels. Removes what a failed installation leaves. Raises ToolkitError if there is no such interpreter, not enough
    disk space, or pip fails. A complete environment is left unchanged.
    """
    folder = toolkit_folder()
    if os.path.exists(folder / "complete"):
        say(f"rknn-toolkit2 {TOOLKIT_VERSION} is installed already: {folder}")
        return find_toolkit()
    base = _interpreter(python)
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(folder.parent)
        room = shutil.disk_usage(folder.parent).free
    except OSError as error:
        raise ToolkitError(
            f"rknn-toolkit2 cannot be kept in {folder}: {error}; set XDG_CACHE_HOME to a folder of yours"
        ) from error
    if room < INSTALLED_BYTES * 1.3:
        raise ToolkitError(
            f"{folder.parent} has {room / 1e9:.1f} GB free; the toolkit takes {INSTALLED_BYTES / 1e9:.0f} GB and some "
            "more while it is installed. Free some, or set XDG_CACHE_HOME to a folder on another disk."
        )
    say(f"rknn-toolkit2 {TOOLKIT_VERSION} goes to {folder}, with {base}; about {INSTALLED_BYTES / 1e9:.0f} GB.")
    for pin in PINS:
        say(f"  {pin.requirement:<24} {pin.reason}")
    run = run or _run
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for command in _commands(base, folder):
            run(command)
        toolkit = _of_interpreter(str(folder / "bin" / "python"), "installed in the cache")
        (folder / "complete").touch(mode=0o600)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    say(f"Done: rknn-toolkit2 {toolkit.version}.")
    return toolkit


def _commands(base: str, folder: Path) -> list[list[str]]:
    requirements = [pin.requirement for pin in PINS]
    uv = shutil.which("uv")
    if uv is not None and os.path.isabs(uv):
        return [
            [uv, "venv", "--python", base, str(folder)],
            [uv, "pip", "install", "--python", str(folder / "bin" / "python"), *requirements],
        ]
    pip = [str(folder / "bin" / "python"), "-I", "-m", "pip", "install", "--disable-pip-version-check"]
    return [[base, "-I", "-m", "venv", str(folder)], [*pip, *requirements]]


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, check=False, env=clean_environment(), stdin=subprocess.DEVNULL)  # noqa: S603
    except OSError as error:
        raise ToolkitError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        raise ToolkitError(
            f"`{' '.join(command[:4])} ...` failed with exit code {done.returncode}; its output is above"
        )


def _interpreter(python: str | None) -> str:
    """The absolute path of an interpreter for which the toolkit has wheels."""
    machine = platform.machine()
    minors = PYTHONS.get(machine)
    if minors is None:
        raise ToolkitError(f"rknn-toolkit2 exists for {' and '.join(PYTHONS)} only; this machine is {machine}")
    wanted = f"CPython 3.{minors[0]} to 3.{minors[-1]}"
    if python is not None:
        found = shutil.which(python)
        minor = _minor(found) if found else None
        if found is None or minor not in minors:
            what = f"is Python 3.{minor}" if minor is not None else "is not a working interpreter"
            raise ToolkitError(f"--python {python} {what}; the toolkit takes {wanted}")
        return os.path.abspath(found)
    names = [sys.executable, *(f"python3.{minor}" for minor in (11, 12, 10, 9, 8)), "python3"]
    for name in names:
        found = shutil.which(name)
        if found is not None and _minor(found) in minors:
            return os.path.abspath(found)
    raise ToolkitError(f"the toolkit takes {wanted}, and none is on the PATH: install one, or name it with --python")


def _minor(python: str) -> int | None:
    code = "import sys; print(*sys.version_info[:2], sys.implementation.name)"
    try:
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
        major, minor, name = done.stdout.split()
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return int(minor) if (major, name) == ("3", "cpython") else None
