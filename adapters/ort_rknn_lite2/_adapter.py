"""The adapter: finds the device that the vendor's package would use, and loads models with the package."""

from __future__ import annotations

from pathlib import Path

from ort_rknn.adapter import (
    SOC_CORES,
    Absence,
    Device,
    LoadSettings,
    Model,
    ModelSource,
    Query,
    SettingError,
    Survey,
    soc_family,
)

from ._board import ADAPTER, LIBRARY, check_library, check_node, find_package, find_soc


class Lite2Adapter:
    """The NPU of the board that this process runs on, through the vendor's rknn-toolkit-lite2.

    ``root`` is the root of the file system; anything but "/" is for tests.
    """

    name = ADAPTER
    priority = 50

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def find(self, query: Query) -> Survey:
        """The device, or the first failed check: package, library, SoC, device node, the requested name.

        Only looks for files: opens neither the package nor the library.
        """
        wanted = soc_family(query.device or "npu")
        if wanted.startswith("virtual"):
            return Survey()
        version = find_package()
        if isinstance(version, Absence):
            return Survey(absences=(version,))
        library = self._root / LIBRARY
        for absence in (check_library(library, query), check_node(self._root)):
            if absence is not None:
                return Survey(absences=(absence,))
        soc = find_soc(self._root, query.environ)
        if isinstance(soc, Absence):
            return Survey(absences=(soc,))
        if wanted not in ("npu", soc):
            reason = f"the device {wanted!r} is not here: this board is {soc}"
            return Survey(absences=(Absence(ADAPTER, reason, f"Select {soc!r} or leave the device out."),))
        details = {"package": f"rknn-toolkit-lite2 {version}"}
        return Survey(devices=(Device(ADAPTER, soc, soc, SOC_CORES[soc], runtime=str(library), details=details),))

    def load(self, device: Device, source: ModelSource, settings: LoadSettings) -> Model:
        """Import the package and load the model.

        ``settings.share_weights`` is accepted with any value: it permits sharing, but every context loads its own
        weights, which ``versions`` reports. Raises RknnError if the runtime refuses the model, SettingError for a
        setting that the package does not support; in both cases nothing is left open.
        """
        refused = (
            (settings.run_timeout_ms, "run_timeout_ms: rknn-toolkit-lite2 waits as long as the driver does"),
            (settings.share_with is not None, "use_weight_from: rknn-toolkit-lite2 cannot share weights"),
            (settings.custom_op_paths, "custom_op_paths: rknn-toolkit-lite2 has no way to register operators"),
            (settings.priority != "high", "priority: rknn-toolkit-lite2 has no way to set it"),
            (settings.collect_layers, "layers: rknn-toolkit-lite2 does not report them"),
            (settings.custom_op_default_path, "custom_op_default_path: rknn-toolkit-lite2 registers no operators"),
        )
        for demand, why in refused:
            if demand:
                raise SettingError(f"{why}. Leave it out, or use the adapter 'librknnrt'.")
        from ._model import load_model  # here, because looking for a device must not need numpy or ctypes structures

        return load_model(device, source)
