"""onnxruntime with Rockchip's NPUs: ``import ort_rknn as ort`` in place of ``import onnxruntime as ort``.

Every public name of the installed onnxruntime is available here and is onnxruntime's own, submodules included
(``ort_rknn.capi``, ``ort_rknn.quantization`` ...), with these exceptions:

* :class:`InferenceSession` runs on the NPU if there is one and a compiled model for it, else on the CPU;
* :func:`get_available_providers` and :func:`get_all_providers` include the NPU.

``__version__`` is onnxruntime's, because programs check it for features; ours is ``package_version``.
"""

from __future__ import annotations

import importlib.machinery as _machinery
import importlib.util as _util
import sys as _sys
from types import ModuleType as _ModuleType
import typing as _typing
from typing import Any as _Any

import ctypes as _ctypes

_ctypes.pythonapi.PyInterpreterState_Get.restype = _ctypes.c_void_p
_ctypes.pythonapi.PyInterpreterState_GetID.restype = _ctypes.c_int64
_ctypes.pythonapi.PyInterpreterState_GetID.argtypes = (_ctypes.c_void_p,)
if _ctypes.pythonapi.PyInterpreterState_GetID(_ctypes.pythonapi.PyInterpreterState_Get()) != 0:
    raise ImportError(
        "ort_rknn cannot be used in a subinterpreter: calls from C reach Python's main interpreter only, and a session "
        "would wait forever; import it in the main interpreter, or in a separate process"
    )

import onnxruntime as _onnxruntime  # noqa: E402

# Copied one by one, because the names depend on the installed release.
for _name in dir(_onnxruntime):
    if not _name.startswith("_") or _name in ("__version__", "__author__"):
        globals()[_name] = getattr(_onnxruntime, _name)
del _name

from ._session.session import InferenceSession as InferenceSession  # noqa: E402

if _typing.TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from ._ep import get_ep_names as get_ep_names, get_library_path as get_library_path
    from ._ep import register as register, unregister as unregister
    from ._errors import FallbackWarning as FallbackWarning, NpuUnavailable as NpuUnavailable
    from ._errors import OptionError as OptionError, QueueFull as QueueFull
    from ._onnxruntime import *
    from ._bench.bench import bench as bench
    from ._bench.together import bench_together as bench_together
    from ._checking.check import NothingCompared as NothingCompared, check as check
    from ._compile.call import convert as convert
    from ._compile.converter import ConversionError as ConversionError
    from ._compile.toolkit import ToolkitError as ToolkitError
    from ._measure.doctor import doctor as doctor
    from ._measure.info import info as info
    from ._options import RknnProviderOptions as RknnProviderOptions, make_provider_options as make_provider_options
    from ._measure.trace import trace as trace
    from ._measure.stats import stats as stats
    from ._measure.top import top as top
    from ._selftest.selftest import selftest as selftest
    from ._session.arrays import empty as empty, from_dmabuf as from_dmabuf
    from ._version import package_version as package_version
    from .adapter.contract import Device as Device

    _Policy = _typing.Literal["respect", "prefer", "only"]

    def install(
        policy: _Policy | None = None,
        *,
        device: str | None = None,
        options: Mapping[str, object] | None = None,
        report: bool = False,
    ) -> None: ...

    def swapped(
        policy: _Policy | None = None,
        *,
        device: str | None = None,
        options: Mapping[str, object] | None = None,
        report: bool = False,
    ) -> AbstractContextManager[None]: ...

    def uninstall() -> None: ...


def get_available_providers() -> list[str]:
    """onnxruntime's available providers, preceded by ``RKNNExecutionProvider`` if an NPU is usable now (or
    ``ORT_RKNN_DEVICE`` asks for a virtual one)."""
    from ._ep.registration import may_open_a_library
    from ._ep.support import why_unavailable
    from ._options import PROVIDER

    others = [name for name in _onnxruntime.get_available_providers() if name != PROVIDER]
    usable = why_unavailable() is None and bool(devices()) and may_open_a_library()
    return [PROVIDER, *others] if usable else others


