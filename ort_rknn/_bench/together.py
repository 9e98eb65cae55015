"""``ort_rknn.bench_together()``: how to divide the cores among models that run at the same time."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .._errors import FAIL, OptionError, bare_message, ort_error
from .bench import GRACE, check_seconds, open_session, why_not_on_npu
from .load import Measured, feed_for, run_load
from .report import CLEARLY, session_line


@dataclass(slots=True)
class Arrangement:
    """An assignment of cores to models."""

    name: str
    """"a.onnx: 0,1; b.onnx: 2"."""
    schedules: Sequence[str]
    """The provider option ``schedule`` of each model."""
    measured: Sequence[Measured] = ()
    """Measurements of each model while the others were running. Empty if it was skipped."""
    shares: Sequence[float] = ()
    """For each model: its runs per second as a share of what it reaches alone on all cores."""
    skipped: str = ""

    @property
    def score(self) -> float:
        """The geometric mean of :attr:`shares`, so that starving a model does not pay."""
        return math.prod(self.shares) ** (1 / len(self.shares)) if self.shares else 0.0


@dataclass(slots=True)
class TogetherReport:
    """The report on several models at the same time."""

    models: Sequence[str]
    device: str
    cores: int
    alone: list[Measured] = field(default_factory=list)
    """Each model alone, on all cores."""
    arrangements: list[Arrangement] = field(default_factory=list)
    """The simplest first: all models on all cores."""

    @property
    def best(self) -> Arrangement | None:
        """The first arrangement whose score no other clearly exceeds."""
        best = max((a.score for a in self.arrangements), default=0.0)
        return next((a for a in self.arrangements if a.shares and a.score * CLEARLY >= best), None)

    def lines_to_paste(self) -> list[str]:
        """A line of Python for each model."""
        if self.best is None:
            return []
        return [
            f"{session_line(model, {'schedule': schedule})}  # {measured.runs_per_second:.0f} runs/s"
            for model, schedule, measured in zip(self.models, self.best.schedules, self.best.measured)
        ]

    def as_json(self) -> dict[str, Any]:
        """The report as dicts, lists, strings and numbers."""
        return {
            "models": list(self.models),
            "device": self.device,
            "cores": self.cores,
            "alone": [asdict(measured) for measured in self.alone],
            "arrangements": [
                {
                    "name": a.name,
                    "schedules": list(a.schedules),
                    "measured": [asdict(measured) for measured in a.measured],
                    "shares": list(a.shares),
                    "score": a.score,
                    "skipped": a.skipped,
                }
                for a in self.arrangements
            ],
            "best": None if self.best is None else self.best.name,
            "paste": self.lines_to_paste(),
        }


def bench_together(
    models: Sequence[str | os.PathLike[str]],
    *,
    seconds: float = 20.0,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[TogetherReport], None] | None = None,
) -> TogetherReport:
    """Find the best division of cores if ``models`` run at the same time, each with as many callers as there are cores.

    ``seconds``, ``options`` and ``progress`` as for :func:`ort_rknn.bench`. Raises OptionError for fewer than two
    models, Fail if one of them does not run on the NPU, and what creating a session raises.
    """
    check_seconds(seconds)
    if len(models) < 2:
        raise OptionError(f"models: expected at least two, got {len(models)}")
    paths, base = [os.fspath(model) for model in models], dict(options or {})
    report = TogetherReport(paths, *_device(paths, base))
    every = ",".join(map(str, range(report.cores)))
    report.arrangements += arrangements(paths, report.cores)
    each = seconds / (len(paths) + len(report.arrangements))
    deadline = time.monotonic() + 1.5 * seconds + GRACE
    for path in paths:
        (measured,) = _run([path], [every], base, report.cores, each)
        report.alone.append(measured)
    for one in report.arrangements:
        if time.monotonic() > deadline:
            one.skipped = "no time was left"
            continue
        try:
            one.measured = _run(paths, one.schedules, base, report.cores, each)
        except Exception as error:  # onnxruntime has a class for each code, and no common one
            one.skipped = " ".join(bare_message(error).split())
        else:
            pairs = zip(one.measured, report.alone)
            one.shares = [m.runs_per_second / alone.runs_per_second for m, alone in pairs]
        if progress is not None:
            progress(report)
    return report


def arrangements(paths: Sequence[str], cores: int) -> list[Arrangement]:
    """All models on all cores, then every way to give each model its own cores."""
    every = ",".join(map(str, range(cores)))
    names = [os.path.basename(path) for path in paths]
    out = [Arrangement("all models: all cores", [every] * len(paths))]
    for counts in _parts(cores, len(paths)):
        ends = list(itertools.accumulate(counts))
        schedules = [",".join(map(str, range(end - count, end))) for count, end in zip(counts, ends)]
        out.append(Arrangement("; ".join(f"{n}: {s}" for n, s in zip(names, schedules)), schedules))
    return out


def _parts(whole: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``whole`` as a sum of ``parts`` numbers of at least 1."""
    if parts == 1:
        if whole >= 1:
            yield (whole,)
        return
    for first in range(1, whole - parts + 2):
        for rest in _parts(whole - first, parts - 1):
            yield (first, *rest)


def _device(paths: Sequence[str], base: Mapping[str, Any]) -> tuple[str, int]:
    for path in paths:
        with open_session(path, base, {}) as session:
            if reason := why_not_on_npu(session):
                raise ort_error(FAIL, f"{path} does not run on the NPU: {reason}")
            device = session._npu.plan.found.device
    return device.name, device.cores


def _run(
    paths: Sequence[str], schedules: Sequence[str], base: Mapping[str, Any], callers: int, seconds: float
) -> list[Measured]:
    """Run all of them at once."""
    with contextlib.ExitStack() as stack:
        sessions = [
            stack.enter_context(open_session(path, base, {"schedule": schedule}))
            for path, schedule in zip(paths, schedules)
        ]
        results: list[Measured | Exception | None] = [None] * len(paths)
        begin = threading.Barrier(len(paths))

        def load(place: int) -> None:
            try:
                feed = feed_for(sessions[place])
                begin.wait()
                results[place] = run_load(sessions[place], feed, callers, seconds)
            except Exception as error:
                begin.abort()
                results[place] = error

        threads = [threading.Thread(target=load, args=(place,)) for place in range(len(paths))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    out: list[Measured] = []
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, threading.BrokenBarrierError):
            raise result
    for result in results:
        assert isinstance(result, Measured)
        out.append(result)
    return out
