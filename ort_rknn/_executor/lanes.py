"""Lanes: the contexts of one core, or of cores that work together, and the runs that wait for one.

While a context is idle, a run executes on its caller's own thread, without a thread switch. If runs wait, workers take
over, one per context, started on first use: the next run starts on the thread that ended the previous one, so no core
waits for a thread to wake up.

No waiting run is missed: whoever makes a context idle then checks for waiting runs, and whoever starts to wait then
checks for an idle context. Single deque operations are atomic, so a run takes no lock.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from .._concurrency.one_shot import Awaited
from .._interrupts import start_thread
from .._locks import Lock
from . import run_settings
from .buffers import BufferRuns

if TYPE_CHECKING:
    from ..adapter.contract import CallForm, Context
    from .conversion import Scratch


# As C functions: a signal handler runs before or after them, never halfway.
_popleft: Callable[[deque[Lease]], Lease] = deque.popleft
_pop: Callable[[list[Lease]], Lease] = list.pop


class Lease:
    """A context and its data. Has one user at a time: whoever took it from its lane."""

    __slots__ = (
        "began",
        "buffer_runs",
        "context",
        "convert_ns",
        "converted",
        "ended",
        "errors",
        "fetch_ns",
        "label",
        "left_until",
        "out",
        "padded",
        "run_ns",
        "runs",
        "scratch",
        "shape_set",
        "timed",
        "users",
        "wait_ns",
        "waits",
    )

    def __init__(self, context: Context, label: str, users: set[Lease] | None = None) -> None:
        self.context = context
        self.label = label
        self.out = False
        """Its core is out of service; see :mod:`~ort_rknn._executor.health`."""
        self.left_until: float | None = None
        """If its caller abandoned the run, which has not returned yet: the ``time.monotonic()`` after which it counts
        as hanging."""
        self.runs = 0
        self.errors = 0
        self.padded = 0
        self.waits = 0
        """Runs that found no idle context; runs started for later always wait."""
        self.wait_ns = self.convert_ns = self.run_ns = self.fetch_ns = 0
        self.converted = 0
        """Bytes of inputs and outputs converted above the runtime."""
        self.began = self.ended = 0
        """``time.perf_counter_ns()`` of the last run that was converted above the runtime, conversions included."""
        self.timed = hasattr(context, "times")
        self.shape_set: int | None = None
        """The context's current shape set, if the model has several."""
        self.scratch: dict[CallForm, Scratch] = {}
        self.buffer_runs = BufferRuns()
        self.users = users
        """Contexts of all sessions that run on its core now; None if it has no core of its own."""

    @property
    def hanging(self) -> bool:
        """Whether its run was abandoned and exceeds its time limit."""
        until = self.left_until
        return until is not None and time.monotonic() >= until


class Turn(Awaited):
    """A run that waits for a context; without ``work``, a thread that wants the context itself, in ``collected``.

    Whoever takes it off the queue must :meth:`claim` it, and so must the waiting thread before giving up: only one can.
    """

    __slots__ = ("_collected", "_refused", "priority", "work")

    def __init__(
        self,
        work: Callable[[Lease], None] | None,
        refused: Callable[[], None] | None = None,
        collected: list[Lease] | None = None,
    ) -> None:
        super().__init__()
        self.work = work
        settings = run_settings.current()
        self.priority = settings.priority if settings is not None else None
        """Lower numbers go first; None: the session's priority."""
        self._collected = collected
        self._refused = refused

    def execute(self, lease: Lease) -> None:
        """Do the work. Its exception is raised by :meth:`result`."""
        assert self.work is not None
        try:
            self.work(lease)
        except BaseException as error:
            self.error = error
        self.finish()

    def receive(self, lease: Lease) -> None:
        """Hand over the context itself."""
        assert self._collected is not None
        self._collected.append(lease)
        self.finish()

    def refuse(self, error: BaseException) -> None:
        """End it without running."""
        self.error = error
        if self._refused is not None:
            self._refused()
        self.finish()

    def finish(self) -> None:
        """As :meth:`Awaited.finish`; also drops the work."""
        self.work = self._refused = None  # they hold buffers
        super().finish()

    def result(self) -> None:
        """Wait until it has ended; raise the work's exception, or why it never ran. Call it once, from one thread."""
        self.wait()
        self.raise_error()


