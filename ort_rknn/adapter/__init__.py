"""The public API for plugin authors. Plugins provide adapters, which drive an NPU runtime, and commands of
``ort-rknn``.

A plugin needs one import::

    from ort_rknn.adapter import Device, Survey, hookimpl

:mod:`ort_rknn.adapter.contract` defines an adapter, :mod:`ort_rknn.adapter.hookspecs` says how it is found,
``docs/adapters.md`` walks through a small one, and :mod:`ort_rknn.adapter.testing` tests one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._environment import RUNTIME_LIBRARY_VARIABLE
from .._rknpu import (
    CORE_MASK_ALL,
    CORE_MASK_AUTO,
    NOT_DYNAMIC,
    RKNN_ERRORS,
    SOC_CORES,
    core_masks,
    find_soc_name,
    is_soc,
    soc_family,
    soc_note,
    why_impossible,
)
from .._tensors import DTYPE_OF_TYPE, INPUT_DTYPES, Layout, Quantization, Shape, onnx_order
from .contract import (
    Absence,
    Adapter,
    AdapterError,
    CallForm,
    Context,
    Device,
    LoadSettings,
    Model,
    ModelSource,
    NativeForm,
    NotBindable,
    PortForm,
    Query,
    Region,
    RknnError,
    SettingError,
    SharedBuffer,
    Survey,
    TensorInfo,
)
from .optional import (
    AllocatesBuffers,
    BindsBuffers,
    ChecksDevices,
    MakesStandIns,
    ReportsLayers,
    ReportsNativeForms,
    RunsWhole,
    TimesRuns,
)

if TYPE_CHECKING:
    from .._cache import cache_folder, why_unsafe
    from .._interrupts import covered, is_from_a_handler, need_stack, raised_after
    from .addresses import array_at
    from .command import Command
    from .findings import Examines, Finding
    from .hookspecs import hookimpl

__all__ = [
    "CORE_MASK_ALL",
    "CORE_MASK_AUTO",
    "DTYPE_OF_TYPE",
    "INPUT_DTYPES",
    "NOT_DYNAMIC",
    "RKNN_ERRORS",
    "RUNTIME_LIBRARY_VARIABLE",
    "SOC_CORES",
    "Absence",
    "Adapter",
    "AdapterError",
    "AllocatesBuffers",
    "BindsBuffers",
    "CallForm",
    "ChecksDevices",
    "Command",
    "Context",
    "Device",
    "Examines",
    "Finding",
    "Layout",
    "LoadSettings",
    "MakesStandIns",
    "Model",
    "ModelSource",
    "NativeForm",
    "NotBindable",
    "PortForm",
    "Quantization",
    "Query",
    "Region",
    "ReportsLayers",
    "ReportsNativeForms",
    "RknnError",
    "RunsWhole",
    "SettingError",
    "Shape",
    "SharedBuffer",
    "Survey",
    "TensorInfo",
    "TimesRuns",
    "array_at",
    "cache_folder",
    "core_masks",
    "covered",
    "find_soc_name",
    "hookimpl",
    "is_from_a_handler",
    "is_soc",
    "need_stack",
    "onnx_order",
    "raised_after",
    "soc_family",
    "soc_note",
    "why_impossible",
    "why_unsafe",
]


#: Imported at first use: a session needs neither pluggy's markers nor argparse, and device discovery needs no numpy.
_LAZY = {
    "Command": ".command",
    "Examines": ".findings",
    "Finding": ".findings",
    "array_at": ".addresses",
    "cache_folder": ".._cache",
    "covered": ".._interrupts",
    "hookimpl": ".hookspecs",
    "why_unsafe": ".._cache",
    "is_from_a_handler": ".._interrupts",
    "need_stack": ".._interrupts",
    "raised_after": ".._interrupts",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
