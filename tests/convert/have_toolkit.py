"""Installs the vendor's converter where there is none: ``tox -e convert`` begins with it."""

import sys

from ort_rknn._cli.main import main
from ort_rknn._compile.toolkit import ToolkitError, find_toolkit

try:
    print("the converter of", find_toolkit().python)
except ToolkitError:
    sys.exit(main(["toolkit", "install"]))
