"""The SoC, according to the environment or to the board's device tree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .._rknpu import find_soc_name

#: The environment variable that names the SoC if the device tree does not.
SOC_VARIABLE = "ORT_RKNN_SOC"
_MAX_READ = 4096


class SocUnknownError(Exception):
    """The device tree does not identify the SoC. The message is the reason of an :class:`~ort_rknn.adapter.Absence`."""

    def __init__(self, reason: str, *, readable: bool) -> None:
        super().__init__(reason)
        self.readable = readable
        """Whether the file could be read, but names no SoC with a known NPU."""


def soc_in_environment(environ: Mapping[str, str]) -> str:
    """The value of :data:`SOC_VARIABLE`, unchecked; "" if it is not set."""
    return environ.get(SOC_VARIABLE, "").strip()


def device_tree(root: Path) -> Path:
    """The file that lists the board's "compatible" entries; containers often hide it."""
    return root / "proc/device-tree/compatible"


def soc_in_device_tree(root: Path) -> tuple[str, str]:
    """The name of the SoC in lower case, and the entry that contains it. Raises SocUnknownError."""
    path = device_tree(root)
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_READ).decode("utf-8", "replace")
    except OSError as error:
        raise SocUnknownError(f"cannot determine the SoC: {path}: {error.strerror}", readable=False) from None
    entries = [entry for entry in text.split("\0") if entry]
    for entry in reversed(entries):  # the last is the most general: the SoC itself
        name = find_soc_name(entry)
        if name is not None:
            return name, entry
    raise SocUnknownError(
        f"the device tree names no SoC with a known NPU: {path} has {', '.join(entries) or 'nothing'}", readable=True
    )
