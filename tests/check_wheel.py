"""Builds sdist and wheel, inspects them, and tests the installed wheel outside the checkout.

    python tests/check_wheel.py [PYTEST ARGUMENTS]

Needs the package `build`. The wheel is built from the sdist, and the sdist's tests run in a folder without sources, so
that a file missing from either is noticed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Enough to see that everything was packed: the public module, real models, a virtual NPU made from the packed sources.
SMOKE = (
    "tests/test_package.py",
    "tests/test_docs.py",
    "tests/test_session_cpu.py",
    "tests/test_session_cpu_fallback.py",
    "tests/test_session_cpu_additions.py",
    "tests/test_session_cpu_errors.py",
    "tests/test_session_npu.py",
    "tests/test_session_npu_cores.py",
    "tests/test_session_npu_fallback.py",
    "tests/test_session_npu_life.py",
    "tests/test_session_npu_options.py",
    "tests/test_real_models.py",
    "tests/files",
)
#: What a wheel of ours may contain. A library, an archive or a vendor's header is not allowed.
SUFFIXES = {".py", ".pyi", ".c", ".h", ".typed"}
#: The self-test's models, small ones.
MODELS = {f"ort_rknn/_selftest/models/{p.name}" for p in (ROOT / "ort_rknn/_selftest/models").iterdir()}
OUR_HEADERS = {"context.h", "convert.h", "literal.h", "machine.h", "model.h", "ports.h", "rknn_abi.h", "rknn_virtual.h"}


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="ort-rknn-wheel-") as scratch:
        folder = Path(scratch)
        built = folder / "dist"
        run(sys.executable, "-m", "build", "--outdir", built, ROOT, cwd=folder)
        (wheel,) = built.glob("*.whl")
        (sdist,) = built.glob("*.tar.gz")
        check_wheel(wheel)
        unpacked = unpack(sdist, folder / "sdist")
        check_sdist(unpacked)
        for sources in ("ort_rknn", "adapters", "compat"):
            shutil.rmtree(unpacked / sources)
        python = folder / "venv" / "bin" / "python"
        run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        run(python, "-m", "pip", "install", "-q", f"{wheel}[test]", cwd=folder)
        run(python, "-m", "pip", "check", cwd=folder)
        where = "import ort_rknn, ort_rknn_virtual; print(ort_rknn.__file__, ort_rknn_virtual.__file__, sep='\\n')"
        for path in run(python, "-c", where, cwd=folder, capture=True).split():
            assert Path(path).is_relative_to(folder / "venv"), f"{path} is not the installed one"
        run(folder / "venv" / "bin" / "ort-rknn", "--version", cwd=folder)
        run(folder / "venv" / "bin" / "pytest", *(arguments or SMOKE), cwd=unpacked)


def check_wheel(path: Path) -> None:
    """Raises AssertionError, saying what is wrong."""
    assert path.name.endswith("-py3-none-any.whl"), path.name
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        wheel = Parser().parsestr(archive.read(f"{info}/WHEEL").decode())
    assert wheel["Root-Is-Purelib"] == "true", wheel["Root-Is-Purelib"]
    assert metadata["License-Expression"] == "Apache-2.0", metadata["License-Expression"]
    assert any(name.startswith(info) and name.endswith("/LICENSE") for name in names), "no LICENSE"
    ours = [name for name in names if not name.startswith(info)]
    packages = {name.split("/")[0] for name in ours}
    assert packages == expected_packages(), f"packages {sorted(packages)}, not {sorted(expected_packages())}"
    for package in packages:
        assert f"{package}/py.typed" in ours, f"{package} has no py.typed"
    for name in ours:
        if name in MODELS:
            continue
        assert Path(name).suffix in SUFFIXES or Path(name).name == "py.typed", f"{name} does not belong into a wheel"
        assert Path(name).suffix != ".h" or Path(name).name in OUR_HEADERS, f"{name} is not a header of ours"
        assert "tests" not in Path(name).parts and "__pycache__" not in Path(name).parts, name
    on_disk = {f"ort_rknn_virtual/c/{p.name}" for p in (ROOT / "adapters/ort_rknn_virtual/c").glob("*.[ch]")}
    assert on_disk and on_disk <= set(ours), f"missing: {sorted(on_disk - set(ours))}"
    assert MODELS and set(ours) >= MODELS, f"missing: {sorted(MODELS - set(ours))}"
    assert sum(p.stat().st_size for p in (ROOT / "ort_rknn/_selftest/models").iterdir()) < 300_000
    print(f"{path.name}: {len(ours)} files in {', '.join(sorted(packages))}")


def expected_packages() -> set[str]:
    """The packages of the checkout: ort_rknn and those in the two source roots."""
    found = {"ort_rknn"}
    for root in ("adapters", "compat"):
        found |= {p.parent.name for p in (ROOT / root).glob("*/__init__.py")}
        found |= {p.stem for p in (ROOT / root).glob("*.py")}
    return found


def check_sdist(unpacked: Path) -> None:
    """Raises AssertionError, saying what is wrong."""
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "tox.ini", ".ci/run", "tests", "docs"):
        assert (unpacked / name).exists(), f"the sdist has no {name}"
    for path in unpacked.rglob("*"):
        assert path.suffix not in {".so", ".whl", ".pyc"}, f"{path.name} does not belong into an sdist"


def unpack(sdist: Path, into: Path) -> Path:
    """Unpack an sdist; returns its top folder."""
    with tarfile.open(sdist) as archive:
        archive.extractall(into, filter="data")
    (folder,) = into.iterdir()
    return folder


def run(*command: str | Path, cwd: Path, capture: bool = False) -> str:
    """Run a command that must succeed. Nothing of this process's Python environment reaches it."""
    print("$", *command, flush=True)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environ, check=True, text=True,
                          stdout=subprocess.PIPE if capture else None)  # fmt: skip
    return done.stdout if capture else ""


if __name__ == "__main__":
    main(sys.argv[1:])
