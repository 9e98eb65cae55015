"""``session.stats()`` and ``ort_rknn.stats()``: counters for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .._executor.counters import CoreStats, ModelStats
    from .._executor.executor import Executor


@dataclass(frozen=True, slots=True)
class Sample:
    """One number for an exporter, following Prometheus and OpenTelemetry."""

    name: str
    """"ort_rknn_runs_total", "ort_rknn_run_seconds_total", "ort_rknn_queued" ..."""
    kind: Literal["counter", "gauge"]
    """A counter never decreases while the process lives."""
    help: str
    """One line."""
    labels: Mapping[str, str]
    """"model", and "core" for values counted by core. All samples with the same name have the same labels."""
    value: float


@dataclass(frozen=True, slots=True)
class Stats:
    """What models on the NPU have done so far. Empty if everything runs on the CPU, for which nothing is counted."""

    models: Sequence[ModelStats]
    """One for each compiled model."""

    @property
    def total(self) -> CoreStats:
        """The sum over all cores of all models."""
        from .._executor.counters import sum_up

        return sum_up(model.total for model in self.models)

    @property
    def queued(self) -> int:
        """Runs waiting for a context now."""
        return sum(model.queued for model in self.models)

    @property
    def cpu_calls(self) -> int:
        """Calls that ran on the ONNX on the CPU because their shape was not compiled, or (under the import swap)
        because they fed an initializer that was."""
        return sum(model.cpu_calls for model in self.models)

    def as_dict(self) -> dict[str, Any]:
        """The counters as dicts, lists, strings and numbers, for JSON."""
        return {
            "queued": self.queued,
            "cpu_calls": self.cpu_calls,
            "total": asdict(self.total),
            "models": [
                {
                    "model": model.model,
                    "queued": model.queued,
                    "cpu_calls": model.cpu_calls,
                    "fallback_runs": model.fallback_runs,
                    "unbound": dict(model.unbound),
                    "cores": {label: asdict(core) for label, core in model.cores.items()},
                }
                for model in self.models
            ],
        }

    def samples(self) -> Iterator[Sample]:
        """Every number with its name, kind, help and labels, for an exporter."""
        for name, kind, text, read in _BY_CORE:
            for model in self.models:
                for label, core in model.cores.items():
                    yield Sample(f"ort_rknn_{name}", kind, text, {"model": model.model, "core": label}, read(core))
        for name, kind, text, read_model in _BY_MODEL:
            for model in self.models:
                yield Sample(f"ort_rknn_{name}", kind, text, {"model": model.model}, read_model(model))


_Kind = Literal["counter", "gauge"]
_BY_CORE: Sequence[tuple[str, _Kind, str, Callable[[CoreStats], float]]] = (
    ("runs_total", "counter", "Runs on the NPU that succeeded", lambda c: c.runs),
    ("errors_total", "counter", "Runs on the NPU that failed", lambda c: c.errors),
    ("waits_total", "counter", "Runs that waited for a context", lambda c: c.waits),
    ("wait_seconds_total", "counter", "Time that runs waited for a context", lambda c: c.wait_seconds),
    ("convert_seconds_total", "counter", "Time of setting inputs", lambda c: c.convert_seconds),
    ("run_seconds_total", "counter", "Time in the runtime's run call", lambda c: c.run_seconds),
    ("fetch_seconds_total", "counter", "Time of getting outputs", lambda c: c.fetch_seconds),
    ("padded_total", "counter", "Runs that were filled up with zeros", lambda c: c.padded),
    ("converted_bytes_total", "counter", "Bytes converted above the runtime", lambda c: c.bytes_converted),
    ("copied_bytes_total", "counter", "Bytes copied by runs with NPU memory", lambda c: c.bytes_copied),
    ("bound_runs_total", "counter", "Runs that used NPU memory without a copy", lambda c: c.bound_runs),
    ("unbound_runs_total", "counter", "Runs that had NPU memory and copied it", lambda c: c.unbound_runs),
    ("outages_total", "counter", "How often the core was taken out because it failed", lambda c: c.outages),
    ("out", "gauge", "1 where the core is out now", lambda c: c.out),
    ("contexts", "gauge", "Contexts that are open", lambda c: c.contexts),
    ("contexts_in_use", "gauge", "Contexts that run now", lambda c: c.in_use),
)
_BY_MODEL: Sequence[tuple[str, _Kind, str, Callable[[ModelStats], float]]] = (
    ("queued", "gauge", "Runs that wait for a context now", lambda m: m.queued),
    ("cpu_calls_total", "counter", "Calls on the CPU because their shape was not compiled", lambda m: m.cpu_calls),
    ("fallback_runs_total", "counter", "Runs on the CPU because the device was gone", lambda m: m.fallback_runs),
)


def of_executors(executors: Sequence[Executor]) -> Stats:
    """The counters of one session."""
    return Stats([executor.stats() for executor in executors])


def stats() -> Stats:
    """The counters of this process: all sessions ever created, including closed ones, each model once.

    Sums never decrease. In a forked child they start at 0. To export them, see :meth:`Stats.samples` and
    ``examples/prometheus_exporter.py``.
    """
    if "ort_rknn._executor.executor" not in sys.modules:
        return Stats([])  # there has been no NPU session yet
    from .._executor.counters import closed_models, merged
    from .._executor.open_model import alive

    # A model that is being closed now may be missed, but is never counted twice.
    closed = closed_models()
    return Stats(merged([*closed, *(executor.stats() for executor in alive())]))
