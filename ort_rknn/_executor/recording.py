"""What each run did and when, for profiles and traces. Nothing is recorded while nobody listens.

A run looks at :data:`sinks` once, after its work; an empty list costs it one test.
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


#: Of a run that waited for a context: since when (``time.perf_counter_ns()``), which thread asked for it
#: (``threading.get_native_id()``), and whether that thread sleeps until the run has ended.
Asked: TypeAlias = tuple[int, int, bool]


def asked_now(*, blocks: bool) -> Asked:
    """That of a run that begins to wait now."""
    return time.perf_counter_ns(), threading.get_native_id(), blocks


@dataclass(frozen=True, slots=True)
class Slice:
    """One run. Times are ``time.perf_counter_ns()``, in this order."""

    owner: Signature
    """One object for each executor."""
    model: str
    """The compiled model's label."""
    core: str
    """"core 0", "cores 0,1 together": as in ``stats()``."""
    context: int
    """Tells contexts apart; not the runtime's own number."""
    thread: int
    """The kernel's number of the thread that it ran on (``threading.get_native_id()``)."""
    caller: int
    """That of the thread that asked for it."""
    blocks: bool
    """That thread sleeps until the run has ended."""
    asked: int
    """When it began to wait for a context; equal to :attr:`start` where one was idle."""
    start: int
    """Inputs began to be set."""
    ready: int
    """The NPU was asked to run."""
    over: int
    """It had run."""
    end: int
    """Outputs were written."""
    error: str = ""
    """Why it failed. What it did meanwhile is not known then: :attr:`start` is :attr:`ready`, :attr:`over` is
    :attr:`end`."""

    def parts(self) -> tuple[tuple[str, int, int], ...]:
        """(name, from, to) of what took time: wait, convert, run, fetch."""
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


#: Who listens. Called on the thread of the run; must not block, and must not raise.
sinks: list[Callable[[Slice], None]] = []


def record(
    owner: Signature, model: str, lease: Lease, times: tuple[int, int, int, int], asked: Asked | None = None
) -> None:
    """Tell those who listen about a run on ``lease``. ``asked``: of one that waited."""
    start, ready, over, end = times
    if lease.began <= start and end <= lease.ended:  # it was converted above the runtime, too
        start, end = lease.began, lease.ended
    _tell(owner, model, lease, (start, ready, over, end), asked)


def record_failure(
    owner: Signature, model: str, lease: Lease, began: int, error: Exception, asked: Asked | None = None
) -> None:
    """Tell those who listen about a run on ``lease`` that failed. ``began``: when it was called."""
    end = time.perf_counter_ns()
    _tell(owner, model, lease, (began, began, end, end), asked, str(error))


def _tell(
    owner: Signature,
    model: str,
    lease: Lease,
    times: tuple[int, int, int, int],
    asked: Asked | None,
    error: str = "",
) -> None:
    thread = threading.get_native_id()
    since, caller, blocks = asked or (times[0], thread, True)
    told = Slice(owner, model, lease.label, id(lease), thread, caller, blocks, since, *times, error)
    for sink in list(sinks):
        sink(told)


def on_cores(slices: Iterable[Slice]) -> Iterator[tuple[int, Slice, int]]:
    """(core, slice, begin) of each run on a core that is known: once for each of its cores, in the order of ends.

    Several contexts may have asked a core to run: their runs follow each other there, so a run begins where the one
    before it ended, if it was asked for earlier.
    """
    last: dict[int, int] = {}
    for one in sorted(slices, key=lambda one: one.over):
        for core in one.cores():
            begin = max(one.ready, last.get(core, 0))
            last[core] = one.over
            yield core, one, begin


class Recorder:
    """Collects slices from :meth:`start` to :meth:`stop`. At most ``limit``."""

    def __init__(self, limit: int = 1_000_000) -> None:
        self._limit = limit
        self._slices: list[Slice] = []
        self.lost = 0
        """Runs beyond the limit, which are not kept."""
        self.began = 0
        """When it was started, as ``time.perf_counter_ns()``."""

    def start(self) -> None:
        """Begin. What an earlier recording kept is forgotten."""
        self._slices, self.lost, self.began = [], 0, time.perf_counter_ns()
        if self._keep not in sinks:
            sinks.append(self._keep)

    def stop(self) -> list[Slice]:
        """End, and give what was recorded, in the order in which runs ended. [] where it is not recording."""
        if self._keep in sinks:
            sinks.remove(self._keep)
        slices, self._slices = self._slices, []
        return list(slices)

    def _keep(self, one: Slice) -> None:
        if len(self._slices) < self._limit:
            self._slices.append(one)
        else:
            self.lost += 1
