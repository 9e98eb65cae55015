"""The results of a benchmark of one model, and the conclusions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .load import Measured
from .splitting import SplitShare

#: A setting must be better than a simpler one by this factor to be recommended instead, so that noise does not decide.
CLEARLY = 1.05


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a model."""

    name: str
    """For tables: "tp_mode=all, 1 caller"."""
    options: Mapping[str, Any] | None
    """Provider options; None: on the CPU, with onnxruntime's own provider."""
    callers: int = 1
    samples: int = 1
    """Samples per call, for a model with a free batch axis."""
    changes_input: bool = False
    """The program must feed different inputs: uint8 in NHWC."""


@dataclass(slots=True)
class Result:
    """The result of a setting. Exactly one of ``measured`` and ``skipped`` is set."""

    setting: Setting
    measured: Measured | None = None
    create_ms: float = 0.0
    """Time to create the session."""
    first_ms: float = 0.0
    """Time of the first run."""
    memory_mb: float = 0.0
    """Growth of the process's memory from before the session to after the last run."""
    skipped: str = ""
    """Why it was not measured."""


@dataclass(slots=True)
class BenchReport:
    """All settings of one model, the simplest first, and the conclusions."""

    model: str
    """The path as given."""
    device: str
    """"" if there is no NPU for it."""
    cores: int
    results: list[Result] = field(default_factory=list)
    split: SplitShare | None = None
    """What ``tp_mode`` can gain; None if unknown, or if the device has one core."""
    notes: list[str] = field(default_factory=list)
    cpus: int = 0
    """How many of the host's CPUs this process may use; 0 if that is not known."""
    advice: str = ""
    """One sentence: the bottleneck, and the option that helps."""

    @property
    def best_throughput(self) -> Result | None:
        """The simplest setting whose runs per second no other clearly exceeds, including the CPU."""
        return _simplest(self._usable(), _throughput)

    @property
    def best_latency(self) -> Result | None:
        """The simplest setting whose median for one caller no other clearly undercuts, including the CPU."""
        return _simplest(_alone(self._usable()), _latency)

    @property
    def best_throughput_on_npu(self) -> Result | None:
        """As :attr:`best_throughput`, without the CPU. None if nothing ran on an NPU."""
        return _simplest(self._on_npu(), _throughput)

    @property
    def best_latency_on_npu(self) -> Result | None:
        """As :attr:`best_latency`, without the CPU. None if nothing ran on an NPU."""
        return _simplest(_alone(self._on_npu()), _latency)

    def _usable(self) -> list[Result]:
        return [r for r in self.results if r.measured and not r.setting.changes_input and r.setting.samples == 1]

    def _on_npu(self) -> list[Result]:
        return [r for r in self._usable() if r.setting.options is not None]

    def lines_to_paste(self) -> list[str]:
        """Two lines of Python that create a session, for the best throughput and for the best latency; if the CPU is
        the best, also those for the NPU."""
        best = [("best throughput", self.best_throughput), ("best latency", self.best_latency)]
        if self.best_throughput_on_npu is not self.best_throughput:
            best.insert(1, ("best throughput on the NPU", self.best_throughput_on_npu))
        if self.best_latency_on_npu is not self.best_latency:
            best.append(("best latency on the NPU", self.best_latency_on_npu))
        lines = []
        for what, result in best:
            if result is None:
                continue
            measured, callers = of(result), result.setting.callers
            figure = f"{measured.p50_ms:.2f} ms" if "latency" in what else f"{measured.runs_per_second:.0f} runs/s"
            called = f", {callers} callers" if callers > 1 else ""
            lines.append(f"{session_line(self.model, result.setting.options)}  # {what}: {figure}{called}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""
        share = self.split
        return {
            "model": self.model,
            "device": self.device,
            "cores": self.cores,
            "tp_mode": None if share is None else {"share": share.share, "at_most": share.gain(max(self.cores, 1))},
            "results": [_result_as_json(result) for result in self.results],
            "best_throughput": _name(self.best_throughput),
            "best_latency": _name(self.best_latency),
            "best_throughput_on_npu": _name(self.best_throughput_on_npu),
            "best_latency_on_npu": _name(self.best_latency_on_npu),
            "paste": self.lines_to_paste(),
            "advice": self.advice,
            "notes": list(self.notes),
        }


def of(result: Result) -> Measured:
    """The measurements of a result that has them."""
    assert result.measured is not None
    return result.measured


def session_line(model: str, options: Mapping[str, Any] | None) -> str:
    """The line of Python that creates a session."""
    if options is None:
        return f'ort_rknn.InferenceSession({model!r}, providers=["CPUExecutionProvider"])'
    given = f", provider_options={dict(options)!r}" if options else ""
    return f"ort_rknn.InferenceSession({model!r}{given})"


def _result_as_json(result: Result) -> dict[str, Any]:
    setting = result.setting
    return {
        "name": setting.name,
        "options": None if setting.options is None else dict(setting.options),
        "callers": setting.callers,
        "samples": setting.samples,
        "changes_input": setting.changes_input,
        "create_ms": result.create_ms,
        "first_ms": result.first_ms,
        "memory_mb": result.memory_mb,
        "skipped": result.skipped,
        "measured": None if result.measured is None else asdict(result.measured),
    }


def _name(result: Result | None) -> str | None:
    return None if result is None else result.setting.name


def _throughput(result: Result) -> float:
    return of(result).runs_per_second


def _latency(result: Result) -> float:
    return 1.0 / of(result).p50_ms


def _alone(results: Sequence[Result]) -> list[Result]:
    return [r for r in results if r.setting.callers == 1]


def _simplest(results: Sequence[Result], value: Callable[[Result], float]) -> Result | None:
    """The first result that no other exceeds by :data:`CLEARLY`; they are ordered by simplicity."""
    best = max(map(value, results), default=0.0)
    return next((r for r in results if value(r) * CLEARLY >= best), None)
