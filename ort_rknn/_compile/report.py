"""What a conversion made, for people and for programs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..files import RknnFile
from .layers import Layer


@dataclass(frozen=True, slots=True)
class Part:
    """One compiled model."""

    path: str
    target: str
    size: int
    """In bytes."""
    seconds: float
    """How long the toolkit took."""
    layers: tuple[Layer, ...]
    """What it consists of; empty where the toolkit's log did not tell."""
    file: RknnFile

    @property
    def on_cpu(self) -> tuple[Layer, ...]:
        """Layers that the runtime runs on the CPU."""
        return tuple(layer for layer in self.layers if layer.target != "NPU")


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion made."""

    model: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    log: str
    """Path of the toolkit's own output."""
    toolkit: str
    """Its version."""

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for part in self.parts:
            kinds = Counter(layer.op_type for layer in part.layers)
            yield f"{os.path.basename(part.path)}: for {part.target}, {part.size:,} bytes, {part.seconds:.1f} s"
            if part.layers:
                on_npu = len(part.layers) - len(part.on_cpu)
                listed = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(6))
                yield f"  {len(part.layers)} layers, {on_npu} on the NPU: {listed}"
            for layer in part.on_cpu:
                yield f"  inside the runtime, on the CPU: {layer.name}"
        for note in self.notes:
            yield f"note: {note}"
        yield f"the toolkit's output: {self.log}"

    def as_json(self) -> dict[str, Any]:
        """The report for ``--json``."""
        return {
            "model": self.model,
            "toolkit": self.toolkit,
            "log": self.log,
            "notes": list(self.notes),
            "parts": [
                {
                    "path": part.path,
                    "target": part.target,
                    "size": part.size,
                    "seconds": round(part.seconds, 3),
                    "layers": [
                        {"type": x.op_type, "dtype": x.dtype, "target": x.target, "name": x.name, "cycles": x.cycles}
                        for x in part.layers
                    ],
                }
                for part in self.parts
            ],
        }
