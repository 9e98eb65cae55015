"""The adapter: finds the device, and loads models on it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ort_rknn.adapter import SOC_CORES, Absence, Device, LoadSettings, Model, ModelSource, Query, Survey, soc_family
from ort_rknn.adapter.device_tree import SOC_VARIABLE

from ._board import driver_version, find_node, find_soc
from ._library import ADAPTER, find_library

if TYPE_CHECKING:
    from ort_rknn.adapter import Finding


class LibrknnrtAdapter:
    """The NPU of the board that this process runs on, through the board's own ``librknnrt.so``.

    ``root`` is the root of the file system; anything but "/" is for tests.
    """

    name = ADAPTER
    priority = 100

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def find(self, query: Query) -> Survey:
        """The device, or the first failed check: library, SoC, device node, the requested device's name.

        Reads a few small files and opens no library. If the user names a library, the check of the device node is
        skipped.
        """
        wanted = soc_family(query.device or "npu")
        if wanted.startswith("virtual"):
            return Survey()
        library = find_library(self._root, query)
        if isinstance(library, Absence):
            return Survey(absences=(library,))
        soc = find_soc(self._root, query.environ)
        if isinstance(soc, Absence):
            return Survey(absences=(soc,))
        details = {"soc source": soc.source}
        if soc.note:
            details["about the soc"] = soc.note
        if library.passed_over:
            details["libraries passed over"] = "; ".join(library.passed_over)
        if not library.named:
            node = find_node(self._root)
            if isinstance(node, Absence):
                return Survey(absences=(node,))
            details["node"] = node.path
            if node.note:
                details["note"] = node.note
        driver = driver_version(self._root)
        if driver:
            details["driver"] = driver
        if wanted not in ("npu", soc.name):
            reason = f"the device {wanted!r} is not here: this board is {soc.name} (according to {soc.source})"
            remedy = (
                f"Select {soc.name!r} or leave the device out; "
                f"set {SOC_VARIABLE} if the SoC was not detected correctly."
            )
            return Survey(absences=(Absence(ADAPTER, reason, remedy),))
        device = Device(ADAPTER, soc.name, soc.name, SOC_CORES[soc.name], runtime=library.path, details=details)
        return Survey(devices=(device,))

    def examine(self, query: Query) -> Iterable[Finding]:
        """Every check of the board. See :class:`ort_rknn.adapter.Examines`."""
        if soc_family(query.device or "npu").startswith("virtual"):
            return ()
        from ._examine import examine

        return examine(self._root, query)

    def allocate(self, device: Device, nbytes: int, *, cached: bool) -> int:
        """A dma-buf from the kernel's heaps. See :class:`ort_rknn.adapter.AllocatesBuffers`."""
        from ._dma_heap import allocate

        return allocate(nbytes, cached=cached)

    def load(self, device: Device, source: ModelSource, settings: LoadSettings) -> Model:
        """Open the library and load the model. Raises RknnError or AdapterError, with nothing left open."""
        from .runtime import load_model  # here, because looking for a device must not need ctypes structures

        return load_model(device.runtime, device, source, settings)
