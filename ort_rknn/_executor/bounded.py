"""Runs that their caller can abandon: at a timeout, or if ``RunOptions.terminate`` is set.

The runtime gets the timeout too, and ends most runs itself. A run that it does not end keeps its context and the thread
that waits for it, so it must not use the caller's memory: these runs work on copies of inputs and outputs. Memory
shared with the NPU is not copied: it stays in use until the run returns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from ctypes import memmove
from typing import TYPE_CHECKING, Final

import numpy as np

from .._errors import FAIL, RUNTIME_EXCEPTION, ort_error
from .._locks import Lock
from . import run_settings
from .buffers import table
from .calls import nbytes
from .recording import asked_now

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._tensors import Shape
    from .calls import Call
    from .lanes import Lane, Lease, Turn
    from .work import Work

#: The runtime's own timeout comes first, because it leaves the context usable.
_FACTOR: Final = 1.25
_GRACE: Final = 0.1
#: Seconds between checks whether the run has started, or whether the user wants to end it.
_GLANCE: Final = 0.02
#: Seconds after which a run that its user ended counts as hanging, if it has no timeout.
_LEFT_WITHOUT_BOUND: Final = 1.0


def _nothing() -> None:
    pass


class BoundedRun:
    """One run of ``call`` that is abandoned after ``timeout_ms`` and a grace period (0: never), or when its caller's
    RunOptions say so. :meth:`start` may be called again."""

    def __init__(self, work: Work, call: Call, inputs: Sequence[int], outputs: Sequence[int], timeout_ms: int) -> None:
        self._work = work
        self._call = call
        self._inputs = inputs
        self._outputs = outputs
        self._timeout_ms = timeout_ms
        self._settings = run_settings.current()

    def start(self, lane: Lane, over: Callable[[], None] = _nothing) -> Attempt:
        """Start it as soon as the lane has a context. ``over`` is called when it has ended, was abandoned or
        refused."""
        signature = self._work.signature
        reads, writes = self._call.input_dtypes(signature), self._call.output_dtypes(signature)
        sources, kept = _copies(reads, self._call.inputs, self._inputs, filled=True)
        targets, results = _copies(writes, self._call.outputs, self._outputs, filled=False)
        attempt = Attempt(self, lane, over, results)
        asked = asked_now(blocks=True)

        def work(lease: Lease) -> None:
            attempt.begin(lease)
            try:
                self._work.do_later(asked, self._call, sources, targets, lease)
            finally:
                attempt.end()
                kept.clear()

        attempt.turn = lane.start(work, over)
        return attempt

    def run(self, lane: Lane) -> None:
        """Run it and wait. Raises what :meth:`Work.do` raises, and RuntimeException if it was abandoned."""
        self.start(lane).result()

    def hangs(self, lease: Lease) -> Exception:
        """The error for an abandoned run."""
        lease.errors += 1
        text = f"the run did not return within run_timeout_ms={self._timeout_ms}, and was left to hang"
        failure = ort_error(RUNTIME_EXCEPTION, f"{self._work.label}: rknn_run hangs: {text} [on {lease.label}]")
        if self._work.health is not None:
            self._work.health.hung(lease, text)
            failure.failed_on = lease.label  # type: ignore[attr-defined]
        return failure

    def stuck(self, leases: Sequence[Lease]) -> Exception:
        """The error for a run that cannot get a context because all ``leases`` hang."""
        text = f"earlier runs hang on every context that this run could use (run_timeout_ms={self._timeout_ms})"
        failure = ort_error(RUNTIME_EXCEPTION, f"{self._work.label}: {text}")
        if self._work.health is not None:
            for lease in leases:
                self._work.health.hung(lease, text)
            failure.failed_on = leases[0].label  # type: ignore[attr-defined]
        return failure

    @property
    def terminated(self) -> bool:
        """Whether the caller's RunOptions ask for its end."""
        return self._settings is not None and self._settings.terminated

    @property
    def bounded(self) -> bool:
        """Whether it has a timeout."""
        return self._timeout_ms > 0

    @property
    def seconds(self) -> float:
        """The maximum duration of the run."""
        return self._timeout_ms / 1000 * _FACTOR + _GRACE if self._timeout_ms else math.inf

    def terminate(self, lease: Lease | None) -> Exception:
        """The error for a run that its user ended; ``lease``: the context it still holds.

        Without a timeout, it counts as hanging.
        """
        if lease is not None and not self._timeout_ms and self._work.health is not None:
            self._work.health.hung(lease, "RunOptions.terminate ended its run, which has not returned yet")
        return ort_error(FAIL, "Exiting due to terminate flag being set to true.")

    def fetch(self, results: Sequence[NDArray[np.uint8] | None]) -> None:
        """Copy the results to the caller's outputs."""
        for address, result in zip(self._outputs, results):
            if result is not None and result.nbytes:
                memmove(address, result.ctypes.data, result.nbytes)


