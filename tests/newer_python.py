"""Run the tests on Python 3.14 even if it is not installed: Debian's package is unpacked into a folder.

    python tests/newer_python.py                      all but speed, stress and C compilers, as CI on other versions
    python tests/newer_python.py tests/ep -k seam     other tests, as pytest takes them
    python tests/newer_python.py --python -c ...      anything else in that Python

The interpreter and its C library come from Debian's next release, because the C library of this system may be too old.
patchelf makes the program use the loader in its own folder, so that it works like any other interpreter: it can create
environments, and start itself and other programs. This Python's pip installs the packages there. Everything is stored
below ``$XDG_CACHE_HOME/ort_rknn/python3.14`` (else ``~/.cache``); ``ORT_RKNN_PYTHON314`` names another folder. It takes
a minute, and about 700 MB.

Needs Debian 12 or later on x86_64 or aarch64, apt-get, dpkg-deb, pip and patchelf; no root, no change to the system.
Debian has no build without the GIL.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

from support.debian_packages import Packages, cache_folder, native, run, step

PROJECT = Path(__file__).resolve().parents[1]
PYTHON = "python3.14"
#: The release of Debian that has it.
SUITE = "forky"
PACKAGES = (PYTHON, "libstdc++6", "libgomp1")
LOADERS = {"amd64": "ld-linux-x86-64.so.2", "arm64": "ld-linux-aarch64.so.1"}
#: What a version of Python cannot change.
LEFT_OUT = ("test_benchmarks.py", "soak", "adapters/test_virtual_build.py", "adapters/test_virtual_files.py")


def main() -> None:
    folder = cache_folder(PYTHON, "ORT_RKNN_PYTHON314")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another checkout would install itself in place of this one
        python = build(folder)
        arguments = sys.argv[1:]
        if arguments[:1] == ["--python"]:
            raise SystemExit(subprocess.call([python, *arguments[1:]], cwd=PROJECT))
        arguments = arguments or [f"--ignore=tests/{name}" for name in LEFT_OUT]
        # Not "-m pytest", and the environment's own commands first: as in an environment of tox.
        path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
        command = [str(python.parent / "pytest"), *arguments]
        raise SystemExit(subprocess.call(command, cwd=PROJECT, env={**os.environ, "PATH": path}))


def build(folder: Path) -> Path:
    """An environment of that Python with this checkout and all that its tests need; returns its ``python``."""
    environment = folder / "venv"
    python = environment / "bin" / "python"
    if not python.exists():
        for name in ("root", "packages", "venv"):
            shutil.rmtree(folder / name, ignore_errors=True)
        step(f"{PYTHON} of Debian {SUITE}", unpack, folder)
        run(folder / "root/usr/bin" / PYTHON, "-m", "venv", "--without-pip", environment)
    step("packages for it", install, python)
    print(run(python, "-c", "import sys, onnxruntime; print(sys.version, onnxruntime.__version__)").strip(), flush=True)
    return python


def unpack(folder: Path) -> None:
    packages = Packages(folder / "packages", [native()], SUITE)
    packages.unpack(folder / "root", PACKAGES)
    packages.remove()
    (loader,) = {path.resolve() for path in (folder / "root/usr").glob(f"lib*/**/{LOADERS[native()]}")}
    patch = ["--set-interpreter", str(loader), "--force-rpath", "--set-rpath", str(loader.parent)]
    run("patchelf", *patch, folder / "root/usr/bin" / PYTHON)


def install(python: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--editable", f"{PROJECT}[test,virtual]")


if __name__ == "__main__":
    main()
