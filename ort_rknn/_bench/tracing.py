"""Traces one model under load, including the nodes that onnxruntime runs on the CPU."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .._errors import OptionError
from .._measure.cpu_nodes import NodeProfiles
from .._measure.trace import TraceSummary, trace
from .._session.session import InferenceSession
from .layers import LayerTime, layers_of
from .load import feed_for


@dataclass(frozen=True, slots=True)
class TracedModel:
    """The result of :func:`trace_model`."""

    summary: TraceSummary
    layers: Sequence[LayerTime]
    """The slowest first."""

    def as_json(self) -> dict[str, Any]:
        """The result as dicts, lists, strings and numbers."""
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
    """Trace ``runs`` calls of ``model`` by each of ``callers`` threads, after a warm-up call, and write ``path``.

    ``options``: provider options. ``layers``: also measure the layers of the compiled models. Raises OptionError for
    bad options and for less than one run or caller, OSError if ``path`` cannot be written, what creating a session or
    running it raises, and Fail if the runtime does not report its layers.
    """
    for name, value in (("runs", runs), ("callers", callers)):
        if not 1 <= value <= 100_000:
            raise OptionError(f"{name}: expected an integer from 1 to 100000, got {value!r}")
    profiles = NodeProfiles()
    try:
        given = dict(options or {}) or None
        with profiles.create(
            None, lambda so: InferenceSession(os.fspath(model), so, provider_options=given)
        ) as session:
            feed = feed_for(session)
            session.run(None, feed)
            writer = trace(path)
            with writer:
                first = time.perf_counter_ns()
                _load(session, feed, runs, callers, writer, os.path.basename(os.fspath(model)))
                writer.stop()
                writer.nodes([span for span in profiles.collect() if span.begin >= first])
            return TracedModel(writer.summary, layers_of(session) if layers else [])
    finally:
        profiles.discard()


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
    except BaseException as error:  # a Ctrl-C: stop the other callers
        failed.append(error)
        raise
    if failed:
        raise failed[0]
