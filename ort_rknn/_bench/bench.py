"""``ort_rknn.bench()``: measures settings one after the other, each in a session of its own."""

from __future__ import annotations

import gc
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnxruntime

from .._errors import FallbackWarning, OptionError, bare_message
from .._measure.board import resident_bytes
from .._session.session import InferenceSession
from ..files import onnx_twin_names
from .advice import advise
from .load import feed_for, fits, run_load
from .report import BenchReport, Result, Setting
from .splitting import compiled_convolutions, split_share

#: Extra seconds for creating sessions, in addition to 1.5 times the requested time.
GRACE = 10.0
#: The numbers of callers with which the best setting is measured.
_CALLERS = (1, 2, 4, 8, 16)


def bench(
    model: str | os.PathLike[str],
    *,
    seconds: float = 20.0,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[BenchReport], None] | None = None,
) -> BenchReport:
    """Compare options for ``model`` (an ONNX or ``.rknn``) within about ``seconds``; on a slow machine at most 1.5
    times that plus ten seconds.

    Compares the CPU, the default, ``tp_mode``, ``schedule`` with one and two contexts per core, 1 to 16 callers,
    batches, and uint8 NHWC inputs. ``options``: provider options for all settings, such as ``device``. ``progress`` is
    called before the first setting and after each one, with the report so far.

    Raises OptionError for bad options or ``seconds`` outside (0, 86400], and what creating a session raises. A setting
    that the model or the device does not support is skipped, with the reason.
    """
    check_seconds(seconds)
    notify = progress or (lambda report: None)
    path, base = os.fspath(model), dict(options or {})
    report, batches, feed = _survey(path, base)
    notify(report)
    first = settings_for(report.cores, batches=batches, quick=seconds < 30)
    if not report.device:
        first = [Setting("CPU, 1 caller", None), Setting("CPU, 4 callers", None, 4)]
    later = len(_CALLERS) + 1 if report.device else 0
    each, deadline = seconds / (len(first) + later), time.monotonic() + 1.5 * seconds + GRACE
    series = _Series(report, path, base, each, deadline, notify, feed)
    for setting in first:
        series.measure(setting)
    best = report.best_throughput_on_npu
    if best is not None:
        for setting in _with_other_callers(report, best.setting):
            series.measure(setting)
        best = report.best_throughput_on_npu
        assert best is not None
        camera = {**(best.setting.options or {}), "layout": "nhwc", "input_dtype": "uint8"}
        name = f"uint8 NHWC, {best.setting.name}"
        series.measure(Setting(name, camera, best.setting.callers, changes_input=True))
    report.advice = advise(report)
    return report


def check_seconds(seconds: float) -> None:
    """Raise OptionError for an invalid time limit."""
    if not 0 < seconds <= 86_400:
        raise OptionError(f"seconds: expected a number above 0 and at most 86400, got {seconds!r}")


def settings_for(cores: int, *, batches: bool, quick: bool) -> list[Setting]:
    """The settings to compare first, simplest first. ``batches``: the model accepts batches of any length."""
    every = ",".join(map(str, range(cores)))
    out = [Setting("default, 1 caller", {})]
    if cores > 1:
        out.append(Setting("tp_mode=all, 1 caller", {"tp_mode": "all"}))
        if not quick and cores > 2:
            out.append(Setting("tp_mode=0,1, 1 caller", {"tp_mode": "0,1"}))
        out.append(Setting(f"schedule={every}, 1 caller", {"schedule": every}))
    out.append(Setting("threads_per_core=2, 2 callers", {"threads_per_core": 2}, 2))
    if cores > 1:
        out.append(Setting(f"schedule={every}, {cores} callers", {"schedule": every}, cores))
        options: dict[str, Any] = {"schedule": every, "threads_per_core": 2}
        out.append(Setting(f"schedule={every}, threads_per_core=2, {2 * cores} callers", options, 2 * cores))
    if batches:
        options = {"schedule": every} if cores > 1 else {}
        out.append(Setting(f"a batch of {2 * cores}, 1 caller", options, 1, 2 * cores))
    out.append(Setting("CPU, 1 caller", None))
    return out


def _with_other_callers(report: BenchReport, best: Setting) -> list[Setting]:
    words = best.name.rpartition(", ")[0]
    known = {r.setting.callers for r in report.results if r.setting.options == best.options and r.setting.samples == 1}
    return [
        Setting(f"{words}, {callers} caller{'s' if callers > 1 else ''}", best.options, callers)
        for callers in _CALLERS
        if callers not in known
    ]