class Attempt:
    """A bounded run in progress. One thread waits for it."""

    turn: Turn

    def __init__(
        self, run: BoundedRun, lane: Lane, over: Callable[[], None], results: list[NDArray[np.uint8] | None]
    ) -> None:
        self._run = run
        self._lane = lane
        self._over = over
        self._results = results
        self._lock = Lock()
        self._lease: Lease | None = None
        self._started = 0.0
        self._ended = False
        self._left = False

    def begin(self, lease: Lease) -> None:
        """Called on the worker when it has a context."""
        with self._lock:
            self._started = time.monotonic()
            self._lease = lease

    def end(self) -> None:
        """Called on the worker when the run has returned."""
        with self._lock:
            self._ended = True
            left = self._left
            if self._lease is not None:
                self._lease.left_until = None
        if not left:
            self._over()

    def result(self) -> None:
        """Wait for it. Raises its error, or that it was abandoned. Call it once."""
        try:
            while not self.turn.wait_for(self._patience()):
                lease = self._lease
                if self._run.terminated and (lease is None or self._leave(lease)):
                    if lease is not None:
                        self._over()
                    raise self._run.terminate(lease)
                if lease is None:
                    if self._run.bounded and (hanging := self._lane.hanging()):
                        raise self._run.stuck(hanging)
                elif time.monotonic() >= self._started + self._run.seconds and self._leave(lease):
                    self._over()
                    raise self._run.hangs(lease)
        except BaseException:  # a signal's, too: a run that has started may continue, on its copies
            if self.turn.claim():
                self._over()
            raise
        self.turn.raise_error()
        self._run.fetch(self._results)

    def _patience(self) -> float:
        if self._lease is None:
            return _GLANCE
        return min(_GLANCE, max(0.001, self._started + self._run.seconds - time.monotonic()))

    def _leave(self, lease: Lease) -> bool:
        with self._lock:
            if self._ended:
                return False
            self._left = True
            bounded = self._run.bounded
            lease.left_until = self._started + self._run.seconds if bounded else time.monotonic() + _LEFT_WITHOUT_BOUND
            return True


def _copies(
    dtypes: Sequence[str], shapes: Sequence[Shape], addresses: Sequence[int], *, filled: bool
) -> tuple[list[int], list[NDArray[np.uint8] | None]]:
    """The addresses of copies, and the copies; None for memory shared with the NPU, which keeps its address."""
    places: list[int] = []
    copies: list[NDArray[np.uint8] | None] = []
    for dtype, shape, address in zip(dtypes, shapes, addresses):
        size = nbytes(shape, dtype)
        if not address or (table and table.find(address, size) is not None):
            places.append(address)
            copies.append(None)
            continue
        copy = np.empty(size, np.uint8)
        if filled and size:
            memmove(copy.ctypes.data, address, size)
        places.append(copy.ctypes.data)
        copies.append(copy)
    return places, copies
