"""``python -m ort_rknn``: the command line, see :mod:`ort_rknn.cli`."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