def open_session(path: str, base: Mapping[str, Any], options: Mapping[str, Any] | None) -> Any:
    """A session with a setting's ``options``. Does not warn of a fallback: the report says where it runs."""
    if options is None:
        return InferenceSession(path, providers=["CPUExecutionProvider"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        return InferenceSession(path, provider_options={**base, **options} or None)


def why_not_on_npu(session: Any) -> str:
    """Why a session has nothing on the NPU; "" if it has."""
    npu = session._npu
    if npu is not None and npu.executors:
        return ""
    plan = npu.plan if npu is not None else None
    return str(plan.fallback) if plan is not None and plan.fallback else "the session runs on the CPU"


def _survey(path: str, base: Mapping[str, Any]) -> tuple[BenchReport, bool, Mapping[str, Any]]:
    """Where the model runs and what tp_mode can gain; whether it accepts batches of any length; and the inputs of one
    call."""
    with open_session(path, base, {}) as session:
        reason = why_not_on_npu(session)
        if reason:
            report = BenchReport(path, "", 0)
            report.notes.append(reason if reason.startswith("no NPU") else f"no NPU for this model: {reason}")
            _note_free_axes(report, session, feed_for(session))
            return report, False, {}
        device = session._npu.plan.found.device
        report = BenchReport(path, device.name, device.cores, cpus=len(os.sched_getaffinity(0)))
        if device.virtual:
            report.notes.append("a virtual NPU: its times are set, and say nothing of a board")
        batches = any(executor.signature.splits for executor in session._npu.executors)
        onnx = _onnx_of(path)
        feed = feed_for(session)
        _note_free_axes(report, session, feed)
        compiled = compiled_convolutions(executor.provenance.source for executor in session._npu.executors)
    if device.cores > 1 and onnx is not None:
        try:
            report.split = split_share(onnx, lambda so: onnxruntime.InferenceSession(onnx, so, _CPU), feed, compiled)
        except Exception as error:  # whatever onnxruntime raises: this is only informative
            report.notes.append(f"what tp_mode can gain is not known: {' '.join(bare_message(error).split())}")
    return report, batches, feed


def _note_free_axes(report: BenchReport, session: Any, feed: Mapping[str, Any]) -> None:
    """Add the shapes used for free axes: the measured speed depends on them."""
    free = [port.name for port in session.get_inputs() if not all(isinstance(d, int) for d in port.shape)]
    if free:
        shapes = ", ".join(f"{name} {list(feed[name].shape)}" for name in free)
        report.notes.append(f"the model leaves axes free; measured with {shapes}")


_CPU = ["CPUExecutionProvider"]


def _onnx_of(path: str) -> str | None:
    if not path.lower().endswith(".rknn"):
        return path
    return next((os.fspath(name) for name in onnx_twin_names(path) if os.path.isfile(name)), None)


@dataclass(frozen=True, slots=True)
class _Series:
    """Runs the settings of one report, one after the other."""

    report: BenchReport
    path: str
    base: Mapping[str, Any]
    seconds: float
    """Per setting."""
    deadline: float
    """In terms of ``time.monotonic()``; settings that would start later are skipped."""
    progress: Callable[[BenchReport], None]
    feed: Mapping[str, Any]
    """The inputs of one call on the NPU; the CPU gets the same ones, even if the ONNX leaves axes free."""

    def measure(self, setting: Setting) -> None:
        result = Result(setting)
        self.report.results.append(result)
        if time.monotonic() > self.deadline:
            result.skipped = "no time was left"
            self.progress(self.report)
            return
        gc.collect()
        try:
            self._measure(setting, result)
        except Exception as error:  # onnxruntime has a class for each code, and no common one
            result.skipped = " ".join(bare_message(error).split())
        self.progress(self.report)

    def _measure(self, setting: Setting, result: Result) -> None:
        before, start = resident_bytes(), time.perf_counter()
        with open_session(self.path, self.base, setting.options) as session:
            created = time.perf_counter()
            if setting.options is not None and (reason := why_not_on_npu(session)):
                result.skipped = reason
                return
            feed = feed_for(session, setting.samples)
            if setting.options is None and fits(session, self.feed):
                feed = dict(self.feed)
            prepared = time.perf_counter()
            session.run(None, feed)
            result.create_ms = 1000 * (created - start)
            result.first_ms = 1000 * (time.perf_counter() - prepared)
            result.measured = run_load(session, feed, setting.callers, self.seconds, setting.samples)
            result.memory_mb = max(0, resident_bytes() - before) / 1e6
