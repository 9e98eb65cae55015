"""A trace of one model under a load, with the nodes that onnxruntime runs on the CPU."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnxruntime

from .._errors import OptionError
from .._measure.trace import Span, TraceSummary, trace
from .._session.session import InferenceSession
from .layers import Layer, layers_of
from .load import feed_for


@dataclass(frozen=True, slots=True)
class TracedModel:
    """What :func:`trace_model` found."""

    summary: TraceSummary
    layers: Sequence[Layer]
    """The slowest first."""

    def as_json(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers."""
        return {**self.summary.as_json(), "layers": [asdict(layer) for layer in self.layers]}


def trace_model(
    model: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    runs: int = 50,
    callers: int = 1,
    options: Mapping[str, Any] | None = None,
    layers: bool = False,
) -> TracedModel:
    """Trace ``runs`` calls of ``model`` by each of ``callers`` threads, after a first one, and write ``path``.

    ``options``: provider options. ``layers``: look at the layers of the compiled models too. Raises OptionError for bad
    options, for less than one run or caller, OSError where ``path`` cannot be written, what making a session or running
    it raises, and Fail where the runtime does not tell its layers.
    """
    for name, value in (("runs", runs), ("callers", callers)):
        if not 1 <= value <= 100_000:
            raise OptionError(f"{name}: expected an integer from 1 to 100000, got {value!r}")
    with tempfile.TemporaryDirectory(prefix="ort_rknn_trace") as folder:
        so = onnxruntime.SessionOptions()
        so.enable_profiling = True
        so.profile_file_prefix = os.path.join(folder, "profile")
        with InferenceSession(os.fspath(model), so, provider_options=dict(options or {}) or None) as session:
            began = _as_perf_counter(session.get_profiling_start_time_ns())
            feed = feed_for(session)
            session.run(None, feed)
            writer = trace(path)
            with writer:
                first = time.perf_counter_ns()
                _load(session, feed, runs, callers, writer, os.path.basename(os.fspath(model)))
                writer.stop()
                with open(session.end_profiling(), encoding="utf-8", errors="replace") as file:
                    writer.nodes([span for span in _cpu_nodes(json.load(file), began) if span.begin >= first])
            return TracedModel(writer.summary, layers_of(session) if layers else [])


def _as_perf_counter(ns: int) -> int:
    """A time of onnxruntime's clock, which is the system's, as ``time.perf_counter_ns()``."""
    return ns - time.time_ns() + time.perf_counter_ns()


def _load(session: Any, feed: Mapping[str, Any], runs: int, callers: int, writer: trace, name: str) -> None:
    names = [output.name for output in session.get_outputs()]
    failed: list[BaseException] = []

    def call() -> None:
        try:
            for _ in range(runs):
                if failed:
                    return
                begin = time.perf_counter_ns()
                session.run(names, feed)
                writer.call(f"run {name}", begin, time.perf_counter_ns())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call, name=str(k)) for k in range(callers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException as error:  # a Ctrl-C: nobody goes on behind it
        failed.append(error)
        raise
    if failed:
        raise failed[0]


def _cpu_nodes(events: Any, began: int) -> list[Span]:
    """The kernels of onnxruntime's CPU provider in a profile that began then. Its times are rounded down to whole
    microseconds; the beginning is taken as late as it may have been, so that nothing overlaps."""
    out = []
    for event in events:
        args = event.get("args", {})
        if event.get("cat") == "Node" and args.get("provider") == "CPUExecutionProvider" and event["dur"] > 0:
            begin, end = began + 1000 * event["ts"] + 999, began + 1000 * (event["ts"] + event["dur"])
            name = f"{args['op_name']} {event['name'].removesuffix('_kernel_time')}"
            out.append(Span(event["tid"], name, begin, end))
    return out
