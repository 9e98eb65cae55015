"""The report of a conversion, for people and for programs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ..files import RknnFile
from .layers import LayerRow
from .parts import InParts


@dataclass(frozen=True, slots=True)
class Part:
    """One compiled model."""

    path: str
    size: int
    """In bytes."""
    layers: tuple[LayerRow, ...]
    """Its layers; empty if the toolkit's log did not list them."""
    file: RknnFile

    @property
    def on_cpu(self) -> tuple[LayerRow, ...]:
        """Layers that the runtime runs on the CPU."""
        return tuple(layer for layer in self.layers if layer.target != "NPU")


@dataclass(frozen=True, slots=True)
class Fate:
    """Where a node of the ONNX runs in a model in parts."""

    node: str
    """Its name, else that of its first output."""
    operator: str
    where: str
    """"part0" ..., "CPU", or "constant": it does not depend on data at the compiled shapes."""
    reason: str = ""
    """Why it is on the CPU."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """The result for one target."""

    target: str
    path: str
    """The path that a session finds: the compiled model, or the model in parts."""
    parts: tuple[Part, ...]
    seconds: float
    fates: tuple[Fate, ...] = ()
    """For a model in parts: every node. () for a whole one, which the NPU's runtime runs completely."""
    refusal: str = ""
    """For a model in parts: why the toolkit refused the whole."""

    int8: tuple[str, ...] = ()
    """For int8: the attempts, and their results on the toolkit's simulator."""
    quantized: float | None = None
    """For int8: the share of the multiplications of Conv, MatMul and Gemm that run in int8."""

    @property
    def whole(self) -> bool:
        """Whether it is a single compiled model."""
        return not self.fates

    def lines(self) -> Iterator[str]:
        """The result as text."""
        size = sum(part.size for part in self.parts)
        yield f"{os.path.basename(self.path)}: for {self.target}, {size:,} bytes, {self.seconds:.1f} s"
        if not self.whole:
            on_npu = sum(fate.where.startswith("part") for fate in self.fates)
            parts = f"{len(self.parts)} part{'s' * (len(self.parts) != 1)}"
            yield f"  {len(self.fates)} nodes, {on_npu} on the NPU, in {parts}"
            yield f"  not as a whole: {self.refusal}"
        if self.quantized is not None:
            yield f"  int8: {self.quantized:.0%} of the multiplications of Conv, MatMul and Gemm; on the simulator:"
        for line in self.int8:
            yield f"  {line}"
        for part in self.parts:
            kinds = Counter(layer.op_type for layer in part.layers)
            listed = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(6))
            layers = f"{len(part.layers)} layer{'s' * (len(part.layers) != 1)}{f' ({listed})' * bool(listed)}"
            name = "" if self.whole else f"{os.path.basename(part.path)}: {part.size:,} bytes, "
            yield f"  {name}{layers}, {len(part.layers) - len(part.on_cpu)} on the NPU"
            for layer in part.on_cpu:
                yield f"  inside the runtime, on the CPU: {layer.name}"
        for fate in self.fates:
            if fate.where == "CPU":
                yield f"  on the CPU: {fate.operator} {fate.node!r}: {fate.reason}"

    def as_json(self) -> dict[str, Any]:
        """The values for ``--json``."""
        parts = [
            {"path": part.path, "size": part.size, "layers": [asdict(layer) for layer in part.layers]}
            for part in self.parts
        ]
        return {
            "target": self.target,
            "path": self.path,
            "whole": self.whole,
            "seconds": round(self.seconds, 3),
            "parts": parts,
            "nodes": [asdict(fate) for fate in self.fates],
            "refusal": self.refusal,
            "int8": {"attempts": list(self.int8), "quantized": self.quantized} if self.quantized is not None else None,
        }


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """The result of a conversion."""

    model: str
    compiled: tuple[Compiled, ...]
    notes: tuple[str, ...]
    log: str
    """Path of the toolkit's own output."""
    toolkit: str
    """Its version."""

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for one in self.compiled:
            yield from one.lines()
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
            "compiled": [one.as_json() for one in self.compiled],
        }


def fates_of(made: InParts) -> tuple[Fate, ...]:
    """Where each node of a model in parts runs."""
    where = {index: f"part{number}" for number, each in enumerate(made.built) for index in each.part.nodes}
    fates = []
    for index, node in enumerate(made.model.graph.node):
        name = node.name or next(filter(None, node.output), "")
        place = where.get(index) or ("CPU" if index in made.partition.on_cpu else "constant")
        fates.append(Fate(name, node.op_type, place, made.partition.on_cpu.get(index, "")))
    return tuple(fates)
