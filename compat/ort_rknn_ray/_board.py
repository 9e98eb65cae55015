"""The Ray resources and labels of a board."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import ort_rknn

#: One per board: whoever takes it has the whole NPU. Logical, like every Ray resource: it controls admission, it does
#: not isolate.
RESOURCE = "rknpu"
#: The number of cores, for programs that count them.
CORES = "rknpu_cores"
#: Labels of a node that has an NPU.
LABELS = ("rknpu-soc", "rknpu-adapter", "rknpu-virtual")


@dataclass(frozen=True, slots=True)
class Board:
    """One NPU, as Ray should see it."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def start_arguments(self) -> str:
        """For ``ray start ... $(ort-rknn ray-resources)``: without spaces and quotes, which the shell would not remove
        there."""
        labels = ",".join(f"{key}={value}" for key, value in self.labels.items())
        words = [f"--resources={json.dumps(dict(self.resources), separators=(',', ':'))}", f"--labels={labels}"]
        return " ".join(words)


def this_board() -> Board | None:
    """What this machine offers; None if no NPU is usable (a virtual one counts if ``ORT_RKNN_DEVICE`` asks for it)."""
    devices = ort_rknn.devices()
    if not devices:
        return None
    device = devices[0]
    return Board(
        {RESOURCE: 1, CORES: device.cores},
        {
            "rknpu-soc": device.soc,
            "rknpu-adapter": device.adapter,
            "rknpu-virtual": "true" if device.virtual else "false",
        },
    )
