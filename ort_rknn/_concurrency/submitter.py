"""Asynchronous calls: a bounded number in flight, on threads that are started on first use.

Independent of sessions: it runs functions. Sessions and the faces for other APIs use the same class.
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .._errors import QueueFull
from .._interrupts import start_thread
from .._locks import Lock
from .callbacks import Callback, Delivery, InOrder, Order
from .future import CallFuture
from .places import Place, Places
from .started import StartedCall, Task, run_and_set, run_in_order, run_into

if TYPE_CHECKING:
    from .._options import Options

T = TypeVar("T")


class Contexts(Protocol):
    """What calls run on; see :class:`ort_rknn._executor.dispatch.Dispatch`."""

    @property
    def contexts(self) -> int:
        """The maximum number of runs at once."""

    @property
    def workers(self) -> tuple[int, ...]:
        """The number of threads that start calls, per group of cores that calls wait for."""


class Ended(RuntimeError):
    """The submitter was closed."""


_FIRST = Task()
_Job = Callable[[], None]
_Jobs = queue.SimpleQueue["_Job | None"]  # None: the threads end


class _SubmitQueue:
    """A queue of calls, and its threads."""

    def __init__(self, number: int, workers: int) -> None:
        self.number = number
        self.workers = workers
        self.jobs: _Jobs = queue.SimpleQueue()
        #: A dict, because both the thread and its creator insert it: either may be interrupted by a signal's exception.
        self.threads: dict[threading.Thread, None] = {}


class Submitter:
    """Runs functions on ``workers[lane]`` threads per lane, with at most ``places`` calls accepted at a time.

    Calls of a lane start in order and do not delay other lanes. Threads are created as calls arrive, and wait for more.
    They end with :meth:`close`, when the submitter is collected, or at interpreter exit, always after the submitted
    calls. Thread-safe; an exception of a signal handler never loses a place or a thread.

    ``sequential_callbacks``: callbacks run in submission order, otherwise as calls finish. This applies to
    :meth:`submit_with_callback` and to the futures of :meth:`submit_in_order`. ``task`` returns the next call's
    :class:`Task`; it is called once the call has its place, so calls are ordered by acceptance.
    """

    def __init__(
        self,
        workers: Sequence[int],
        places: int,
        *,
        submit_timeout_ms: int,
        sequential_callbacks: bool = True,
        task: Callable[[], Task] = lambda: _FIRST,
    ) -> None:
        self.places = Places(places)
        self.workers = tuple(workers)
        self.task = task
        self._lanes = [_SubmitQueue(number, count) for number, count in enumerate(workers)]
        self._gate = Lock()
        self._timeout = submit_timeout_ms / 1000
        self._delivery: Delivery | None = None
        self._sequential = sequential_callbacks
        self._order = Order()
        self._lock = Lock()
        self._ended = False
        _alive.add(self)

    @classmethod
    def for_dispatch(
        cls, dispatch: Contexts | None, options: Options, task: Callable[[], Task] | None = None
    ) -> Submitter:
        """A submitter for calls on these contexts (None: on the CPU), with ``options.max_queue_size`` more that may
        wait.

        Without ``task`` there is one lane: it is not known in advance where a call will run.
        """
        workers = dispatch.workers if dispatch is not None else (2,)
        return cls(
            workers if task is not None else (sum(workers),),
            (dispatch.contexts if dispatch is not None else 1) + options.max_queue_size,
            submit_timeout_ms=options.submit_timeout_ms,
            sequential_callbacks=options.sequential_callbacks,
            task=task or (lambda: _FIRST),
        )

    def take_place(self, timeout: float | None = None) -> Place:
        """Wait for a place for at most ``timeout`` seconds (None: submit_timeout_ms). Raises QueueFull."""
        seconds = self._timeout if timeout is None else timeout
        place = self.places.take(seconds)
        if place is None:
            raise self._full(seconds)
        return place

    async def wait_for_place(self) -> Place:
        """As :meth:`take_place`, without blocking the event loop."""
        place = None if self.places.awaited else self.places.take(0)
        if place is None:
            place = await self.places.wait(self._timeout)
        if place is None:
            raise self._full(self._timeout)
        return place

    @staticmethod
    def _full(seconds: float) -> QueueFull:
        return QueueFull(
            f"submit timed out: no place became free in {seconds:g} s; collect results, submit less often, or set the "
            "provider options max_queue_size or submit_timeout_ms higher"
        )

    def submit(self, function: Callable[..., T], *args: Any, place: Place | None = None) -> Future[T]:
        """Run ``function(*args)`` soon. Waits for a place, unless ``place`` is given.

        Raises QueueFull if none became free within submit_timeout_ms, Ended after :meth:`close`.
        """
        if place is None:
            place = self.take_place()
        try:
            future: CallFuture[T] = CallFuture(place)
            task = self.task()
            self._start(partial(run_into, future, task, function, args), task.lane)
        except BaseException:
            place.clear()  # else a traceback could keep it
            raise
        return future

    def start(
        self,
        function: Callable[..., T],
        *args: Any,
        place: Place | None = None,
        task: Task | None = None,
        over: Callable[[StartedCall[T]], None] | None = None,
    ) -> StartedCall[T]:
        """As :meth:`submit` with less overhead, for a caller that only waits for the result, from one thread.

        ``over`` is called when the call has ended, on the thread that ran it.
        """
        if place is None:
            place = self.take_place()
        try:
            started = StartedCall(function, args, place, self.task() if task is None else task, over)
            self.start_call(started)
        except BaseException:
            place.clear()
            raise
        return started

    def start_call(self, started: StartedCall[Any]) -> None:
        """Start a call that was created earlier and has its place."""
        self._start(started.run, started.lane)

    def submit_in_order(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """As :meth:`submit`. With ``sequential_callbacks``, callbacks added to the futures wait for their turn, and
        hold the place until then. Results do not wait."""
        if not self._sequential:
            return self.submit(function, *args)
        place = self.take_place()
        try:
            future: InOrder[T] = InOrder(place, self._order)
            task = self.task()
            job = partial(run_in_order, future, self._order, task, function, args)
            try:
                self._order.expect(future, job)  # before the call starts, and may end
                self._start(job, task.lane)
            except BaseException:
                future.over = True  # the future will not be waited for
                raise
        except BaseException:
            place.clear()
            raise
        return future

    def submit_with_callback(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        callback: Callback,
        *,
        place: Place | None = None,
        task: Task | None = None,
    ) -> None:
        """As :meth:`submit`; the outcome goes to ``callback``, on a thread that does nothing else.

        The place becomes free at the callback's turn, so slow callbacks delay submitters instead of using memory. If a
        callback raises, ``sys.excepthook`` prints the traceback, and the other callbacks still run.
        """
        if place is None:
            place = self.take_place()
        try:
            future: CallFuture[Any] = CallFuture(place)
            if task is None:
                task = self.task()
            with self._lock:
                if self._delivery is None:
                    self._delivery = Delivery(self._sequential)
                self._start(partial(run_and_set, future, task, function, args), task.lane)
                self._delivery.expect(future, callback)
        except BaseException:
            place.clear()
            raise

    def _start(self, job: _Job, number: int) -> None:
        with self._gate:
            if _exiting:
                raise RuntimeError("no more calls are accepted: the interpreter is ending")
            if self._ended:
                raise Ended("no more calls are accepted: it was closed")
            lane = self._lanes[number]
            if len(lane.threads) < lane.workers:
                self._add_thread(lane)
            lane.jobs.put(job)

    def _add_thread(self, lane: _SubmitQueue) -> None:
        name = f"ort_rknn submit_{lane.number}_{len(lane.threads)}"
        thread = threading.Thread(
            target=_work, args=(lane.jobs, lane.threads, self.places.notify), name=name, daemon=True
        )
        try:
            start_thread(thread)
        except RuntimeError:  # cannot start another thread: the existing ones do the work
            if not lane.threads:
                raise
        else:
            lane.threads[thread] = None

    def threads(self) -> list[threading.Thread]:
        """The threads it has started."""
        return [thread for lane in self._lanes for thread in list(lane.threads)]

    def close(self) -> None:
        """Wait for everything submitted, including callbacks; if called from a callback, only for running calls.

        If interrupted, it can be called again.
        """
        with self._gate:
            self._ended = True
        for lane in self._lanes:
            lane.jobs.put(None)
        threads = self.threads()
        if threading.current_thread() not in threads:
            for thread in threads:
                thread.join()
        if self._delivery is not None:
            self._delivery.close()

    def drop_and_wait(self) -> None:
        """Cancel calls that have not started, and wait for running ones."""
        for lane in self._lanes:
            with suppress(queue.Empty):
                while True:
                    job = lane.jobs.get_nowait()
                    if job is not None:
                        _cancel(job)
            lane.jobs.put(None)
        for thread in self.threads():
            thread.join()

    def __del__(self) -> None:
        for lane in self.__dict__.get("_lanes", ()):  # not there if __init__ raised
            lane.jobs.put(None)


def _cancel(job: _Job) -> None:
    """End a call that has not started, and release whoever waits for it."""
    call: Any = job.args[0] if isinstance(job, partial) else job.__self__  # type: ignore[attr-defined]
    call.cancel()
    with suppress(Exception):
        job()


def _work(jobs: _Jobs, threads: dict[threading.Thread, None], tell: Callable[[], None]) -> None:
    threads[threading.current_thread()] = None
    while (job := jobs.get()) is not None:
        try:
            job()
        except BaseException:  # such as SystemExit from a future's callback: the next call must still run
            sys.excepthook(*sys.exc_info())
        del job
        tell()
    jobs.put(None)  # for the next thread


_alive: weakref.WeakSet[Submitter] = weakref.WeakSet()
_exiting = False
#: A shell's exit code for a program ended by Ctrl-C.
_INTERRUPTED = 130


def _end_all() -> None:
    """Finish submitted calls at interpreter exit. The threads are daemons, because others would keep the interpreter
    alive.

    On an interrupt, such as a second Ctrl-C, calls that have not started are dropped and running ones are waited for:
    otherwise the end of the interpreter would abort the process inside onnxruntime. Another interrupt ends the process
    at once.
    """
    global _exiting
    _exiting = True
    interrupt: BaseException | None = None
    for submitter in list(_alive):
        if interrupt is None:
            try:
                submitter.close()
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            try:
                submitter.drop_and_wait()
            except BaseException:
                os._exit(_INTERRUPTED)
    if interrupt is not None:
        raise interrupt


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alive.clear)  # their threads are the parent's
