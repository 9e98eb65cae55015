"""Run tests on an emulated board: aarch64, an RK3588 by its files, and the vendor's real rknn-toolkit-lite2.

    python tests/aarch64/run.py                    what CI runs
    python tests/aarch64/run.py tests/adapters -k find    other tests, as pytest takes them
    python tests/aarch64/run.py --python -c ...    anything else in that Python

The environment is created below ``$XDG_CACHE_HOME/ort_rknn/aarch64`` (else ``~/.cache``) on the first run, in two to
four minutes, by ``setup_root.py``, which lists its requirements. ``ORT_RKNN_AARCH64`` names another folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import setup_root
from support.debian_packages import cache_folder

PROJECT = setup_root.PROJECT
ADAPTERS = "tests/adapters"
COMPAT = "tests/compat"

#: What CI runs, as pytest takes it: the real package, the board's own runtime through our adapter, the provider.
SELECTION = (
    ("tests/aarch64/check_board.py",),
    (f"{ADAPTERS}/test_lite2_run.py", f"{ADAPTERS}/test_lite2_session.py", f"{ADAPTERS}/test_lite2_logging.py"),
    (
        f"{ADAPTERS}/test_librknnrt_run.py",
        f"{ADAPTERS}/test_librknnrt_model.py",
        f"{ADAPTERS}/test_librknnrt_structs.py",
    ),
    (
        "tests/test_real_models.py",
        f"{COMPAT}/test_rknnlite.py",
        f"{COMPAT}/test_rknnlite_cores.py",
        f"{COMPAT}/test_rknnlite_errors.py",
        f"{COMPAT}/test_rknnlite_against_vendor.py",
        f"{COMPAT}/test_rknnlite_programs.py",
    ),
)


def environment(folder: Path) -> dict[str, str]:
    """Only the board's variables; no PATH, so that the host's compilers are not found."""
    paths = [folder / "site", PROJECT, PROJECT / "adapters", PROJECT / "compat"]
    return {
        "PATH": "",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "RKNNLITE_UNDER_TEST": "real",
    }


def main() -> None:
    start = time.monotonic()
    folder = cache_folder("aarch64", "ORT_RKNN_AARCH64")
    _lock = setup_root.build(folder)  # held to the end
    arguments = sys.argv[1:]
    python = str(folder / "python")
    if arguments[:1] == ["--python"]:
        raise SystemExit(subprocess.call([python, *arguments[1:]], env=environment(folder), cwd=PROJECT))
    failed = 0
    for group in (arguments,) if arguments else SELECTION:
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "timeout=600", *group]
        print(f"\n{' '.join(group)} [{time.monotonic() - start:.0f} s]", flush=True)
        failed |= subprocess.call(command, env=environment(folder), cwd=PROJECT)
    print(f"aarch64: {time.monotonic() - start:.0f} s in all", flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
