"""``ort_rknn.trace()``: what every run did and when, as a file for https://ui.perfetto.dev."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from .._executor.recording import Recorder, Slice, on_cores
from .perfetto import TraceWriter


@dataclass(frozen=True, slots=True)
class Span:
    """Activity of a thread other than a run on the NPU: a call of a session, a node on the CPU."""

    thread: int
    """``threading.get_native_id()``"""
    name: str
    begin: int
    """``time.perf_counter_ns()``, as for :attr:`end`."""
    end: int


@dataclass(slots=True)
class TraceSummary:
    """The content of a trace."""

    path: str
    seconds: float = 0.0
    runs: int = 0
    failed: int = 0
    """Of :attr:`runs`."""
    lost: int = 0
    """Runs dropped because there were more than a million."""
    part_seconds: dict[str, float] = field(default_factory=dict)
    """Of all runs together: "wait", "convert", "run", "fetch"; "CPU nodes" if they were recorded."""
    core_seconds: dict[str, float] = field(default_factory=dict)
    """How long each core was busy, by name."""

    def as_json(self) -> dict[str, Any]:
        """The summary as dicts, strings and numbers."""
        return {
            "written": self.path,
            "seconds": self.seconds,
            "runs": self.runs,
            "failed": self.failed,
            "lost": self.lost,
            "part_seconds": dict(self.part_seconds),
            "core_seconds": dict(self.core_seconds),
        }


class trace:
    """Records every run on the NPU in this process, and writes ``path`` at the end of a ``with`` block::

        with ort_rknn.trace("app.pftrace"):
            ...

    Open the file with https://ui.perfetto.dev, which reads it in the browser. It has a track for each core, context and
    calling thread; slices for waiting, setting inputs, the run and getting outputs, with failed runs marked; the number
    of waiting runs, by model; and arrows from a call to its run. A run takes a few microseconds longer while it is
    recorded. Only the first million runs are kept. Raises OSError at the start if ``path`` cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.summary = TraceSummary(os.fspath(path))
        """What was recorded; complete after the end."""
        self.file = os.path.abspath(self.summary.path)
        """The absolute path: the program may change its folder."""
        self._recorder = Recorder()
        self._calls: list[Span] = []
        self._nodes: list[Span] = []
        self._names: dict[int, str] = {}

    def __enter__(self) -> trace:
        with open(self.file, "wb"):
            pass  # reported now rather than at the end of a long program
        self._recorder.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self.write()

    def call(self, name: str, begin: int, end: int) -> None:
        """Record a call of this thread: its runs lie inside. Times as ``time.perf_counter_ns()``."""
        thread = threading.get_native_id()
        self._calls.append(Span(thread, name, begin, end))
        if thread not in self._names:
            self._names[thread] = threading.current_thread().name

    def nodes(self, spans: Sequence[Span]) -> None:
        """Add the activity of onnxruntime's CPU provider, from its profile."""
        self._nodes += spans

    def stop(self) -> None:
        """Stop recording."""
        if not hasattr(self, "_slices"):
            self._ended = time.perf_counter_ns()
            self._slices = self._recorder.stop()

    def write(self) -> TraceSummary:
        """Write the file. Raises OSError."""
        self.stop()
        alive = {t.native_id: t.name for t in threading.enumerate() if t.native_id is not None}
        summary = self.summary
        summary.seconds, summary.lost = (self._ended - self._recorder.began) / 1e9, self._recorder.lost
        writer = _Tracks(self._slices, self._calls, self._nodes, {**alive, **self._names}, summary).write()
        with open(self.file, "wb") as file:
            file.write(writer.to_bytes())
        return summary


def _name(one: Slice) -> str:
    return f"{one.model} (failed)" if one.error else one.model


def _notes(one: Slice) -> dict[str, str]:
    return {"core": one.core, "error": one.error} if one.error else {"core": one.core}


