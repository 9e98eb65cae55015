"""The health of cores: a core that fails repeatedly is taken out of service, tested from time to time, and put back.

Meanwhile the other cores do its share. A successful run never executes this code.

Decisions are made under a lock and carried out outside it, because lanes run foreign work.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from .._interrupts import start_thread
from .._locks import RLock
from ..adapter.contract import AdapterError, RknnError

if TYPE_CHECKING:
    from .lanes import Lane, Lease

log = logging.getLogger("ort_rknn")

#: RKNN_ERR_FAIL, TIMEOUT and DEVICE_UNAVAILABLE. Other codes are the call's or the model's fault.
_BLAME_THE_CORE: Final = (-1, -2, -3)
#: A core is taken out of service after this many failures without a success in between.
_LIMIT: Final = 2
#: Seconds until the first test, and the maximum between two tests.
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 4.0
#: Seconds between checks whether a context is idle, and the maximum time to wait for it.
_GLANCE: Final = 0.002
_PATIENCE: Final = 1.0


class Core:
    """A core, or cores that work together: its contexts, and the lane they belong to."""

    def __init__(self, label: str, lane: Lane, leases: Sequence[Lease]) -> None:
        self.label = label
        self.lane = lane
        self.leases = leases
        self.out = False
        """Out of service: it gets no runs."""
        self.outages = 0
        self.failures = 0
        """Consecutive failures."""
        self.runs_then = 0
        """The number of successful runs at the time of the last failure."""
        self.due = 0.0
        self.pause = _FIRST_PAUSE
        self.back_at = 0.0


def _nothing() -> None:
    """The first context is held already, with the others of its core."""


class Health:
    """The health of all cores of an executor. Thread-safe; holds no reference to the executor.

    ``renew`` returns a context to replace a lease's; ``trial`` makes one run on a lease; ``changed`` is called when the
    set of serving cores changes. :meth:`stop` must be called: it ends the thread that tests cores.
    """

    def __init__(
        self,
        cores: Sequence[Core],
        label: str,
        renew: Callable[[Lease], None],
        trial: Callable[[Lease], None],
        changed: Callable[[], None],
    ) -> None:
        self.cores = cores
        self._label = label
        self._renew = renew
        self._trial = trial
        self._changed = changed
        self._by_label = {core.label: core for core in cores}
        #: Created first, so other contexts may be duplicates of it: it must not run while one is being created.
        self._first = cores[0].leases[0]
        self._first_is_sound = True
        # Reentrant: garbage collection may close the executor anywhere, and a lane without threads runs work in place.
        self._lock = RLock()
        self._applying = RLock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._turns = 0

    # Failed runs ----------------------------------------------------------------------------------------------

    def failed(self, lease: Lease, error: AdapterError) -> bool:
        """Handle a failed run on ``lease``, which its caller still holds. True if the core is at fault.

        The last serving core is never taken out of service: its errors reach the caller.
        """
        if not isinstance(error, RknnError) or error.code not in _BLAME_THE_CORE:
            return False
        core = self._by_label[lease.label]
        with self._lock:
            runs = sum(one.runs for one in core.leases)
            core.failures = core.failures + 1 if runs == core.runs_then else 1
            core.runs_then = runs
            others = any(not other.out for other in self.cores if other is not core)
            taken_out = others and not core.out and core.failures >= _LIMIT and not self._stopped.is_set()
            if taken_out:
                self._take_out(core)
        if taken_out:
            log.warning(
                "%s: %s failed %d times in a row and gets no runs until it works again: %s",
                self._label,
                core.label,
                core.failures,
                str(error),  # a stored log record would keep the error's traceback, and so the session
            )
            self._apply()
        return True

    def hung(self, lease: Lease, why: str) -> None:
        """Handle an abandoned run that still holds ``lease``: its core is taken out of service if another one
        serves."""
        core = self._by_label[lease.label]
        with self._lock:
            others = any(not other.out for other in self.cores if other is not core)
            taken_out = others and not core.out and not self._stopped.is_set()
            if taken_out:
                self._take_out(core)
        if taken_out:
            log.warning("%s: %s gets no runs until it works again: %s", self._label, core.label, why)
            self._apply()

    def another(self, tried: Collection[str]) -> Lane | None:
        """A lane on which to retry what failed on the cores ``tried``; None if no other core serves."""
        with self._lock:
            serving = [core for core in self.cores if not core.out and core.label not in tried]
            if not serving:
                return None
            self._turns += 1
            return serving[self._turns % len(serving)].lane

    def _take_out(self, core: Core) -> None:
        now = time.monotonic()
        core.out = True
        core.outages += 1
        if now - core.back_at > 2 * _LONGEST_PAUSE:
            core.pause = _FIRST_PAUSE
        core.due = now + core.pause
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="ort_rknn health", daemon=True)
            try:
                start_thread(self._thread)
            except RuntimeError:  # no thread can be started: it stays in service
                self._thread, core.out = None, False

    def _divert(self) -> Lane | None:
        """A lane for runs waiting in lanes without a serving core."""
        return self.another(())

    def _apply(self) -> None:
        """Tell the lanes which cores serve. Idempotent; an interrupted call is repaired by the next one."""
        with self._applying:
            for core in self.cores:
                for lease in core.leases:
                    lease.out = core.out
            serving = {core.lane for core in self.cores if not core.out}
            for core in self.cores:
                core.lane.divert = None if core.lane in serving else self._divert
            self._changed()
            for core in self.cores:
                if core.lane in serving:
                    core.lane.put_back_parked()
                else:
                    core.lane.divert_waiting()

    # The thread that tests cores ------------------------------------------------------------------------------

    def _watch(self) -> None:
        while True:
            self._apply()
            with self._lock:
                out = [core for core in self.cores if core.out]
                if not out or self._stopped.is_set():
                    self._thread = None
                    return
                first = min(core.due for core in out)
            self._stopped.wait(max(0.0, first - time.monotonic()))
            for core in out:
                if core.due <= time.monotonic() and not self._stopped.is_set():
                    self._try(core)

    def _try(self, core: Core) -> None:
        held = core.lane.withdraw(core.leases)
        try:
            if len(held) < len(core.leases):  # a run still holds one: its context must not be touched
                core.due = time.monotonic() + _FIRST_PAUSE / 10
                return
            works = self._works(core)
            with self._lock:
                now = time.monotonic()
                core.pause = min(2 * core.pause, _LONGEST_PAUSE)
                core.due = now + core.pause
                if works:
                    core.out, core.failures, core.back_at = False, 0, now
                    core.runs_then = sum(one.runs for one in core.leases)
            if works:
                log.warning("%s: %s works again and gets runs", self._label, core.label)
        finally:
            for lease in held:
                core.lane.put_back(lease)
            self._apply()
            core.lane.wake_next()

    def _works(self, core: Core) -> bool:
        """Recreate its contexts and test each with one run. Its leases are held."""
        try:
            for lease in core.leases:
                if not self._make_again(lease):
                    return False
                self._trial(lease)
        except Exception as error:
            log.debug("%s: %s does not work yet: %s", self._label, core.label, str(error))
            return False
        return True

    def _make_again(self, lease: Lease) -> bool:
        """Give ``lease`` a new context. False if that must wait. Raises AdapterError.

        Without a working first context, the others keep theirs.
        """
        if lease is self._first:
            self._first_is_sound = False
            lease.context.close()
            self._renew(lease)
            self._first_is_sound = True
            return True
        if not self._first_is_sound or self._first.hanging:
            return True
        let_go = _nothing if self._first.label == lease.label else self._borrow_first()
        if let_go is None:
            return False
        old = lease.context
        try:
            self._renew(lease)
        finally:
            let_go()
        old.close()
        return True

    def _borrow_first(self) -> Callable[[], None] | None:
        """Keep the first context from running; the returned function releases it. None if it did not become idle."""
        first = self._first
        core = self._by_label[first.label]
        end = time.monotonic() + _PATIENCE
        held: list[Lease] = []
        try:
            while not held and time.monotonic() < end and not self._stopped.is_set():
                first.out = True  # its user will set it aside
                held = core.lane.withdraw([first])
                if not held:
                    time.sleep(_GLANCE)
        finally:
            if not held:
                first.out = core.out
                core.lane.put_back_parked()

        def let_go() -> None:
            first.out = core.out
            core.lane.give_back(first)

        return let_go if held else None

    def is_watcher(self) -> bool:
        """Whether this is the thread that tests cores, which must not call :meth:`stop`."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """End the tests and release every context. Idempotent."""
        self._stopped.set()
        thread = self._thread
        if thread is not None and not sys.is_finalizing():
            with suppress(RuntimeError):
                thread.join()
        with self._lock:
            self._all_in()
        self._apply()

    def _all_in(self) -> None:
        for core in self.cores:
            core.out = False
