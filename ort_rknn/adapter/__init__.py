"""The public door for authors of adapters: the contract between the executor and an NPU runtime.

An adapter package needs one import::

    from ort_rknn.adapter import Device, Survey, hookimpl

See :mod:`ort_rknn.adapter.contract` for what an adapter is, :mod:`ort_rknn.adapter.hookspecs` for how one is found, and
``docs/adapters.md`` for a walk through a small one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .contract import (
    CORE_MASK_ALL,
    CORE_MASK_AUTO,
    RKNN_ERRORS,
    SOC_CORES,
    Absence,
    Adapter,
    AdapterError,
    CallForm,
    Context,
    Device,
    Layout,
    LoadSettings,
    MakesStandIns,
    Model,
    ModelSource,
    PortForm,
    Quantisation,
    Query,
    RknnError,
    SettingError,
    Shape,
    Survey,
    TensorInfo,
)

if TYPE_CHECKING:
    from .hookspecs import hookimpl

__all__ = [
    "CORE_MASK_ALL",
    "CORE_MASK_AUTO",
    "RKNN_ERRORS",
    "SOC_CORES",
    "Absence",
    "Adapter",
    "AdapterError",
    "CallForm",
    "Context",
    "Device",
    "Layout",
    "LoadSettings",
    "MakesStandIns",
    "Model",
    "ModelSource",
    "PortForm",
    "Quantisation",
    "Query",
    "RknnError",
    "SettingError",
    "Shape",
    "Survey",
    "TensorInfo",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name == "hookimpl":  # pluggy is imported for plugins only, not for whoever needs a type of the contract
        from .hookspecs import hookimpl

        return hookimpl
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
