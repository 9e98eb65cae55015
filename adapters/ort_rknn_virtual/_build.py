"""Compiles the virtual NPU on first use, into the user's cache.

The library is plain C on libc, so any C compiler will do: ``$CC``, cc, gcc, clang, or zig's from the package
``ziglang``. The file name contains a hash of everything it depends on, so a stale library is never used. Compilers are
run, and libraries loaded, only from places that only root and this user can change, and never from the working
directory.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import site
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ort_rknn.adapter import SOC_CORES, AdapterError, why_unsafe
from ort_rknn.adapter import cache_folder as users_cache

from ._abi import open_for, remember

_SOURCE = Path(os.path.abspath(__file__)).parent / "c"
_FLAGS = (
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O3",
    "-ffp-contract=off",  # so that aarch64 rounds like x86_64
    "-fvisibility=hidden",
    "-fPIC",
    "-shared",
    "-pthread",
)
#: zig checks for undefined behavior by default, but does not link the runtime for the checks into a shared library.
_ZIG_FLAGS = ("-fno-sanitize=undefined",)
_SECONDS = 300

REMEDY = (
    "Install a C compiler (Debian, Ubuntu: apt install gcc libc6-dev), "
    "or take one from the package index: pip install 'ort-rknn[virtual]'."
)


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler: the command with its absolute path, an identifier of its version, and whether it is zig's."""

    command: tuple[str, ...]
    identity: str
    zig: bool = False

    @property
    def name(self) -> str:
        """For messages: "/usr/bin/gcc"."""
        return shlex.join(self.command)


def find_compiler(*, zig_only: bool = False) -> Compiler | None:
    """The compiler that would be used, without running it: ``$CC``, cc, gcc, clang, ziglang; None if there is none.

    Raises AdapterError if ``$CC`` names a command that does not exist, or one that others can change: the user asked
    for it, so it is not replaced.
    """
    if not zig_only:
        chosen = os.environ.get("CC", "").strip()
        for text in (chosen,) if chosen else ("cc", "gcc", "clang"):
            try:
                words = shlex.split(text) if chosen else [text]
            except ValueError as error:
                raise AdapterError(f"the environment variable CC is {chosen!r}, no command: {error}") from error
            found = _command(words[0]) if words else None
            problem = why_unsafe(found) if found else None
            if found and problem is None:
                status = os.stat(found)
                identity = f"{os.path.realpath(found)} {words[1:]} {status.st_size} {status.st_mtime_ns}"
                return Compiler((found, *words[1:]), identity)
            if chosen and problem is not None:
                raise AdapterError(
                    f"the environment variable CC is {chosen!r}, and {problem}, so others could exchange what is run. "
                    "Name another compiler, or unset it."
                )
        if chosen:
            raise AdapterError(
                f"the environment variable CC is {chosen!r}, and there is no such command at an absolute path or in an "
                "absolute folder of PATH. Correct or unset it."
            )
    zig = _find_zig()
    if zig is None:
        return None
    return Compiler((zig, "cc"), f"{zig} {os.stat(zig).st_mtime_ns}", zig=True)


def _search_path() -> str:
    """PATH without relative entries, which refer to the working directory."""
    return os.pathsep.join(p for p in os.environ.get("PATH", "").split(os.pathsep) if os.path.isabs(p))


def _command(name: str) -> str | None:
    """A command's absolute path; None if it does not exist, or is relative."""
    if os.path.dirname(name) and not os.path.isabs(name):
        return None
    return shutil.which(name, path=_search_path())


def _find_zig() -> str | None:
    """The program of the package ``ziglang``, or None. Found without importing it, which would search the working
    directory first.

    The interpreter's own package folders are trusted: this process already runs code from them. Other entries of
    ``sys.path`` must be safe, and not the working directory.
    """
    if sys.modules.get("ziglang", _find_zig) is None:
        return None  # the program has blocked its import
    own = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    if site.ENABLE_USER_SITE:
        own.add(site.getusersitepackages())
    here = os.path.realpath(os.getcwd()) if _has_working_directory() else None
    for folder in sys.path:
        zig = os.path.join(folder, "ziglang", "zig")
        if not os.path.isabs(folder) or not os.path.isfile(zig) or not os.access(zig, os.X_OK):
            continue
        if folder in own or (os.path.realpath(folder) != here and why_unsafe(zig) is None):
            return zig
    return None


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except OSError:  # it was deleted
        return False
    return True


