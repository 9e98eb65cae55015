"""Build a folder in which this machine runs aarch64 programs like a board.

    python tests/aarch64/setup_root.py FOLDER

The folder gets qemu's user-mode emulator, Debian's arm64 Python 3.11, the aarch64 wheels of numpy, onnxruntime, pytest
and rknn-toolkit-lite2, and the virtual NPU compiled for aarch64 where a board has its ``librknnrt.so``. ``run.py`` runs
programs in it. A complete folder that was built by the same version of this file is kept.

Needs Python 3.11 or later, Debian 12 (or another system whose apt knows python3.11 for arm64), apt-get, dpkg-deb, pip
and ziglang; no root, no binfmt_misc, no change to the system: apt uses its own lists and folders. Nothing downloaded
here enters the repository; the vendor's package stays under the vendor's license.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import IO, Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests"))

from support import debian_packages  # noqa: E402
from support.debian_packages import Packages, native, run, step  # noqa: E402

PYTHON = "3.11"
SOC = "rk3588"
NPU_LIBRARY = "usr/lib/librknnrt.so"

#: Debian packages of the root, without their dependencies.
DEBIAN = ("python3.11", "libstdc++6", "libgomp1")
EMULATOR = "qemu-user-static"

#: setuptools 81 warns of, and 82 lacks, the pkg_resources that rknn-toolkit-lite2 2.5.0 looks its own version up with.
WHEELS = (
    "rknn-toolkit-lite2==2.5.0",
    "setuptools<81",
    "onnxruntime",
    "numpy",
    "pluggy",
    *("onnx", "pytest", "pytest-timeout", "pytest-rerunfailures"),
)
#: Folders of the root that a program must not find the host's in.
EMPTY = ("tmp", "sys/class/drm", "sys/module", "sys/bus/platform/devices", "root", "dev/dri")

#: One core of an RK3588 as /proc/cpuinfo shows it. onnxruntime reads this file, and cannot make sense of an x86 one.
CPU = (
    "processor\t: {}\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x2\nCPU part\t: 0xd05\nCPU revision\t: 0\n\n"
)

#: qemu 7.2 looks below the root for every path but that of access().
ACCESS = """\
import os

ROOT = {root!r}
real_access = os.access


def access(path, mode, **more):
    below = ROOT + os.fspath(path) if isinstance(path, (str, os.PathLike)) and os.path.isabs(path) else path
    return real_access(below if os.path.lexists(below) else path, mode, **more)


os.access = access
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to build it; made if need be")
    folder = parser.parse_args().folder.absolute()
    build(folder).close()


def build(folder: Path) -> IO[str]:
    """Build everything in ``folder``, unless it already exists. The virtual NPU is compiled every time.

    Returns the folder's lock. A caller that runs programs there keeps it open meanwhile: another checkout would
    overwrite the virtual NPU that they have loaded, which ends them with a bus error.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "made-by"
    if any(folder.iterdir()) and not (folder / "lock").exists():
        raise SystemExit(f"{folder} is not empty and was not made by this program: give another folder")
    lock = open(folder / "lock", "w")  # noqa: SIM115  # given to the caller; it goes with the process at the latest
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder} is in use by another run: waiting (ORT_RKNN_AARCH64 names another folder) ...", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    texts = Path(__file__).read_bytes() + Path(debian_packages.__file__).read_bytes()
    made_by = hashlib.sha256(texts).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == made_by):
        for path in folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        step("packages of Debian", unpack_debian, folder)
        step("wheels for aarch64", install_wheels, folder)
        step("what a board shows of itself", write_board, folder / "root")
        write_python(folder)
        stamp.write_text(made_by)
    step("the virtual NPU for aarch64", compile_npu, folder)
    write_metadata(folder)
    step("a first run", check, folder)
    return lock


def unpack_debian(folder: Path) -> None:
    """The emulator for this machine and the root for aarch64, from the system's own package sources."""
    packages = Packages(folder / "apt", ["arm64", native()])
    packages.unpack(folder / "root", [f"{name}:arm64" for name in DEBIAN])
    packages.unpack_alone(folder / "emulator", f"{EMULATOR}:{native()}")
    packages.remove()


