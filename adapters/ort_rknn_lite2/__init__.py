"""The adapter for the vendor's own Python package: ``rknnlite.api.RKNNLite`` of rknn-toolkit-lite2.

Nothing of the vendor's is shipped: the package is the one that is installed (``pip install 'ort-rknn[lite2]'``), and
the library is the board's. It is imported when a model is loaded, so importing this package, and looking for a device,
leave it alone.

What it cannot do that the librknnrt adapter can, seen with 2.3.2 and 2.5.0: contexts that share weights, a bound for a
run's time, quantized outputs as they are stored, a library elsewhere than ``/usr/lib/librknnrt.so``, and a SoC that
``ORT_RKNN_SOC`` names. See ``docs/adapters.md``.
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
