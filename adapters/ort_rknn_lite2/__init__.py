"""The adapter for the vendor's own Python package: ``rknnlite.api.RKNNLite`` of rknn-toolkit-lite2.

Nothing of the vendor's is shipped: the package must be installed (``pip install 'ort-rknn[lite2]'``), and the library
is the board's. The package is imported when a model is loaded, not when this package is imported or a device is looked
for.

Unlike the librknnrt adapter, it does not support (seen with 2.3.2 and 2.5.0): contexts that share weights, a timeout
for a run, quantized outputs as stored, a library other than ``/usr/lib/librknnrt.so``, and a SoC named by
``ORT_RKNN_SOC``. See ``docs/adapters.md``.
"""

from __future__ import annotations

from collections.abc import Iterable

from ort_rknn.adapter import Adapter, hookimpl

from ._adapter import Lite2Adapter

__all__ = ["Lite2Adapter"]


@hookimpl
def ort_rknn_adapters() -> Iterable[Adapter]:
    """The one adapter of this package."""
    return [Lite2Adapter()]
