"""``python -m ort_rknn``: the command line, see :mod:`ort_rknn._cli.main`."""

from __future__ import annotations

import sys

from ._cli.main import main

if __name__ == "__main__":
    sys.exit(main())
