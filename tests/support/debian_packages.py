"""Debian packages in a folder, without root and without changing the system: apt uses its own lists.

For programs that build a root to run tests in. They need only the standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def run(*command: str | Path, **more: object) -> str:
    """The command's output; ends the program if it failed."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=False, **more)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}: {' '.join(map(str, command))}\n{done.stdout}")
    return str(done.stdout)


def step(title: str, do: Callable[..., object], *arguments: object) -> None:
    start = time.monotonic()
    print(f"{title} ...", flush=True)
    do(*arguments)
    print(f"{title}: {time.monotonic() - start:.0f} s", flush=True)


def cache_folder(name: str, variable: str) -> Path:
    """The folder that the environment's ``variable`` names, else one below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    chosen = os.environ.get(variable)
    if chosen:
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "ort_rknn" / name


def native() -> str:
    """This machine's architecture, as Debian calls it."""
    return run("dpkg", "--print-architecture").strip()


class Packages:
    """apt with lists, caches and a state of its own in ``folder``, for the first of ``architectures`` by default.

    ``suite`` ("forky") is a release of Debian; without it, packages come from the system's own sources.
    """

    def __init__(self, folder: Path, architectures: Sequence[str], suite: str = "") -> None:
        self.folder = folder
        for name in ("state/lists/partial", "cache/archives/partial", "single"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()  # nothing is installed there, so every dependency is fetched
        self.options = [
            *("-o", f"Dir::State={folder / 'state'}", "-o", f"Dir::State::status={folder / 'status'}"),
            *("-o", f"Dir::Cache={folder / 'cache'}", "-o", "Debug::NoLocking=1", "-o", "Acquire::Languages=none"),
            *("-o", f"APT::Architecture={architectures[0]}", "-o", "Acquire::Retries=3", "-qq"),
        ]
        for architecture in architectures:
            self.options += ["-o", f"APT::Architectures::={architecture}"]
        if suite:
            sources = folder / "sources.list"
            sources.write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main\n")
            self.options += ["-o", f"Dir::Etc::SourceList={sources}", "-o", "Dir::Etc::SourceParts=-"]
        if os.geteuid() == 0:
            self.options += ["-o", "APT::Sandbox::User=root"]  # apt's own user may not write here
        run("apt-get", *self.options, "update")

    def unpack(self, root: Path, names: Sequence[str]) -> None:
        """These packages and all that they depend on, into the new folder ``root``."""
        options = [*self.options, "--download-only", "--no-install-recommends", "-y"]
        run("apt-get", *options, "install", *names)
        root.mkdir()
        for package in sorted((self.folder / "cache/archives").glob("*.deb")):
            run("dpkg-deb", "-x", package, root)

    def unpack_alone(self, root: Path, name: str) -> None:
        """One package, without its dependencies."""
        run("apt-get", *self.options, "download", name, cwd=self.folder / "single")
        (package,) = (self.folder / "single").glob("*.deb")
        run("dpkg-deb", "-x", package, root)
        package.unlink()

    def remove(self) -> None:
        shutil.rmtree(self.folder)
