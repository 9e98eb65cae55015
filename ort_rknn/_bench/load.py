"""Puts load on a session: measures how long runs take, how many complete per second, and their cost on the host."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import INVALID_ARGUMENT, ort_error
from .._tensors import DTYPE_OF_TYPE

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: A run is an outlier if it takes longer than the median plus this many times the median deviation.
_OUTLIER = 10.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of one setting under one load. Times in milliseconds."""

    callers: int
    runs: int
    seconds: float
    runs_per_second: float
    """Samples per second, if a call has several."""
    p50_ms: float
    p95_ms: float
    p99_ms: float
    outliers: int
    """Runs far slower than the others; many of them mean that something else used the machine."""
    cpu_seconds_per_run: float
    """Of the whole process."""
    wait_ms: float
    """Per run: waiting for a context."""
    convert_ms: float
    """Per run: setting inputs."""
    run_ms: float
    """Per run: in the runtime's run call."""
    fetch_ms: float
    """Per run: getting outputs."""
    host_ms: float
    """Per run: the rest of a call's time, between the caller and the runtime."""

    @property
    def host_share(self) -> float:
        """The share of a run's own time, without waiting, in which the host works and not the NPU."""
        own = self.convert_ms + self.run_ms + self.fetch_ms
        return (self.convert_ms + self.fetch_ms) / own if own else 0.0


def feed_for(session: Any, samples: int = 1) -> dict[str, NDArray[np.generic]]:
    """Inputs for a session: random floats, zeros for other types. A free axis has its compiled length, else
    ``samples`` if it is the first and 1 otherwise. Raises InvalidArgument for an input of strings, or of a type
    that numpy lacks."""
    rng = np.random.default_rng(0)
    compiled = session.shape_sets[0] if getattr(session, "shape_sets", ()) else None
    feed: dict[str, NDArray[np.generic]] = {}
    for place, port in enumerate(session.get_inputs()):
        shape = [d if isinstance(d, int) else (samples if k == 0 else 1) for k, d in enumerate(port.shape)]
        if compiled is not None:
            shape = list(compiled[place])
        if port.type not in DTYPE_OF_TYPE:
            raise ort_error(INVALID_ARGUMENT, f"input {port.name!r} is {port.type}: only numbers are made up for a run")
        dtype = np.dtype(DTYPE_OF_TYPE[port.type])
        if dtype.kind == "f":
            feed[port.name] = rng.random(shape, np.float32).astype(dtype)
        else:
            feed[port.name] = np.zeros(shape, dtype)
    return feed


def fits(session: Any, feed: Mapping[str, NDArray[np.generic]]) -> bool:
    """Whether ``feed`` has exactly the inputs of ``session``, with dtypes and shapes that it accepts."""
    ports = {port.name: port for port in session.get_inputs()}
    return ports.keys() == feed.keys() and all(
        DTYPE_OF_TYPE.get(ports[name].type) == array.dtype.name
        and len(ports[name].shape) == array.ndim
        and all(not isinstance(d, int) or d == length for d, length in zip(ports[name].shape, array.shape))
        for name, array in feed.items()
    )


class _Callers:
    """Threads that start together and call a session repeatedly."""

    def __init__(self, session: Any, feed: Mapping[str, Any], callers: int) -> None:
        self._session, self._feed = session, feed
        self._names = [output.name for output in session.get_outputs()]
        self._gate = threading.Barrier(callers + 1)
        self._failed: list[BaseException] = []
        self._until = 0.0
        self.times: list[list[float]] = [[] for _ in range(callers)]
        """Seconds of each run, by caller."""

    def run(self, seconds: float, begin: Callable[[], float]) -> None:
        """Run warm-up and load. ``begin`` is called after the warm-up, and returns the time at which the load
        begins."""
        threads = [threading.Thread(target=self._call, args=(mine,), daemon=True) for mine in self.times]
        try:
            for thread in threads:
                thread.start()
            with contextlib.suppress(threading.BrokenBarrierError):
                self._gate.wait()
                self._until = begin() + seconds
                self._gate.wait()
            for thread in threads:
                thread.join()
        except BaseException as error:  # a Ctrl-C: stop the other callers
            self._failed.append(error)
            self._gate.abort()
            raise
        if self._failed:
            raise self._failed[0]

    def _call(self, mine: list[float]) -> None:
        run, names, feed = self._session.run, self._names, self._feed
        try:
            run(names, feed)
            self._gate.wait()
            self._gate.wait()
            last = time.perf_counter()
            while (last < self._until or len(mine) < 2) and not self._failed:
                run(names, feed)
                now = time.perf_counter()
                mine.append(now - last)
                last = now
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            self._failed.append(error)
            self._gate.abort()


def run_load(session: Any, feed: Mapping[str, Any], callers: int, seconds: float, samples: int = 1) -> Measured:
    """``callers`` threads call ``session.run`` repeatedly for about ``seconds``, after a warm-up.

    Every caller makes at least two runs, however long they take. Raises what a run raises.
    """
    before: Any = None
    cpu = start = 0.0

    def begin() -> float:
        nonlocal before, cpu, start
        before, cpu, start = session.stats().total, time.process_time(), time.perf_counter()
        return start

    load = _Callers(session, feed, callers)
    load.run(seconds, begin)
    elapsed, cpu, after = time.perf_counter() - start, time.process_time() - cpu, session.stats().total
    everything = sorted(t for mine in load.times for t in mine)
    runs = len(everything)
    parts = [
        1000.0 * (getattr(after, f"{part}_seconds") - getattr(before, f"{part}_seconds")) / runs
        for part in ("wait", "convert", "run", "fetch")
    ]
    return Measured(
        callers=callers,
        runs=runs,
        seconds=elapsed,
        runs_per_second=runs * samples / elapsed,
        p50_ms=_percentile(everything, 0.50),
        p95_ms=_percentile(everything, 0.95),
        p99_ms=_percentile(everything, 0.99),
        outliers=_outliers(everything),
        cpu_seconds_per_run=cpu / runs,
        wait_ms=parts[0],
        convert_ms=parts[1],
        run_ms=parts[2],
        fetch_ms=parts[3],
        host_ms=max(0.0, 1000.0 * statistics.fmean(everything) - sum(parts)) if sum(parts) else 0.0,
    )


def _percentile(ordered: Sequence[float], share: float) -> float:
    """In milliseconds, from sorted seconds: the nearest rank."""
    return 1000.0 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _outliers(ordered: Sequence[float]) -> int:
    middle = ordered[len(ordered) // 2]
    deviation = statistics.median(abs(t - middle) for t in ordered)
    limit = middle + _OUTLIER * max(deviation, 0.01 * middle)
    return sum(t > limit for t in ordered)
