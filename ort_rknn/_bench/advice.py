"""One sentence of advice based on the measurements."""

from __future__ import annotations

from .report import BenchReport, Result, of

#: Above this share of a run's own time, the host is called the bottleneck.
_MUCH = 0.3
#: Below this share of busy time, the cores are called idle.
_IDLE = 0.8
#: Above this share of their time, the host's CPUs are called busy.
_SATURATED = 0.85


def advise(report: BenchReport) -> str:
    """The bottleneck at the best throughput on the NPU, and the option that helps."""
    best, overall = report.best_throughput_on_npu, report.best_throughput
    if overall is None:
        return "Nothing could be measured; the reasons stand with the settings."
    if best is None:
        return "Nothing ran on an NPU; `ort-rknn doctor MODEL` says why."
    if overall.setting.options is None:
        cpu, npu = of(overall).runs_per_second, of(best).runs_per_second
        text = f"The CPU is faster than the NPU here ({cpu:.0f} against {npu:.0f} runs/s)"
        on_npu = _npu(report, best)
        return f"{text}. On the NPU: {on_npu[0].lower()}{on_npu[1:]}"
    return _npu(report, best)


def _npu(report: BenchReport, best: Result) -> str:
    seen = of(best)
    options = best.setting.options or {}
    cores = report.cores if "schedule" in options else min(report.cores, options.get("threads_per_core", 1))
    busy = min(1.0, seen.run_ms / 1000 * seen.runs_per_second / max(cores, 1))
    if seen.host_share > _MUCH:
        return (
            f"The host is the bottleneck: of a run's {seen.convert_ms + seen.run_ms + seen.fetch_ms:.2f} ms, "
            f"{seen.convert_ms:.2f} ms set inputs and {seen.fetch_ms:.2f} ms get outputs; "
            f"{_what_helps(report, best, seen.convert_ms >= seen.fetch_ms)}."
        )
    used = seen.cpu_seconds_per_run * seen.runs_per_second / best.setting.samples
    if report.cpus and used > _SATURATED * report.cpus:
        cpus = f"{report.cpus} CPU{'s' * (report.cpus > 1)}"
        share = min(1.0, used / report.cpus)
        return f"The host is the bottleneck: its {cpus} work {share:.0%} of the time{_computed(report)}."
    if seen.host_ms > _MUCH * seen.run_ms and busy < _IDLE:
        return (
            f"The host is the bottleneck: {seen.host_ms:.2f} ms of a call pass between program and runtime, and "
            f"the cores work {busy:.0%} of the time; session.map, or a process per core, keep them busy."
        )
    if busy < _IDLE and seen.callers == 1:
        return f"The cores work {busy:.0%} of the time: call from several threads, or use session.map or submit."
    if busy < _IDLE:
        return (
            f"The cores work {busy:.0%} of the time, and more callers make no more runs: look for what else keeps this "
            "machine's CPU or memory busy."
        )
    return f"The NPU is the bottleneck: its cores work {busy:.0%} of the time, and the host has time to spare."


def _computed(report: BenchReport) -> str:
    return ", where a virtual NPU computes too" if report.device.startswith("virtual:") else ""


def _what_helps(report: BenchReport, best: Result, inputs: bool) -> str:
    if not inputs:
        return "output_dtype='native' gives outputs as they are stored, without widening them"
    tried = next((r for r in report.results if r.setting.changes_input and r.measured), None)
    if tried is None:
        return f"{_hides(best)}fewer or smaller inputs make it less"
    ratio = of(tried).runs_per_second / of(best).runs_per_second
    if ratio > 1.05:
        return (
            f"feeding uint8 images (layout='nhwc', input_dtype='uint8') makes {ratio:.2f} times as many runs, for a "
            "model that has mean and std inside"
        )
    return f"uint8 NHWC inputs were tried and are no faster; {_hides(best)}smaller inputs make it less"


def _hides(best: Result) -> str:
    """The advice to set ``threads_per_core``; "" if it is set already."""
    taken = (best.setting.options or {}).get("threads_per_core", 1) > 1
    return "" if taken else "threads_per_core=2 hides it behind another run, and "
