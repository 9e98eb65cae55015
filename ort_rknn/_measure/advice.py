"""One sentence of advice from what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bench import BenchReport

#: Beyond this share of a run's own time the host is called the bottleneck.
_MUCH = 0.3
#: Below this share of their time the cores are called idle.
_IDLE = 0.8


def advise(report: BenchReport) -> str:
    """What the bottleneck of the best throughput is, and which option helps."""
    best = report.best_throughput
    if best is None or best.measured is None:
        return "Nothing could be measured; the reasons stand with the settings."
    if best.setting.options is None:
        if report.device:
            return "The CPU is the fastest here: the model is small, or most of a run is spent outside the NPU."
        return "There is no NPU for this model here; `ort-rknn explain MODEL` says why."
    seen = best.measured
    cores = report.cores if "schedule" in best.setting.options else 1
    busy = min(1.0, seen.run_ms / 1000 * seen.runs_per_second / max(cores, 1))
    if seen.host_share > _MUCH:
        text = (
            f"The host is the bottleneck: of a run's {seen.convert_ms + seen.run_ms + seen.fetch_ms:.2f} ms, "
            f"{seen.convert_ms:.2f} ms set inputs and {seen.fetch_ms:.2f} ms get outputs"
        )
        return f"{text}; {_what_helps(report, seen.convert_ms >= seen.fetch_ms)}."
    if seen.host_ms > _MUCH * (seen.run_ms or 1.0) and busy < _IDLE:
        return (
            f"The host is the bottleneck: {seen.host_ms:.2f} ms of a call pass between program and runtime, and "
            f"the cores work {busy:.0%} of the time; more callers, or session.map, keep them busy."
        )
    if busy < _IDLE and seen.callers == 1:
        return f"The cores work {busy:.0%} of the time: call from several threads, or use session.map or submit."
    return f"The NPU is the bottleneck: its cores work {busy:.0%} of the time, and the host has time to spare."


def _what_helps(report: BenchReport, inputs: bool) -> str:
    if not inputs:
        return "output_dtype='native' gives outputs as they are stored, without widening them"
    tried = next((r for r in report.results if r.setting.changes_input and r.measured is not None), None)
    best = report.best_throughput
    assert best is not None and best.measured is not None
    if tried is None or tried.measured is None:
        return "threads_per_core=2 hides it behind another run, and fewer or smaller inputs make it less"
    ratio = tried.measured.runs_per_second / best.measured.runs_per_second
    if ratio > 1.05:
        return (
            f"feeding uint8 images (layout='nhwc', input_dtype='uint8') makes {ratio:.2f} times as many runs, for a "
            "model that has mean and std inside"
        )
    return "uint8 NHWC inputs were tried and are no faster; threads_per_core=2 hides it behind another run"
