"""``ort_rknn.bench()``: which options are fastest for a model on this machine.

Settings are measured one after the other, each with a session of its own, within a bound of time. What is recommended
is the simplest setting that nothing beats clearly: noise must not decide.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .._errors import OptionError, bare_message
from .load import Measured, feed_for, put_load, resident_mb
from .splitting import SplitShare, split_share

#: A setting must be this much better than a simpler one to be recommended in its place.
CLEARLY = 1.05


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a model."""

    name: str
    """For tables: "tp_mode=all, 1 caller"."""
    options: Mapping[str, Any] | None
    """Provider options; None: on the CPU, by onnxruntime's own provider."""
    callers: int = 1
    samples: int = 1
    """Samples of one call, for a model whose batch is free."""
    changes_input: bool = False
    """The program must feed something else: uint8 in NHWC."""


@dataclass(slots=True)
class Result:
    """What a setting did."""

    setting: Setting
    measured: Measured | None = None
    """None: it was not possible, see :attr:`skipped`."""
    create_ms: float = 0.0
    first_ms: float = 0.0
    memory_mb: float = 0.0
    """RAM that the session took, as far as the process grew."""
    skipped: str = ""


@dataclass(slots=True)
class BenchReport:
    """All settings of one model, and what follows from them."""

    model: str
    device: str
    """ "" where there is no NPU for it."""
    cores: int
    results: list[Result] = field(default_factory=list)
    split: SplitShare | None = None
    notes: list[str] = field(default_factory=list)

    def _usable(self) -> list[Result]:
        return [r for r in self.results if r.measured is not None and not r.setting.changes_input]

    @property
    def best_throughput(self) -> Result | None:
        """The simplest setting whose runs per second nothing beats clearly."""
        return _simplest([r for r in self._usable() if r.setting.samples == 1], lambda r: _of(r).runs_per_second)

    @property
    def best_latency(self) -> Result | None:
        """The simplest setting whose median for one caller nothing beats clearly."""
        one = [r for r in self._usable() if r.setting.callers == 1 and r.setting.samples == 1]
        return _simplest(one, lambda r: 1.0 / _of(r).p50_ms)

    @property
    def advice(self) -> str:
        """One sentence: what the bottleneck is, and which option helps."""
        from .advice import advise

        return advise(self)

    def lines_to_paste(self) -> list[str]:
        """Two lines of Python: a session for the best throughput, and one for the best latency."""
        lines = []
        for what, best in (("best throughput", self.best_throughput), ("best latency", self.best_latency)):
            if best is not None:
                m = _of(best)
                told = f"{m.runs_per_second:.0f} runs/s" if what == "best throughput" else f"{m.p50_ms:.2f} ms"
                called = f", {best.setting.callers} callers" if best.setting.callers > 1 else ""
                lines.append(f"{_line(self.model, best.setting.options)}  # {what}: {told}{called}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers, for JSON."""
        share = self.split
        throughput, latency = self.best_throughput, self.best_latency
        return {
            "model": self.model,
            "device": self.device,
            "cores": self.cores,
            "tp_mode": None if share is None else {"share": share.share, "at_most": share.gain(max(self.cores, 1))},
            "results": [
                {
                    "name": r.setting.name,
                    "options": None if r.setting.options is None else dict(r.setting.options),
                    "callers": r.setting.callers,
                    "samples": r.setting.samples,
                    "changes_input": r.setting.changes_input,
                    "create_ms": r.create_ms,
                    "first_ms": r.first_ms,
                    "memory_mb": r.memory_mb,
                    "skipped": r.skipped,
                    "measured": None if r.measured is None else asdict(r.measured),
                }
                for r in self.results
            ],
            "best_throughput": throughput.setting.name if throughput is not None else None,
            "best_latency": latency.setting.name if latency is not None else None,
            "paste": self.lines_to_paste(),
            "advice": self.advice,
            "notes": list(self.notes),
        }


def _of(result: Result) -> Measured:
    assert result.measured is not None
    return result.measured


def _simplest(results: Sequence[Result], value: Callable[[Result], float]) -> Result | None:
    """The first one that no other beats by :data:`CLEARLY`; they come in the order of their simplicity."""
    best = max(map(value, results), default=0.0)
    return next((r for r in results if value(r) * CLEARLY >= best), None)


def _line(model: str, options: Mapping[str, Any] | None) -> str:
    if options is None:
        return f'ort_rknn.InferenceSession("{model}", providers=["CPUExecutionProvider"])'
    given = f", provider_options={dict(options)!r}" if options else ""
    return f'ort_rknn.InferenceSession("{model}"{given})'


def settings_for(cores: int, *, splits: bool, quick: bool) -> list[Setting]:
    """What is compared first, simplest first. ``splits``: the model takes batches of any length."""
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
    if splits:
        options = {"schedule": every} if cores > 1 else {}
        out.append(Setting(f"a batch of {2 * cores}, 1 caller", options, 1, 2 * cores))
    out.append(Setting("CPU, 1 caller", None))
    return out


def bench(
    model: str | os.PathLike[str],
    *,
    seconds: float = 20.0,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[BenchReport], None] | None = None,
) -> BenchReport:
    """Compare options for ``model`` (an ONNX or ``.rknn``) within about ``seconds``.

    ``options``: provider options that all settings have, such as ``device``. ``progress`` is called after each setting
    with the report so far. Raises OptionError for bad options or ``seconds`` that are not positive, and what making a
    session raises; a setting that the model or the device does not take is skipped with its reason.
    """
    if not 0 < seconds <= 86_400:
        raise OptionError(f"seconds: a number above 0 and at most 86400 is wanted; got {seconds!r}")
    path = os.fspath(model)
    base = dict(options or {})
    report = _survey(path, base)
    quick = seconds < 30
    on_npu = bool(report.device)
    first = settings_for(report.cores, splits=_splits(path, base) if on_npu else False, quick=quick)
    if not on_npu:
        first = [s for s in first if s.options is None] + [Setting("CPU, 4 callers", None, 4)]
    later = 1 + 5 if on_npu else 0
    each = seconds / (len(first) + later)
    deadline = time.monotonic() + 1.5 * seconds
    for setting in first:
        _measure(report, path, base, setting, each, deadline, progress)
    best = report.best_throughput
    if on_npu and best is not None and best.setting.options is not None:
        _sweep(report, path, base, best.setting, each, deadline, progress)
        camera = {**best.setting.options, "layout": "nhwc", "input_dtype": "uint8"}
        name = f"uint8 NHWC, {best.setting.name}"
        setting = Setting(name, camera, best.setting.callers, changes_input=True)
        _measure(report, path, base, setting, each, deadline, progress)
    return report