def get_all_providers() -> list[str]:
    """All provider names that onnxruntime knows, preceded by ``RKNNExecutionProvider``; best first."""
    from ._options import PROVIDER

    return [PROVIDER, *(name for name in _onnxruntime.get_all_providers() if name != PROVIDER)]


def devices() -> list[Device]:
    """The NPUs that a session could use now, best first; empty if there are none.

    Virtual NPUs are listed only if ``ORT_RKNN_DEVICE`` asks for one.
    """
    from ._planning.discovery import devices

    return devices()


#: The modules of our other names, imported at first use: importing ort_rknn should cost no more than importing
#: onnxruntime.
_OURS = {
    "package_version": "ort_rknn._version",
    "FallbackWarning": "ort_rknn._errors",
    "NpuUnavailable": "ort_rknn._errors",
    "OptionError": "ort_rknn._errors",
    "QueueFull": "ort_rknn._errors",
    "RknnProviderOptions": "ort_rknn._options",
    "make_provider_options": "ort_rknn._options",
    "check": "ort_rknn._checking.check",
    "convert": "ort_rknn._compile.call",
    "NothingCompared": "ort_rknn._checking.check",
    "ConversionError": "ort_rknn._compile.converter",
    "ToolkitError": "ort_rknn._compile.toolkit",
    "bench": "ort_rknn._bench.bench",
    "bench_together": "ort_rknn._bench.together",
    "empty": "ort_rknn._session.arrays",
    "from_dmabuf": "ort_rknn._session.arrays",
    "get_ep_names": "ort_rknn._ep",
    "get_library_path": "ort_rknn._ep",
    "doctor": "ort_rknn._measure.doctor",
    "info": "ort_rknn._measure.info",
    "register": "ort_rknn._ep",
    "selftest": "ort_rknn._selftest.selftest",
    "stats": "ort_rknn._measure.stats",
    "top": "ort_rknn._measure.top",
    "trace": "ort_rknn._measure.trace",
    "unregister": "ort_rknn._ep",
}


#: The import swap, which is built on this package and found through its plugin.
_BROUGHT = ("install", "swapped", "uninstall")

if not _typing.TYPE_CHECKING:  # otherwise type checkers would accept any name

    def __getattr__(name: str) -> _Any:
        if name in _OURS:
            import importlib

            value = getattr(importlib.import_module(_OURS[name]), name)
            globals()[name] = value
            return value
        if name in _BROUGHT:
            from .adapter.plugins import provided_name

            globals()[name] = value = provided_name(name)
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_OURS, *_BROUGHT})


class _Submodules:
    """Makes ``import ort_rknn.capi._pybind_state`` return onnxruntime's own module."""

    def find_spec(self, fullname: str, path: _Any = None, target: _Any = None) -> _machinery.ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        rest = fullname[len(_PREFIX) :]
        # Our own submodules come first.
        if _machinery.PathFinder.find_spec(_PREFIX + rest.partition(".")[0], __path__) is not None:
            return None
        theirs = f"onnxruntime.{rest}"
        try:
            if theirs not in _sys.modules and _util.find_spec(theirs) is None:
                return None
        except ModuleNotFoundError:
            return None
        return _machinery.ModuleSpec(fullname, self, origin=theirs)  # type: ignore[arg-type]  # has what is called

    def create_module(self, spec: _machinery.ModuleSpec) -> _ModuleType:
        import importlib

        assert spec.origin is not None
        module = importlib.import_module(spec.origin)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: _ModuleType) -> None:
        """Only restore the module's own spec: it is onnxruntime's and was executed as such."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


_PREFIX = f"{__name__}."
# First, because the ordinary finders would execute onnxruntime's submodule again, under our name.
_sys.meta_path.insert(0, _Submodules())

__all__ = [
    *(name for name in globals() if not name.startswith("_") and name != "annotations"),
    *_OURS,
    *_BROUGHT,
]
