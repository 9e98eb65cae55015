"""Counters of executors: what a model's cores have done, and what they are doing.

A run updates the counters of the context it holds, which nothing else uses meanwhile: no lock, no lost count. Reading
adds them up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from .._concurrency.forks import renewed_in_child
from .._locks import RLock
from .buffers import sums

if TYPE_CHECKING:
    from .lanes import Lane, Lease


@dataclass(frozen=True, slots=True)
class CoreStats:
    """One core, or a group of cores that run together. Seconds and counts are sums since the session was created."""

    contexts: int = 0
    """Contexts that are open now."""
    in_use: int = 0
    """Contexts that are running now."""
    runs: int = 0
    """Runs that succeeded. Each run of a split batch counts."""
    errors: int = 0
    """Runs that failed, or that the runtime refused."""
    waits: int = 0
    """Runs that waited for a context."""
    wait_seconds: float = 0.0
    """Total time they waited."""
    convert_seconds: float = 0.0
    """Setting inputs: conversion and copies, by us and by the runtime. On the CPU."""
    run_seconds: float = 0.0
    """In the runtime's run call: the NPU is working, or a run of another context has the core. With one context per
    core, this is the time that the core was busy."""
    fetch_seconds: float = 0.0
    """Getting outputs: widening and copies, by the runtime and by us. On the CPU."""
    padded: int = 0
    """Runs that were zero-padded because their shape was not compiled."""
    bytes_converted: int = 0
    """Bytes converted above the runtime (dtypes, layouts and padding that it does not handle itself)."""
    bytes_copied: int = 0
    """Bytes copied by runs with NPU memory, for inputs and outputs in ordinary memory."""
    bound_runs: int = 0
    """Runs that read or wrote NPU memory (:func:`ort_rknn.empty`) without a copy."""
    unbound_runs: int = 0
    """Runs that had NPU memory and copied it; :attr:`ModelStats.unbound` gives the reasons."""
    outages: int = 0
    """How often it was taken out of service after repeated failures."""
    out: int = 0
    """1 if it is out of service now, and gets no runs; in sums, the number of such cores."""

    def __add__(self, other: CoreStats) -> CoreStats:
        return CoreStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(CoreStats)))


@dataclass(frozen=True, slots=True)
class ModelStats:
    """One compiled model of a session; a model in parts has one per part."""

    model: str
    """The compiled model's label: its file name."""
    cores: Mapping[str, CoreStats]
    """By "core 0", "cores 0,1 together", "one core of the runtime's choice"."""
    queued: int = 0
    """Runs waiting for a context now."""
    cpu_calls: int = 0
    """Calls that ran on the ONNX on the CPU because their shape was not compiled, or because they fed an initializer
    that was."""
    fallback_runs: int = 0
    """Runs of the ONNX on the CPU because the device was gone."""
    unbound: Mapping[str, int] = field(default_factory=dict)
    """Runs that had NPU memory and copied it, by reason."""

    @property
    def total(self) -> CoreStats:
        """All cores together."""
        return sum_up(self.cores.values())


def sum_up(cores: Iterable[CoreStats]) -> CoreStats:
    """The sum of all cores."""
    total = CoreStats()
    for core in cores:
        total += core
    return total


def gather(
    label: str,
    leases: Iterable[Lease],
    lanes: Iterable[Lane],
    cpu_calls: int,
    fallback_runs: int,
    outages: Mapping[str, tuple[int, bool]],
) -> ModelStats:
    """The current counters of an executor's contexts.

    A run that ends meanwhile may be in one of two sums and not yet in the other.
    """
    leases = list(leases)
    idle = {id(lease) for lane in lanes for lease in lane.idle()}
    cores: dict[str, CoreStats] = {}
    for lease in leases:
        one = CoreStats(
            contexts=1,
            in_use=int(id(lease) not in idle),
            runs=lease.runs,
            errors=lease.errors,
            waits=lease.waits,
            wait_seconds=lease.wait_ns / 1e9,
            convert_seconds=lease.convert_ns / 1e9,
            run_seconds=lease.run_ns / 1e9,
            fetch_seconds=lease.fetch_ns / 1e9,
            padded=lease.padded,
            bytes_converted=lease.converted,
            bytes_copied=lease.buffer_runs.copied,
            bound_runs=lease.buffer_runs.bound,
            unbound_runs=sum(lease.buffer_runs.usual.copy().values()),
        )
        cores[lease.label] = cores.get(lease.label, CoreStats()) + one
    for core, (times, out) in outages.items():
        cores[core] = replace(cores[core], outages=times, out=int(out))
    unbound = sums(lease.buffer_runs.usual.copy() for lease in leases)
    return ModelStats(label, cores, sum(lane.queued() for lane in lanes), cpu_calls, fallback_runs, unbound)


def merged(models: Iterable[ModelStats]) -> list[ModelStats]:
    """One entry per model: sessions of the same model are added up."""
    out: dict[str, ModelStats] = {}
    for one in models:
        before = out.get(one.model)
        if before is None:
            out[one.model] = one
            continue
        cores = dict(before.cores)
        for label, core in one.cores.items():
            cores[label] = cores.get(label, CoreStats()) + core
        out[one.model] = ModelStats(
            one.model,
            cores,
            before.queued + one.queued,
            before.cpu_calls + one.cpu_calls,
            before.fallback_runs + one.fallback_runs,
            sums((before.unbound, one.unbound)),
        )
    return list(out.values())


_closed: dict[str, ModelStats] = {}
#: Reentrant, because garbage collection may close an executor anywhere.
_lock = renewed_in_child(RLock())


def remember_closed(stats: ModelStats) -> None:
    """Keep the counters of a closed executor in the sums of the process, which never decrease."""
    with _lock:
        both = [s for s in (_closed.get(stats.model),) if s is not None]
        _closed[stats.model] = merged([*both, without_contexts(stats)])[0]


def without_contexts(stats: ModelStats) -> ModelStats:
    """What is left of the counters when the contexts are closed."""
    rest = {label: replace(core, contexts=0, in_use=0, out=0) for label, core in stats.cores.items()}
    return replace(stats, cores=rest, queued=0)


def closed_models() -> list[ModelStats]:
    """The sums of all closed executors."""
    with _lock:
        return list(_closed.values())


def forget_closed() -> None:
    """In a forked child: forget the parent's sums."""
    _closed.clear()
