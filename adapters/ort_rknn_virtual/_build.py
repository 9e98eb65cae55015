"""Compiles the virtual NPU on first use, into the user's cache.

The library is plain C on libc, so any C compiler does: ``$CC``, cc, gcc, clang, or zig's from the package ``ziglang``.
The file's name holds a hash of everything that it depends on, so a stale one is never taken.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ort_rknn.adapter import SOC_CORES, AdapterError

_SOURCE = Path(__file__).parent / "c"
_FLAGS = (
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O3",
    "-ffp-contract=off",  # so that aarch64 rounds as x86_64 does
    "-fvisibility=hidden",
    "-fPIC",
    "-shared",
    "-pthread",
)
#: zig checks for undefined behaviour by default, and links no runtime for the checks into a shared library.
_ZIG_FLAGS = ("-fno-sanitize=undefined",)
_SECONDS = 300

REMEDY = (
    "Install a C compiler (Debian, Ubuntu: apt install gcc libc6-dev), "
    "or take one from the package index: pip install 'ort-rknn[virtual]'."
)


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler: the command's beginning, what identifies its version, and whether it is zig's."""

    command: tuple[str, ...]
    identity: str
    zig: bool = False

    @property
    def name(self) -> str:
        """For messages: "/usr/bin/gcc", "python -m ziglang cc"."""
        return "python -m ziglang cc" if self.zig else shlex.join(self.command)


def find_compiler(*, zig_only: bool = False) -> Compiler | None:
    """The compiler that would be used, without running it: ``$CC``, cc, gcc, clang, ziglang; None if there is none.

    Raises AdapterError where ``$CC`` names a command that is not there: it was meant, so nothing replaces it.
    """
    if not zig_only:
        chosen = os.environ.get("CC", "").strip()
        for text in (chosen,) if chosen else ("cc", "gcc", "clang"):
            try:
                words = shlex.split(text)
            except ValueError as error:
                raise AdapterError(f"the environment variable CC is {chosen!r}, no command: {error}") from error
            found = shutil.which(words[0]) if words else None
            if found:
                status = os.stat(found)
                identity = f"{os.path.realpath(found)} {words[1:]} {status.st_size} {status.st_mtime_ns}"
                return Compiler((found, *words[1:]), identity)
        if chosen:
            raise AdapterError(
                f"the environment variable CC is {chosen!r}, and there is no such command. Correct or unset it."
            )
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        return None
    identity = f"{spec.origin} {os.stat(spec.origin).st_mtime_ns}"
    return Compiler((sys.executable, "-m", "ziglang", "cc"), identity, zig=True)


def cache_folder() -> Path:
    """Where libraries are kept: ``$XDG_CACHE_HOME/ort_rknn/virtual``, else below ``~/.cache``. Creates nothing."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError as error:
        raise AdapterError("there is no home folder for a cache. Set XDG_CACHE_HOME to a folder.") from error
    return root / "ort_rknn" / "virtual"


def cached(soc: str) -> Path | None:
    """The library for ``soc`` that is in the cache already and would be used, or None. Writes nothing.

    Where there is no compiler, one that any other compiler made of the same sources is taken. Raises AdapterError where
    the folder that it is in belongs to, or is writable for, somebody else.
    """
    check_soc(soc)
    folder = cache_folder()
    compiler = find_compiler()
    if compiler is not None:
        exact = folder / _file_name(soc, compiler)
        found = [exact] if _is_ours(exact) else []
    else:
        found = [path for path in folder.glob(f"{_stem(soc)}-*.so") if _is_ours(path)]
    if not found:
        return None
    _check_folder(folder)
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def library(soc: str) -> Path:
    """The virtual NPU's library for ``soc``, compiled if it is not in the cache yet (about two seconds).

    Safe against other processes that do the same at the same time. Raises AdapterError for an unknown SoC, where there
    is no compiler, where it fails, and where the cache folder belongs to, or is writable for, somebody else.
    """
    check_soc(soc)
    compiler = find_compiler()
    folder = cache_folder()
    if folder.exists():
        _check_folder(folder)
        found = cached(soc)
        if found is not None:
            return found
    if compiler is None:
        raise AdapterError(f"the virtual NPU has to be compiled, and there is no C compiler. {REMEDY}")
    try:
        for made in (folder.parent, folder):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(folder)
        with _lock(folder):
            wanted = folder / _file_name(soc, compiler)
            if not _is_ours(wanted):
                with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
                    fresh = Path(scratch) / "library.so"
                    _compile(compiler, soc, fresh, None)
                    fresh.chmod(0o700)
                    fresh.replace(wanted)
            return wanted
    except OSError as error:
        raise AdapterError(
            f"the virtual NPU cannot be kept in {folder}: {error}. Set XDG_CACHE_HOME to a folder of yours."
        ) from error


def build(soc: str, out: str | os.PathLike[str], target: str | None = None) -> None:
    """Compile the library for ``soc`` to the file ``out``.

    ``target`` compiles for another machine with zig, which names them like "aarch64-linux-gnu" (a glibc version may
    follow: "aarch64-linux-gnu.2.31"). Raises AdapterError like :func:`library`.
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
    content = hashlib.sha256()
    for path in sorted(_SOURCE.glob("*.[ch]")):
        content.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    content.update(repr((_FLAGS, _ZIG_FLAGS, soc)).encode())
    machine = sysconfig.get_config_var("MULTIARCH") or platform.machine()
    return f"{soc}-{machine}-{content.hexdigest()[:16]}"


def _file_name(soc: str, compiler: Compiler) -> str:
    return f"{_stem(soc)}-{hashlib.sha256(compiler.identity.encode()).hexdigest()[:8]}.so"


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _check_folder(folder: Path) -> None:
    """Code is loaded from here, so nobody else may be able to put any there."""
    for path in (folder.parent, folder):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise AdapterError(f"the cache folder {path} is not a folder (a link does not count). Remove it.")
        if status.st_uid != os.geteuid():
            raise AdapterError(
                f"the cache folder {path} belongs to user {status.st_uid}, and code is loaded from it. "
                "Set XDG_CACHE_HOME to a folder of yours."
            )
        if status.st_mode & 0o022:
            raise AdapterError(
                f"the cache folder {path} is writable for others (mode {stat.S_IMODE(status.st_mode):04o}), "
                f"and code is loaded from it. Remove it, or: chmod go-w '{path}'"
            )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One compilation at a time; the lock goes with the process that holds it."""
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
    command += [f'-DVIRTUAL_SOC="{soc}"', *map(str, sorted(_SOURCE.glob("*.c"))), "-o", str(out), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AdapterError(f"the C compiler {compiler.name} cannot be run: {error}. {REMEDY}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise AdapterError(
            f"the C compiler {compiler.name} failed ({done.returncode}) on the virtual NPU: {said}\n{REMEDY}"
        )