def cache_folder() -> Path:
    """The folder of the libraries: ``$XDG_CACHE_HOME/ort_rknn/virtual``, else below ``~/.cache``. Creates nothing."""
    cache = users_cache()
    if cache is None:
        raise AdapterError("there is no home folder for a cache. Set XDG_CACHE_HOME to a folder.")
    return cache / "virtual"


def cached(soc: str) -> Path | None:
    """The library for ``soc`` that is in the cache and would be used, or None. Writes nothing.

    One compiled by root, for example in an image, is accepted. If there is no compiler, or the folder cannot be
    written, one that another compiler made from the same sources is used. Raises AdapterError if another user can
    change the content of the folder, or if it cannot be read.
    """
    check_soc(soc)
    folder = cache_folder()
    asked = (soc, str(folder), os.environ.get("CC"), os.environ.get("PATH"))
    known = open_for(asked)
    try:
        if known is not None:
            # This process uses it already: no need to find the compiler again, but who can change the file may differ.
            _check_folder(folder)
            if _is_safe(Path(known)):
                return Path(known)
        found = _cached(soc, folder)
    except OSError as error:
        raise _closed(folder, error) from error
    if found is not None:
        remember(str(found), asked)
    return found


def _cached(soc: str, folder: Path) -> Path | None:
    compiler = find_compiler()
    if not folder.is_dir():
        return None
    _check_folder(folder)
    found = []
    if compiler is not None:
        found = [path for path in (folder / _file_name(soc, compiler),) if _is_safe(path)]
    if not found and (compiler is None or not os.access(folder, os.W_OK)):
        found = [path for path in folder.glob(f"{_stem(soc)}-*.so") if _is_safe(path)]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def check_room() -> None:
    """Raise AdapterError if :func:`library` could not store a library that it compiled. Writes nothing."""
    folder = cache_folder()
    try:
        there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not there.is_dir():
            raise AdapterError(f"the virtual NPU cannot be kept in {folder}: {there} is not a folder. {_REMEDY_CACHE}")
        if not os.access(there, os.W_OK | os.X_OK):
            raise AdapterError(f"the virtual NPU cannot be kept in {folder}: {there} is closed to you. {_REMEDY_CACHE}")
        if there == folder:
            _check_folder(folder)
        elif (problem := why_unsafe(there)) is not None:
            raise _unsafe(folder, problem)
    except OSError as error:
        raise _closed(folder, error) from error


def library(soc: str) -> Path:
    """The virtual NPU's library for ``soc``, compiled if it is not in the cache yet (about two seconds).

    Safe against concurrent compilation by other processes. Raises AdapterError for an unknown SoC, if there is no
    compiler, if compiling fails, and if another user can change the content of the cache folder.
    """
    check_soc(soc)
    folder = cache_folder()
    found = cached(soc)
    if found is not None:
        return found
    compiler = find_compiler()
    if compiler is None:
        raise AdapterError(f"the virtual NPU has to be compiled, and there is no C compiler. {REMEDY}")
    try:
        # Readable by others: what root compiles in an image may be used by whoever runs the image.
        for made in (folder.parent, folder):
            made.mkdir(mode=0o755, parents=True, exist_ok=True)
        _check_folder(folder)
        with _lock(folder):
            wanted = folder / _file_name(soc, compiler)
            if not _is_safe(wanted):
                with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
                    fresh = Path(scratch) / "library.so"
                    _compile(compiler, soc, fresh, None)
                    fresh.chmod(stat.S_IMODE(fresh.stat().st_mode) & ~0o022)
                    fresh.replace(wanted)
            return wanted
    except OSError as error:
        raise _closed(folder, error) from error