class _Tracks:
    """The tracks and events of one trace."""

    def __init__(
        self,
        slices: Sequence[Slice],
        calls: Sequence[Span],
        nodes: Sequence[Span],
        names: dict[int, str],
        summary: TraceSummary,
    ) -> None:
        self._slices = slices
        self._calls = calls
        self._nodes = nodes
        self._names = names
        self._summary = summary
        self._writer = TraceWriter()
        self._process = self._writer.process("ort_rknn", os.getpid())
        #: By slice: its arrows, from the call to the context and from there to the core.
        self._flows = {id(one): 2 * k + 1 for k, one in enumerate(slices)}

    def write(self) -> TraceWriter:
        self._summary.runs = len(self._slices)
        self._summary.failed = sum(1 for one in self._slices if one.error)
        parts: Counter[str] = Counter()
        for one in self._slices:
            for name, begin, end in one.parts():
                parts[name] += end - begin
        for span in self._nodes:
            parts["CPU nodes"] += span.end - span.begin
        order = ("wait", "convert", "run", "fetch", "CPU nodes")
        self._summary.part_seconds = {name: parts[name] / 1e9 for name in order if name in parts}
        self._cores()
        self._contexts()
        self._queues()
        self._callers()
        return self._writer

    def _cores(self) -> None:
        busy: Counter[int] = Counter()
        runs = list(on_cores(self._slices))
        tracks = {n: self._writer.track(f"NPU core {n}", self._process) for n in sorted({core for core, _, _ in runs})}
        for core, one, begin in runs:
            flow = self._flows[id(one)] + 1
            self._writer.slice(tracks[core], _name(one), begin, one.over, last=(flow,), notes=_notes(one))
            busy[core] += one.over - begin
        self._summary.core_seconds = {f"core {core}": busy[core] / 1e9 for core in tracks}

    def _contexts(self) -> None:
        """By core, then by model. Two contexts of a core show what the second one is waiting for."""
        writer, order = self._writer, sorted({(one.core, one.model, one.context) for one in self._slices})
        seen: Counter[tuple[str, str]] = Counter()
        tracks = {}
        for core, model, context in order:
            seen[core, model] += 1
            tracks[context] = writer.track(f"context {seen[core, model]} of {model}, {core}", self._process)
        for one in sorted(self._slices, key=lambda one: one.start):
            flow, track = self._flows[id(one)], tracks[one.context]
            name = "run that failed" if one.error else "run on the NPU"
            writer.slice(track, name, one.start, one.end, last=(flow,), flows=(flow + 1,), notes=_notes(one))
            for name, begin, end in one.parts():
                if name != "wait":
                    writer.slice(track, name, begin, end)

    def _queues(self) -> None:
        for model in sorted({one.model for one in self._slices}):
            changes: Counter[int] = Counter()
            for one in self._slices:
                if one.model == model and one.start > one.asked:
                    changes[one.asked] += 1
                    changes[one.start] -= 1
            if not changes:
                continue
            track, waiting = self._writer.counter(f"waiting for a context of {model}", self._process), 0
            for at in sorted(changes):
                waiting += changes[at]
                self._writer.count(track, at, waiting)

    def _callers(self) -> None:
        writer = self._writer
        callers = {one.caller for one in self._slices} | {span.thread for span in (*self._calls, *self._nodes)}
        tracks, cpu = {}, {}
        with_nodes = {span.thread for span in self._nodes}
        for thread in sorted(callers):
            name = f"{self._names.get(thread, 'thread')} ({thread})"
            tracks[thread] = writer.track(f"caller {name}", self._process)
            if thread in with_nodes:
                cpu[thread] = writer.track(f"CPU nodes of {name}", self._process)
        for span in sorted(self._calls, key=lambda span: span.begin):
            writer.slice(tracks[span.thread], span.name, span.begin, span.end)
        for one in sorted(self._slices, key=lambda one: one.asked):
            flow, track = self._flows[id(one)], tracks[one.caller]
            if not one.blocks:
                writer.instant(track, f"submit to {one.model}", one.asked, flows=(flow,))
                continue
            writer.slice(track, _name(one), one.asked, one.end, flows=(flow,), notes=_notes(one))
            for name, begin, end in one.parts():
                writer.slice(track, name, begin, end)
        for span in self._nodes:
            writer.slice(cpu[span.thread], span.name, span.begin, span.end)