def _survey(path: str, base: Mapping[str, Any]) -> BenchReport:
    """Where the model runs, and what tp_mode can gain."""
    with _session(path, base, Setting("", {})) as session:
        state = session._npu
        device = state.plan.found.device if state is not None and state.executors and state.plan.found else None
        report = BenchReport(path, device.name if device else "", device.cores if device else 0)
        if device is None:
            report.notes.append("no NPU for this model: " + _why_not(session))
        elif device.virtual:
            report.notes.append("a virtual NPU: its times are set, and say nothing of a board")
        onnx = _onnx_of(path, session)
        feed = feed_for(session)
    if device is not None and device.cores > 1 and onnx is not None:
        import onnxruntime

        def plain(so: Any) -> Any:
            return onnxruntime.InferenceSession(onnx, so, ["CPUExecutionProvider"])

        try:
            report.split = split_share(onnx, plain, feed)
        except Exception as error:  # whatever onnxruntime raises: this is only for information
            report.notes.append(f"what tp_mode can gain is not known: {bare_message(error)}")
    return report


def _why_not(session: Any) -> str:
    plan = session._npu.plan if session._npu is not None else None
    return str(plan.fallback) if plan is not None and plan.fallback else "the session runs on the CPU"


def _onnx_of(path: str, session: Any) -> str | None:
    if path.endswith(".onnx"):
        return path
    plan = session._npu.plan if session._npu is not None else None
    onnx = getattr(session._npu.facts, "onnx_path", None) if plan is not None else None
    return onnx if isinstance(onnx, str) else None


def _splits(path: str, base: Mapping[str, Any]) -> bool:
    with _session(path, base, Setting("", {})) as session:
        return any(executor.signature.splits for executor in session._npu.executors)


def _session(path: str, base: Mapping[str, Any], setting: Setting) -> Any:
    import warnings

    from .._errors import FallbackWarning
    from .._session.session import InferenceSession

    if setting.options is None:
        return InferenceSession(path, providers=["CPUExecutionProvider"])
    options = {**base, **setting.options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # the report says where it runs
        return InferenceSession(path, provider_options=options or None)


def _measure(
    report: BenchReport,
    path: str,
    base: Mapping[str, Any],
    setting: Setting,
    seconds: float,
    deadline: float,
    progress: Callable[[BenchReport], None] | None,
) -> None:
    result = Result(setting)
    report.results.append(result)
    if time.monotonic() > deadline:
        result.skipped = "no time was left"
        return
    gc.collect()
    before = resident_mb()
    start = time.perf_counter()
    try:
        with _session(path, base, setting) as session:
            created = time.perf_counter()
            if setting.options is not None and not session._npu.executors:
                result.skipped = _why_not(session)
                return
            feed = feed_for(session, setting.samples)
            prepared = time.perf_counter()
            session.run(None, feed)
            result.create_ms = 1000 * (created - start)
            result.first_ms = 1000 * (time.perf_counter() - prepared)
            result.measured = put_load(session, feed, setting.callers, seconds, setting.samples)
            result.memory_mb = max(0.0, resident_mb() - before)
    except Exception as error:  # onnxruntime has a class for each code, and none for all of them
        result.skipped = " ".join(bare_message(error).split())
    finally:
        if progress is not None:
            progress(report)


def _sweep(
    report: BenchReport,
    path: str,
    base: Mapping[str, Any],
    best: Setting,
    seconds: float,
    deadline: float,
    progress: Callable[[BenchReport], None] | None,
) -> None:
    """The best setting with 1 to 16 callers."""
    words = best.name.rpartition(", ")[0]
    for callers in (1, 2, 4, 8, 16):
        known = any(
            r.setting.options == best.options and r.setting.callers == callers and r.setting.samples == 1
            for r in report.results
        )
        if not known:
            text = f"{words}, {callers} caller{'s' if callers > 1 else ''}"
            _measure(report, path, base, Setting(text, best.options, callers), seconds, deadline, progress)