def install_wheels(folder: Path) -> None:
    """Wheels only, for the root's Python: nothing is built, and nothing of this machine is looked at."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--target", str(folder / "site"), "--only-binary=:all:", "--no-compile"]
    command += ["--python-version", PYTHON, "--implementation", "cp"]
    for abi in ("cp" + PYTHON.replace(".", ""), "abi3", "none"):
        command += ["--abi", abi]
    for minor in range(36, 16, -1):  # Debian 12 has glibc 2.36
        command += ["--platform", f"manylinux_2_{minor}_aarch64"]
    command += ["--platform", "manylinux2014_aarch64"]
    run(*command, *WHEELS)


def write_board(root: Path) -> None:
    """The files by which programs know an RK3588 board."""
    for name in EMPTY:
        (root / name).mkdir(parents=True, exist_ok=True)
    texts = {
        "proc/device-tree/compatible": "radxa,rock-5b\0rockchip,rk3588\0",
        "proc/cpuinfo": "".join(map(CPU.format, range(8))),
        "dev/dri/renderD129": "",
    }
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_python(folder: Path) -> None:
    """``python`` of the folder: a script, so that the emulated Python can start itself again without binfmt_misc."""
    script = folder / "python"
    script.write_text(
        "#!/bin/sh\n"
        "# Python for aarch64, under qemu. Paths are looked up below root/ first.\n"
        f"here='{folder}'\n"
        f"export PYTHONHOME=/usr PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1\n"
        f'exec "$here/emulator/usr/bin/qemu-aarch64-static" -L "$here/root" -0 "$here/python" '
        f'"$here/root/usr/bin/python{PYTHON}" "$@"\n'
    )
    script.chmod(0o755)
    (folder / "site/sitecustomize.py").write_text(ACCESS.format(root=str(folder / "root")))


def write_metadata(folder: Path) -> None:
    """Write the metadata of an installed package for the checkout: its plugins are found through entry points."""
    import tomllib  # Python 3.11 and later; the rest of this file is also read by older ones

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    info = folder / "site" / "ort_rknn-0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n")
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def compile_npu(folder: Path) -> None:
    """The virtual NPU as the board's library, and again in a cache where device="virtual:rk3588" finds it."""
    build = virtual_npu_build()
    library = folder / "root" / NPU_LIBRARY
    cache = folder / "cache/ort_rknn/virtual"
    library.parent.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        code = "import sysconfig; print(sysconfig.get_config_var('MULTIARCH'))"
        machine = run(folder / "python", "-c", code, env={"PATH": ""}).strip()
        build.sysconfig.get_config_var = lambda name: machine  # the name is made for the machine that asks
        for file in cache.glob("*.so"):
            file.unlink()
        for soc in build.SOC_CORES:
            fresh = Path(scratch) / f"{soc}.so"
            build.build(soc, fresh, "aarch64-linux-gnu.2.28")
            for target in (cache / f"{build._stem(soc)}-cross.so", *((library,) if soc == SOC else ())):
                shutil.copyfile(fresh, target)
                target.chmod(0o700)
    for made in (cache.parent, cache):
        made.chmod(0o700)


def virtual_npu_build() -> Any:
    """``ort_rknn_virtual._build``, without what its packages import: this program needs the standard library only."""
    for name, place in (("ort_rknn", PROJECT), ("ort_rknn_virtual", PROJECT / "adapters")):
        package = types.ModuleType(name)
        package.__path__ = [str(place / name)]
        sys.modules[name] = package
    return importlib.import_module("ort_rknn_virtual._build")


def check(folder: Path) -> None:
    code = "import platform, onnxruntime, numpy; print(platform.machine(), onnxruntime.__version__, numpy.__version__)"
    environ = {"PYTHONPATH": str(folder / "site"), "PATH": ""}
    print(run(folder / "python", "-c", code, env=environ).strip(), flush=True)


if __name__ == "__main__":
    main()
