"""Compares a report with an older one, written by ``ort-rknn bench --json``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .._json import members, none_or, number, read_json, text
from .report import BenchReport

#: A setting must be slower by this factor to be reported as slower, because repeated measurements differ, too.
SLOWER = 1.10


@dataclass(frozen=True, slots=True)
class Change:
    """One setting, before and now."""

    name: str
    before: float
    """Runs per second."""
    now: float

    @property
    def ratio(self) -> float:
        """Now relative to before: above 1 is faster."""
        return self.now / self.before

    @property
    def slower(self) -> bool:
        """Clearly slower than before."""
        return self.ratio * SLOWER < 1.0


def read_report(path: str | os.PathLike[str]) -> dict[str, float]:
    """Runs per second by setting. Raises OSError, or ValueError if it is not a report of one model."""
    data = members(read_json(path), "the whole")
    if not str(data.get("schema", "")).startswith("ort-rknn/bench/"):
        raise ValueError('it is not what "ort-rknn bench --json" writes')
    report = data.get("report")
    results = report.get("results") if isinstance(report, dict) else None
    if not isinstance(results, list):
        raise ValueError("it is a report of several models; only those of one are compared")
    out: dict[str, float] = {}
    for each in results:
        result = members(each, "a result")
        measured = none_or(members, result.get("measured"), "measured")
        speed = none_or(number, (measured or {}).get("runs_per_second"), "runs_per_second")
        if speed is not None and speed > 0:
            out[text(result.get("name"), "name")] = speed
    return out


def compare(report: BenchReport, before: Mapping[str, float]) -> list[Change]:
    """The settings measured in both, in the report's order."""
    return [
        Change(r.setting.name, before[r.setting.name], r.measured.runs_per_second)
        for r in report.results
        if r.measured is not None and r.setting.name in before
    ]
