"""The API of rknn-toolkit-lite2: its class ``RKNNLite``, implemented with ort_rknn's executor.

    from ort_rknn_rknnlite.api import RKNNLite        # instead of: from rknnlite.api import RKNNLite

A program written for the vendor's package runs on a board without that package, on a PC with the virtual NPU
(``ORT_RKNN_DEVICE=virtual:rk3588``), and without any NPU on the CPU, with the ONNX beside the ``.rknn`` and a
FallbackWarning. With :func:`install`, ``python -m ort_rknn_rknnlite program.py`` or ``ort-rknn run``, the import need
not be changed.

Signatures, constants, return values and results are those observed with rknn-toolkit-lite2 2.5.0; nothing of it is used
or needed. :mod:`ort_rknn_rknnlite.api` lists the differences and their reasons.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import api, rknn_runtime, utils
    from .api import RKNNLite, RKNNLiteError

__all__ = ["RKNNLite", "RKNNLiteError", "api", "install", "offer", "rknn_runtime", "uninstall", "utils"]

#: A folder with a module ``rknnlite`` that installs this API.
_SHADOW = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_shadow")
#: The vendor's names, and our modules.
_NAMES = {
    "rknnlite": "ort_rknn_rknnlite",
    "rknnlite.api": "ort_rknn_rknnlite.api",
    "rknnlite.api.rknn_lite": "ort_rknn_rknnlite.api",
    "rknnlite.api.rknn_runtime": "ort_rknn_rknnlite.rknn_runtime",
    "rknnlite.utils": "ort_rknn_rknnlite.utils",
}


def install() -> None:
    """Make ``from rknnlite.api import RKNNLite`` import ours, in this process and in the Python processes that it
    starts. Idempotent.

    Raises RuntimeError if the vendor's package was already imported, because its users would keep the vendor's class.
    """
    modules = {name: importlib.import_module(ours) for name, ours in _NAMES.items()}
    for name, module in modules.items():
        if sys.modules.get(name, module) is not module:
            raise RuntimeError(f"{name} is imported already: call ort_rknn_rknnlite.install() before that")
    for name, module in modules.items():
        parent, _, leaf = name.rpartition(".")
        if parent:  # for "import rknnlite.api.rknn_lite as lite", which looks there
            vars(modules[parent]).setdefault(leaf, module)
    sys.modules.update(modules)
    offer()


def offer() -> None:
    """As :func:`install`, but at the first ``import rknnlite``: until then nothing is imported. Idempotent.

    Puts a folder of this package at the front of ``sys.path``, which multiprocessing's child processes inherit, and of
    ``PYTHONPATH``, for subprocesses. A process that ignores its environment (``python -I``) gets the vendor's package.
    """
    if _SHADOW not in sys.path:
        sys.path.insert(1 if sys.path else 0, _SHADOW)  # the program's own folder stays in front
    paths = _python_path()
    if _SHADOW not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([_SHADOW, *paths])


def uninstall() -> None:
    """Undo :func:`install` and :func:`offer`. Does nothing if the vendor's own modules are in place."""
    for name, ours in _NAMES.items():
        current: ModuleType | None = sys.modules.get(name)
        if current is not None and current is sys.modules.get(ours):
            del sys.modules[name]
    while _SHADOW in sys.path:
        sys.path.remove(_SHADOW)
    paths = _python_path()
    if _SHADOW in paths:
        rest = [path for path in paths if path != _SHADOW]
        if rest:
            os.environ["PYTHONPATH"] = os.pathsep.join(rest)
        else:
            del os.environ["PYTHONPATH"]


def _python_path() -> list[str]:
    text = os.environ.get("PYTHONPATH", "")
    return text.split(os.pathsep) if text else []


def __getattr__(name: str) -> Any:
    if name in ("api", "rknn_runtime", "utils"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in ("RKNNLite", "RKNNLiteError"):
        return getattr(importlib.import_module(f"{__name__}.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