def build(soc: str, out: str | os.PathLike[str], target: str | None = None) -> None:
    """Compile the library for ``soc`` to the file ``out``.

    ``target`` compiles for another machine with zig, in zig's naming: "aarch64-linux-gnu", optionally with a glibc
    version: "aarch64-linux-gnu.2.31". Raises AdapterError like :func:`library`.
    """
    check_soc(soc)
    compiler = find_compiler(zig_only=target is not None)
    if compiler is None:
        if target is not None:
            raise AdapterError(f"compiling for {target} takes zig: pip install 'ort-rknn[virtual]'")
        raise AdapterError(f"the virtual NPU has to be compiled, and there is no C compiler. {REMEDY}")
    _compile(compiler, soc, Path(out), target)


def check_soc(soc: str) -> None:
    """Raise AdapterError unless the virtual NPU can be this SoC."""
    if soc not in SOC_CORES:
        raise AdapterError(f"the virtual NPU cannot be {soc!r}; it can be {', '.join(SOC_CORES)}")


def _stem(soc: str) -> str:
    content = _sources(_SOURCE).copy()
    content.update(repr((_FLAGS, _ZIG_FLAGS, soc)).encode())
    machine = sysconfig.get_config_var("MULTIARCH") or platform.machine()
    return f"{soc}-{machine}-{content.hexdigest()[:16]}"


@functools.cache
def _sources(folder: Path) -> Any:
    """A hash of the sources, computed once: they belong to the package, which does not change while it runs."""
    content = hashlib.sha256()
    for path in sorted(folder.glob("*.[ch]")):
        content.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return content


def _file_name(soc: str, compiler: Compiler) -> str:
    return f"{_stem(soc)}-{hashlib.sha256(compiler.identity.encode()).hexdigest()[:8]}.so"


def _is_safe(path: Path) -> bool:
    """Whether a library may be loaded. Its folder was checked before."""
    try:
        return stat.S_ISREG(path.lstat().st_mode) and os.access(path, os.R_OK) and why_unsafe(path) is None
    except OSError:
        return False


_REMEDY_CACHE = "Set XDG_CACHE_HOME to a folder of yours."


def _check_folder(folder: Path) -> None:
    """Check the folder: code is loaded from it, so only root and this user may be able to write to it. Raises OSError
    if a folder on its path cannot be accessed."""
    for path in (folder.parent, folder):
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise AdapterError(f"the cache folder {path} is not a folder (a link does not count). Remove it.")
    problem = why_unsafe(folder)
    if problem is not None:
        raise _unsafe(folder, problem)


def _unsafe(folder: Path, problem: str) -> AdapterError:
    return AdapterError(
        f"the virtual NPU would be loaded from {folder}, but {problem}. {_REMEDY_CACHE} Or make everything on the way "
        "to it yours or root's, and writable for its owner alone (chmod go-w)."
    )


def _closed(folder: Path, error: OSError) -> AdapterError:
    return AdapterError(f"the virtual NPU cannot be kept in {folder}: {error}. {_REMEDY_CACHE}")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One compilation at a time; the lock is released when the process that holds it ends."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compile(compiler: Compiler, soc: str, out: Path, target: str | None) -> None:
    command = [*compiler.command, *_FLAGS, *(_ZIG_FLAGS if compiler.zig else ())]
    if target is not None:
        command += ["-target", target]
    out = Path(os.path.abspath(out))
    command += [f'-DVIRTUAL_SOC="{soc}"', *map(str, sorted(_SOURCE.glob("*.c"))), "-o", str(out), "-lm"]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            cwd=out.parent,
            # A compiler runs an assembler and a linker, which it also looks up in PATH.
            env={**os.environ, "PATH": _search_path()},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AdapterError(f"the C compiler {compiler.name} cannot be run: {error}. {REMEDY}") from error
    if done.returncode:
        output = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise AdapterError(
            f"the C compiler {compiler.name} failed ({done.returncode}) on the virtual NPU: {output}\n{REMEDY}"
        )
