"""Paired measurements: two things alternate, so that a busy machine affects both equally.

Every benchmark prints one line with a ratio and exits with code 1 if it misses its bar.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "tests" / "models"
DEVICE = "virtual:rk3588"
SOC = "rk3588"

# So that a checkout need not be installed.
sys.path[:0] = [str(ROOT), str(ROOT / "adapters"), str(ROOT / "compat")]


def taken_per_second(results: Generator[object, None, None], seconds: float) -> float:
    """Results per second of a generator, which is closed afterwards."""
    start, count = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < seconds:
        next(results)
        count += 1
    results.close()
    return count / took


@dataclass(frozen=True)
class Paired:
    """Time per call of two things, measured alternately, in microseconds."""

    ours: float
    """Median over the batches of the time per call."""
    reference: float
    difference: float
    """Median over the turns of (ours - reference): steadier than the difference of the medians."""
    ratio: float
    """Median over the turns of ours / reference."""
    least_ours: float
    """Of the quickest batch: the cost without disturbances."""
    least_reference: float


def paired(ours: Callable[[], object], reference: Callable[[], object], *, turns: int, calls: int) -> Paired:
    """Batches of ``calls`` calls, alternating, ``turns`` of each; the order within a turn changes with every turn."""
    for function in (ours, reference):
        batch(function, max(calls // 4, 1))
    mine: list[float] = []
    theirs: list[float] = []
    for turn in range(turns):
        order = [(ours, mine), (reference, theirs)]
        for function, times in order if turn % 2 == 0 else reversed(order):
            times.append(batch(function, calls))
    return Paired(
        ours=statistics.median(mine),
        reference=statistics.median(theirs),
        difference=statistics.median(a - b for a, b in zip(mine, theirs)),
        ratio=statistics.median(a / b for a, b in zip(mine, theirs)),
        least_ours=min(mine),
        least_reference=min(theirs),
    )


def batch(function: Callable[[], object], calls: int) -> float:
    """Microseconds per call."""
    start = time.perf_counter_ns()
    for _ in range(calls):
        function()
    return (time.perf_counter_ns() - start) / calls / 1000


def pin(cpus: int = 1) -> None:
    """Use only ``cpus`` of this process's CPUs (the last ones, because CPU 0 serves most interrupts)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cpus:])


def arguments(description: str | None, *switches: tuple[str, str]) -> argparse.Namespace:
    """``--quick``: takes a few seconds at most; its bars are so loose that only broken code misses them. ``switches``:
    further ones, with their help."""
    parser = argparse.ArgumentParser(description=(description or "").strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run with loose bars, to see that it runs")
    for name, text in switches:
        parser.add_argument(name, action="store_true", help=text)
    return parser.parse_args()


class Verdict:
    """Collects measurements and their bars; :meth:`end` returns the exit code."""

    def __init__(self) -> None:
        self.missed = 0

    def hold(self, what: str, met: bool, bar: str) -> None:
        """Print one line: what was measured, and whether it meets its bar."""
        self.missed += not met
        print(f"{'ok    ' if met else 'MISSED'} {what} (bar: {bar})", flush=True)

    def end(self) -> int:
        return 1 if self.missed else 0
