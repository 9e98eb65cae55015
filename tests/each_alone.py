"""Runs each test file in its own process: no file may depend on another.

    python tests/each_alone.py [FILE OR FOLDER ...] [-- PYTEST ARGUMENTS]

``tox -e alone`` runs it on all of them, which takes a quarter of an hour.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
#: They have their own environments.
LEFT_OUT = ("convert", "cluster")
NO_TESTS_COLLECTED = 5


def files(given: list[str]) -> list[Path]:
    """The files of tests in ``given``, or all."""
    roots = [Path(name).resolve() for name in given] or [TESTS]
    found = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("test_*.py")))]
    return [path for path in found if given or path.parent.name not in LEFT_OUT]


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    given, more = arguments[:cut], arguments[cut + 1 :]
    failed = []
    for path in files(given):
        start = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", *more, str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=TESTS.parent)
        good = done.returncode in (0, NO_TESTS_COLLECTED)
        print(
            f"{'passed' if good else 'FAILED'}  {path.relative_to(TESTS)}  {time.monotonic() - start:.0f} s", flush=True
        )
        if not good:
            failed.append(path)
            print(done.stdout, flush=True)
    print(f"{len(failed)} files failed alone" + "".join(f"\n  {path.relative_to(TESTS)}" for path in failed))
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
