"""A virtual NPU: a C library that implements the librknnrt interface, and the adapter that drives it.

For tests, and for trying things without a board. :mod:`ort_rknn_virtual.control` provides its controls: simulated
times, faults, an event log, counters.
"""

from __future__ import annotations

from collections.abc import Iterable

from ort_rknn.adapter import Adapter, hookimpl

from ._adapter import VirtualAdapter

__all__ = ["VirtualAdapter"]


@hookimpl
def ort_rknn_adapters() -> Iterable[Adapter]:
    """The one adapter of this package."""
    return [VirtualAdapter()]
