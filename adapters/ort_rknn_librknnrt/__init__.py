"""The adapter for the board's own runtime: ``librknnrt.so``, driven through ctypes.

Nothing of the vendor's is shipped: the library comes with the board's image. It is located when a session asks for a
device and opened when a model is loaded, so importing this package touches neither ctypes nor the NPU.
"""

from __future__ import annotations

from collections.abc import Iterable

from ort_rknn.adapter import Adapter, hookimpl

from ._adapter import LibrknnrtAdapter

__all__ = ["LibrknnrtAdapter"]


@hookimpl
def ort_rknn_adapters() -> Iterable[Adapter]:
    """The one adapter of this package."""
    return [LibrknnrtAdapter()]
