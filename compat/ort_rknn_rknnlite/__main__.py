"""``python -m ort_rknn_rknnlite program.py arguments``: an unchanged rknnlite program on ort_rknn."""

from __future__ import annotations

import os
import runpy
import sys

from . import install


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise SystemExit("usage: python -m ort_rknn_rknnlite PROGRAM.py [ARGUMENT ...]")
    install()
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
