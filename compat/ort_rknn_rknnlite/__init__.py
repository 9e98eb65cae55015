"""The face of rknn-toolkit-lite2: its class ``RKNNLite`` over ort_rknn's executor.

    from ort_rknn_rknnlite.api import RKNNLite        # instead of: from rknnlite.api import RKNNLite

A program that was written for the vendor's package runs on a board without that package, on a PC with the virtual NPU
(``ORT_RKNN_DEVICE=virtual:rk3588``), and where there is no NPU at all on the CPU, with the ONNX beside the ``.rknn``,
which a FallbackWarning tells. :func:`install` and ``python -m ort_rknn_rknnlite program.py`` save the change of import.

Signatures, constants, return values and results are those that rknn-toolkit-lite2 2.5.0 was seen to have; nothing of it
is used or needed. What differs, and why, is in :mod:`ort_rknn_rknnlite.api`.
"""

from __future__ import annotations

import sys
from types import ModuleType

from . import api
from .api import RKNNLite, RKNNLiteError

__all__ = ["RKNNLite", "RKNNLiteError", "api", "install", "uninstall"]

_NAMES = {"rknnlite": sys.modules[__name__], "rknnlite.api": api}


def install() -> None:
    """Make ``from rknnlite.api import RKNNLite`` give ours in this process. Idempotent.

    Raises RuntimeError where the vendor's package was imported before: whoever has its class would keep it.
    """
    for name, module in _NAMES.items():
        if sys.modules.get(name, module) is not module:
            raise RuntimeError(f"{name} is imported already: call ort_rknn_rknnlite.install() before that")
    sys.modules.update(_NAMES)


def uninstall() -> None:
    """Undo :func:`install`. Does nothing where the vendor's own modules are in place."""
    for name, module in _NAMES.items():
        current: ModuleType | None = sys.modules.get(name)
        if current is module:
            del sys.modules[name]
