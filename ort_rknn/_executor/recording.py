"""What each run did and when, for profiles and traces. Nothing is recorded while there is no listener.

A run checks :data:`sinks` once, after its work; if the list is empty, that is all it costs.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .lanes import Lease
    from .signature import Signature


#: For a run that waited for a context: when it began to wait (``time.perf_counter_ns()``), which thread asked for it
#: (``threading.get_native_id()``), and whether that thread sleeps until the run has ended.
Asked: TypeAlias = tuple[int, int, bool]


def asked_now(*, blocks: bool) -> Asked:
    """The values for a run that starts to wait now."""
    return time.perf_counter_ns(), threading.get_native_id(), blocks


@dataclass(frozen=True, slots=True)
class Slice:
    """One run. Times are ``time.perf_counter_ns()``, in this order."""

    owner: Signature
    """One object per executor."""
    model: str
    """The compiled model's label."""
    core: str
    """"core 0", "cores 0,1 together": as in ``stats()``."""
    context: int
    """Identifies the context; not the runtime's own number."""
    thread: int
    """The native id of the thread that it ran on (``threading.get_native_id()``)."""
    caller: int
    """The native id of the thread that asked for it."""
    blocks: bool
    """That thread sleeps until the run has ended."""
    asked: int
    """Started to wait for a context; equal to :attr:`start` if one was idle."""
    start: int
    """Started to set inputs."""
    ready: int
    """Called the NPU."""
    over: int
    """The NPU had run."""
    end: int
    """The outputs were written."""
    error: str = ""
    """The error, if it failed. The times in between are then unknown: :attr:`start` is :attr:`ready`, :attr:`over` is
    :attr:`end`."""

    def parts(self) -> tuple[tuple[str, int, int], ...]:
        """(name, from, to) of the phases that took time: wait, convert, run, fetch."""
        parts = (
            ("wait", self.asked, self.start),
            ("convert", self.start, self.ready),
            ("run", self.ready, self.over),
            ("fetch", self.over, self.end),
        )
        return tuple(part for part in parts if part[2] > part[1])

    def cores(self) -> tuple[int, ...]:
        """The numbers of its cores, all of those that work together; () if the runtime chose one."""
        return tuple(sorted({int(number) for number in re.findall(r"\d+", self.core)}))


#: The listeners. Called on the thread of the run; must not block, and must not raise.
sinks: list[Callable[[Slice], None]] = []


def record(
    owner: Signature, model: str, lease: Lease, times: tuple[int, int, int, int], asked: Asked | None = None
) -> None:
    """Report a run on ``lease`` to the listeners. ``asked``: for a run that waited."""
    start, ready, over, end = times
    if lease.began <= start and end <= lease.ended:  # it was also converted above the runtime
        start, end = lease.began, lease.ended
    _publish_run(owner, model, lease, (start, ready, over, end), asked)


def record_failure(
    owner: Signature, model: str, lease: Lease, began: int, error: Exception, asked: Asked | None = None
) -> None:
    """Report a failed run on ``lease`` to the listeners. ``began``: when it was called."""
    end = time.perf_counter_ns()
    _publish_run(owner, model, lease, (began, began, end, end), asked, str(error))


def _publish_run(
    owner: Signature,
    model: str,
    lease: Lease,
    times: tuple[int, int, int, int],
    asked: Asked | None,
    error: str = "",
) -> None:
    thread = threading.get_native_id()
    since, caller, blocks = asked or (times[0], thread, True)
    run = Slice(owner, model, lease.label, id(lease), thread, caller, blocks, since, *times, error)
    for sink in list(sinks):
        sink(run)


def on_cores(slices: Iterable[Slice]) -> Iterator[tuple[int, Slice, int]]:
    """(core, slice, begin) of each run on a known core: once for each of its cores, ordered by end.

    Several contexts may have called a core: their runs are serialized there, so a run that was called earlier begins
    where the previous one ended.
    """
    last: dict[int, int] = {}
    for one in sorted(slices, key=lambda one: one.over):
        for core in one.cores():
            begin = max(one.ready, last.get(core, 0))
            last[core] = one.over
            yield core, one, begin


class Recorder:
    """Collects slices from :meth:`start` to :meth:`stop`, up to ``limit``."""

    def __init__(self, limit: int = 1_000_000) -> None:
        self._limit = limit
        self._slices: list[Slice] = []
        self.lost = 0
        """Runs beyond the limit, which are dropped."""
        self.began = 0
        """When it was started, as ``time.perf_counter_ns()``."""

    def start(self) -> None:
        """Start. Earlier slices are dropped."""
        self._slices, self.lost, self.began = [], 0, time.perf_counter_ns()
        if self._keep not in sinks:
            sinks.append(self._keep)

    def stop(self) -> list[Slice]:
        """Stop, and return the recorded slices, ordered by end. [] if it is not recording."""
        if self._keep in sinks:
            sinks.remove(self._keep)
        slices, self._slices = self._slices, []
        return list(slices)

    def _keep(self, one: Slice) -> None:
        if len(self._slices) < self._limit:
            self._slices.append(one)
        else:
            self.lost += 1
