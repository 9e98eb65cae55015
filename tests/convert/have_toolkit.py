"""Installs the vendor's converter if there is none: the first step of ``tox -e convert``."""

import sys

from ort_rknn._cli.main import main
from ort_rknn._compile.toolkit import ToolkitError, find_toolkit

try:
    print("the converter of", find_toolkit().python)
except ToolkitError:
    sys.exit(main(["toolkit", "install"]))