class Lane:
    """Contexts of which any may take the next run. Thread-safe.

    ``by_shape``: prefer an idle context whose shape set is the wanted one, since switching costs the runtime time.
    ``by_use``: before that, prefer one whose core is used by the fewest contexts, including other sessions' contexts.
    Holds no reference to its users. :meth:`close` must be called: it ends the workers.
    """

    def __init__(self, leases: Iterable[Lease], *, by_shape: bool = False, by_use: bool = False) -> None:
        self._leases = tuple(leases)
        self._idle = deque(self._leases)
        self._source = (self._idle,)
        self._parked: deque[Lease] = deque()  # found idle, but their core is out of service
        #: If no core of the lane serves: returns a lane that does, for the runs waiting here.
        self.divert: Callable[[], Lane | None] | None = None
        #: The first half of :meth:`give_back`, for callers that a signal may interrupt. Not a Python function, so
        #: nothing can be raised before it is done. :meth:`wake_next` must follow.
        self.put_back: Callable[[Lease], None] = self._idle.append
        self._contexts = len(self._idle)
        self._by_use = by_use and self._contexts > 1
        self._by_shape = (by_shape or self._by_use) and self._contexts > 1
        self._waiting: deque[Turn] = deque()
        self.usual_priority = 0
        self._by_priority = False  # some runs had their own priority
        self._workers: list[threading.Thread] = []
        self._starting = Lock()
        self._jobs: SimpleQueue[bool] = SimpleQueue()  # False: the workers end
        self._over = False
        self._refusal: Callable[[], Exception] | None = None
        self._collected: list[Lease] = []  # by close()

    def take(self, taken: list[Lease], shape_set: int | None = None) -> None:
        """Append a context to ``taken``, unless none is idle or other runs are waiting. Return it with
        :meth:`give_back`. A list, because a signal handler may raise between a call and the assignment of its result: a
        context is always in a list of the lane or of the caller."""
        if self._waiting:
            return
        if self._by_shape and (lease := self._preferred(shape_set)) is not None:
            try:
                self._idle.remove(lease)
                taken.append(lease)
                return
            except ValueError:
                pass  # another thread was faster
            except BaseException:
                if lease not in taken:  # removed, and then a signal came
                    taken.append(lease)
                raise
        try:
            taken.extend(map(_popleft, self._source))
        except IndexError:
            return
        if taken[-1].out:
            self._park(taken)
            self.take(taken, shape_set)

    def _preferred(self, shape_set: int | None) -> Lease | None:
        """The best idle context for a run; None if any will do."""
        idle = tuple(lease for lease in tuple(self._idle) if not lease.out)
        if self._by_use:
            return min(idle, key=lambda lease: (len(lease.users or ()), lease.shape_set != shape_set), default=None)
        return next((lease for lease in idle if lease.shape_set == shape_set), None)

    def give_back(self, lease: Lease) -> None:
        """Return a context, for the next run."""
        try:
            self.put_back(lease)
        finally:
            self.wake_next()

    def wake_next(self) -> None:
        """A context became idle: give it to the next waiting run."""
        if self._waiting:
            self._call_worker()

    def withdraw(self, leases: Iterable[Lease]) -> list[Lease]:
        """Take those of the contexts that are idle. They must be returned with :meth:`give_back`."""
        held = []
        for lease in leases:
            for where in (self._idle, self._parked):
                try:
                    where.remove(lease)
                except ValueError:
                    continue
                held.append(lease)
                break
        return held

    def _park(self, taken: list[Lease]) -> None:
        """Set aside the last of ``taken``, whose core is out of service."""
        lease = taken[-1]
        self._parked.extend(map(_pop, (taken,)))
        if not lease.out:  # its core came back just now
            self.put_back_parked()

    def put_back_parked(self) -> None:
        """Cores of the lane are in service again: return their contexts."""
        for _ in range(len(self._parked)):
            with suppress(IndexError):
                self.put_back(self._parked.popleft())
        self.wake_next()

    def divert_waiting(self) -> None:
        """Move waiting runs to other lanes, as long as ``divert`` returns one."""
        for _ in range(len(self._waiting)):
            other = self.divert() if self.divert is not None else None
            if other is None or other is self:
                return
            try:
                turn = self._waiting.popleft()
            except IndexError:
                return
            if turn.work is None:
                self._waiting.append(turn)  # close()
            else:
                other._enqueue(turn)

    def wait_and_run(self, work: Callable[[Lease], None]) -> None:
        """Wait for a context and run ``work`` on it, on a worker. Raises what it raises, or why it never ran.

        A KeyboardInterrupt ends the waiting, but never while ``work`` runs, because it may use the caller's buffers.
        """
        turn = Turn(work)
        self._await(turn)
        turn.raise_error()

    def start(self, work: Callable[[Lease], None], refused: Callable[[], None]) -> Turn:
        """Run ``work`` on a worker as soon as there is a context. Returns at once.

        ``refused`` is called instead if the lane is closed first.
        """
        turn = Turn(work, refused)
        self._enqueue(turn)
        return turn

    def queued(self) -> int:
        """The number of runs waiting for a context now."""
        return len(self._waiting)

    def idle(self) -> tuple[Lease, ...]:
        """The contexts that are idle now."""
        while True:
            try:
                return tuple(self._idle)
            except RuntimeError:  # another thread took one meanwhile
                pass

    def hanging(self) -> Sequence[Lease]:
        """All of its contexts if hanging runs hold them all; otherwise none."""
        return self._leases if all(lease.hanging for lease in self._leases) else ()

    def drain(self) -> None:
        """Return when every run that waits now has had a context, or was refused."""
        if self._waiting:
            with suppress(Exception):  # refused, and so are they
                self.wait_and_run(lambda lease: None)

    def is_worker(self) -> bool:
        """Whether this thread is one of the lane's workers."""
        return threading.current_thread() in self._workers

    def close(self, refusal: Callable[[], Exception]) -> bool:
        """Refuse waiting and later runs with ``refusal()``, wait for active ones, then end the workers. Idempotent.

        Must not be called on a worker of this lane. A KeyboardInterrupt ends the waiting; the next call continues.
        Returns False, without waiting, if a context is in use while the interpreter shuts down: its user no longer
        runs.
        """
        self._refusal = refusal
        self._refuse_all(refusal)
        while (held := len(self._collected)) < self._contexts:
            self.take(self._collected)
            if len(self._collected) == held:
                if sys.is_finalizing():
                    return False
                self._await(Turn(None, collected=self._collected))
        with self._starting:  # whoever is starting a worker has counted it when this lock is acquired
            self._over = True
        self._jobs.put(False)
        while self._workers and not sys.is_finalizing():
            self._workers[-1].join()
            self._workers.pop()
        return True

    def _await(self, turn: Turn) -> None:
        try:
            self._enqueue(turn)
            turn.wait()
        except BaseException:
            if turn.claim():
                with suppress(ValueError):
                    self._waiting.remove(turn)
            else:
                _outlast(turn)
            raise

    def _enqueue(self, turn: Turn) -> None:
        closing = turn.work is None
        if turn.priority is not None:
            self._by_priority = True
        self._waiting.append(turn)
        if self._refusal is not None and not closing:
            self._refuse_all(self._refusal)
        elif self.divert is not None and not closing:
            self.divert_waiting()
        elif self._idle:
            self._call_worker()

    def _refuse_all(self, refusal: Callable[[], Exception]) -> None:
        for _ in range(len(self._waiting)):
            try:
                turn = self._waiting.popleft()
            except IndexError:
                return
            if turn.work is None:
                self._waiting.append(turn)  # close() itself
            elif turn.claim():
                turn.refuse(refusal())

    def _call_worker(self) -> None:
        """A run waits, and a context is idle. Workers bring them together, because no signal can interrupt them.

        Starts a worker if there are fewer than contexts. If no thread can be started, as during interpreter shutdown,
        the work is done here.
        """
        if len(self._workers) < self._contexts:
            with suppress(RuntimeError), self._starting:
                self._add_worker()
        if self._workers:
            self._jobs.put(True)
        else:
            self.serve()

    def _add_worker(self) -> None:
        number = len(self._workers)
        if number < self._contexts and not self._over:
            name = f"ort_rknn run {number}"
            worker = threading.Thread(target=_work, args=(self, self._jobs), name=name, daemon=True)
            start_thread(worker)
            self._workers.append(worker)

    def _next_idle(self) -> Lease:
        """Raises IndexError if none is idle. Runs on a worker, which no signal interrupts."""
        lease = self._preferred(None) if self._by_use else None
        if lease is not None:
            with suppress(ValueError):
                self._idle.remove(lease)
                return lease
        return self._idle.popleft()

    def _next_turn(self) -> Turn:
        """Raises IndexError if nothing waits."""
        while self._by_priority:
            try:
                turn = min(self._waiting, key=self._priority_of)
                self._waiting.remove(turn)
                return turn
            except RuntimeError:
                pass  # one arrived meanwhile
            except ValueError:
                if not self._waiting:
                    break
        return self._waiting.popleft()

    def _priority_of(self, turn: Turn) -> int:
        return self.usual_priority if turn.priority is None else turn.priority

    def serve(self) -> None:
        """Execute waiting runs by priority and in order, on any idle context, as long as there is one."""
        while self._waiting:
            try:
                lease = self._next_idle()
            except IndexError:
                return  # whoever holds them will see the waiting runs
            while True:
                if lease.out:
                    self._park([lease])
                    break
                try:
                    turn = self._next_turn()
                except IndexError:
                    self._idle.append(lease)
                    break
                if turn.claim():
                    if turn.work is None:
                        turn.receive(lease)
                        break
                    turn.execute(lease)
                del turn


def _outlast(turn: Turn) -> None:
    """Wait until it has ended, whatever signals come: its work uses the caller's buffers."""
    while not turn.ended:
        with suppress(BaseException):
            while not turn.ended:
                turn.wait()


def _work(lane: Lane, jobs: SimpleQueue[bool]) -> None:
    while jobs.get():
        lane.serve()
    jobs.put(False)  # for the next worker
