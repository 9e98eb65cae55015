"""Recovery of failed runs: they are retried on another core, or moved to the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .bounded import BoundedRun
from .cpu_fallback import CpuFallback
from .health import Health
from .lanes import Lane, Lease

#: A run, for a worker of a lane.
WorkerRun = Callable[[Lease], None] | BoundedRun


class StartedRun(Protocol):
    """A run on another thread."""

    def result(self) -> None:
        """Wait until it has ended; raise its error. Call it once, from one thread."""


class Recovery:
    """The recovery of one executor. Thread-safe. ``health`` is None if there are no other cores."""

    __slots__ = ("_health", "_label", "_retries")

    def __init__(self, health: Health | None, retries: int, label: str) -> None:
        self._health = health
        self._retries = retries
        self._label = label

    def succeeds(self, failure: Exception, work: WorkerRun, fallback: CpuFallback | None = None) -> bool:
        """Handle a failed run: retry ``work`` on another core if that may help. True: the retry succeeded. False:
        ``fallback`` is to run it, because the device is gone or no call may fail. Otherwise raises the last failure."""
        try:
            if self._can_retry(failure):
                try:
                    self._run_elsewhere(failure, work)
                    return True
                except Exception as error:
                    failure = error
            elif self._others_may_work(failure) and not (fallback is not None and fallback.serves_failures):
                raise failure  # retries=0
            if fallback is not None and fallback.takes(failure, self._label):
                return False
            raise failure
        finally:
            del failure  # else its traceback would refer back to it

    def _others_may_work(self, failure: Exception) -> bool:
        return self._health is not None and self._health.another((getattr(failure, "failed_on", ""),)) is not None

    def _can_retry(self, failure: Exception) -> bool:
        return self._health is not None and self._retries > 0 and hasattr(failure, "failed_on")

    def _run_elsewhere(self, failure: Exception, work: WorkerRun) -> None:
        """Retry ``work``, which failed on a core, on up to as many other cores as the option ``retries`` allows.

        Raises the last failure. The caller holds no context meanwhile.
        """
        tried: set[str] = set()
        try:
            while self._can_retry(failure):
                core: str = failure.failed_on  # type: ignore[attr-defined]
                if core not in tried:
                    if len(tried) == self._retries:
                        break
                    tried.add(core)
                # If the first idle core takes a run, this may be the same core again, which is then soon out of
                # service.
                lane = self._health.another(tried) if self._health is not None else None
                if lane is None:
                    break
                try:
                    wait(lane, work)
                    return
                except Exception as error:
                    failure = error
            raise failure
        finally:
            del failure  # else its traceback would refer back to it


class Retried:
    """A run on another thread that is retried on another core if its own failed."""

    def __init__(self, recovery: Recovery, turn: StartedRun, work: WorkerRun, buffers: object) -> None:
        self._recovery = recovery
        self._turn = turn
        self._work = work
        self._buffers = buffers  # kept alive until the result is ready

    def result(self) -> None:
        """See :class:`StartedRun`."""
        try:
            self._turn.result()
        except Exception as failure:
            self._recovery.succeeds(failure, self._work)


def wait(lane: Lane, run: WorkerRun) -> None:
    """Run it on a worker of the lane. Raises its error."""
    if isinstance(run, BoundedRun):
        run.run(lane)
    else:
        lane.wait_and_run(run)
