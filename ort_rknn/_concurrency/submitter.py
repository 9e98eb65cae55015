"""Asynchronous calls: a bounded number of them in flight, on threads that are made on first use.

It knows nothing of sessions: it runs functions. A session and the faces for other APIs use the same class.
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .._errors import QueueFull
from .callbacks import Callback, Delivery, InOrder, Order
from .future import CallFuture
from .interrupts import start_thread
from .one_shot import Awaited
from .places import Place, Places

if TYPE_CHECKING:
    from .._options import Options

T = TypeVar("T")


class Contexts(Protocol):
    """What calls run on: see :class:`ort_rknn._executor.dispatch.Dispatch`."""

    @property
    def contexts(self) -> int:
        """How many runs may be under way at once."""

    @property
    def workers(self) -> tuple[int, ...]:
        """How many threads start calls, for each group of cores that calls wait for."""


class Ended(RuntimeError):
    """The submitter was closed."""


class Task:
    """Where a call runs: on the threads of queue ``lane``, between :meth:`begin` and :meth:`end`."""

    __slots__ = ("lane",)

    def __init__(self, lane: int = 0) -> None:
        self.lane = lane

    def begin(self) -> None:
        """On the thread that runs the call, before it."""

    def end(self) -> None:
        """After it."""


_FIRST = Task()
_Job = Callable[[], None]
_Jobs = queue.SimpleQueue["_Job | None"]  # None: the threads end


class _Lane:
    """A queue of calls, and its threads."""

    def __init__(self, number: int, workers: int) -> None:
        self.number = number
        self.workers = workers
        self.jobs: _Jobs = queue.SimpleQueue()
        #: A dict, because a thread and who starts it both enter it: either may be cut off by a signal's exception.
        self.threads: dict[threading.Thread, None] = {}


class Submitter:
    """Runs functions on ``workers[lane]`` threads for each lane, with at most ``places`` accepted at a time.

    Calls of one lane are taken up in their order, and hold up no other lane. The threads are made as calls come and
    wait for more. They end with :meth:`close`, when it is collected, or when the interpreter ends, and in each case
    after what was submitted. Thread safe, and no exception of a signal's handler costs a place or a thread.

    ``sequential_callbacks``: callbacks come in the order of submission, else as calls finish. They are those of
    :meth:`submit_with_callback`, and those of the futures of :meth:`submit_in_order`. ``task`` gives the next call's
    :class:`Task`; it is asked once the call has its place, so the order of calls is that of acceptance.
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
        self._lanes = [_Lane(number, count) for number, count in enumerate(workers)]
        self._gate = threading.Lock()
        self._timeout = submit_timeout_ms / 1000
        self._delivery: Delivery | None = None
        self._sequential = sequential_callbacks
        self._order = Order()
        self._lock = threading.Lock()
        self._ended = False
        _alive.add(self)

    @classmethod
    def for_dispatch(
        cls, dispatch: Contexts | None, options: Options, task: Callable[[], Task] | None = None
    ) -> Submitter:
        """For calls that run on these contexts; None: on the CPU. ``options.max_queue_size`` may wait besides.

        Without ``task`` there is one lane: nobody knows beforehand where a call will run.
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
        """Wait for a place at most ``timeout`` seconds (None: submit_timeout_ms). Raises QueueFull."""
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
        """Run ``function(*args)`` soon. Waits for a place, unless it gets one.

        Raises QueueFull if none became free in submit_timeout_ms, Ended after :meth:`close`.
        """
        if place is None:
            place = self.take_place()
        try:
            future: CallFuture[T] = CallFuture(place)
            task = self.task()
            self._start(partial(_into, future, task, function, args), task.lane)
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
        over: Callable[[Started[T]], None] | None = None,
    ) -> Started[T]:
        """As :meth:`submit`, for who waits for the result alone and from one thread: with less around it.

        ``over`` is called when it has ended, on the thread that ran it.
        """
        if place is None:
            place = self.take_place()
        try:
            started = Started(function, args, place, self.task() if task is None else task, over)
            self.start_call(started)
        except BaseException:
            place.clear()
            raise
        return started

    def start_call(self, started: Started[Any]) -> None:
        """Start a call that was made before, and that has its place."""
        self._start(started.run, started.lane)

    def submit_in_order(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """As :meth:`submit`; with ``sequential_callbacks`` the callbacks that are added to the futures wait for their
        turn, and hold the place until then. Results do not wait."""
        if not self._sequential:
            return self.submit(function, *args)
        place = self.take_place()
        try:
            future: InOrder[T] = InOrder(place, self._order)
            task = self.task()
            job = partial(_in_order, future, self._order, task, function, args)
            try:
                self._order.expect(future, job)  # before it starts, and may end
                self._start(job, task.lane)
            except BaseException:
                future.over = True  # nobody waits for it
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

        The place becomes free when the callback's turn comes, so slow callbacks hold up submitters, not memory. A
        callback that raises has its traceback shown by ``sys.excepthook`` and harms no other.
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
                self._start(partial(_set, future, task, function, args), task.lane)
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

    def _add_thread(self, lane: _Lane) -> None:
        name = f"ort_rknn submit_{lane.number}_{len(lane.threads)}"
        thread = threading.Thread(
            target=_work, args=(lane.jobs, lane.threads, self.places.tell), name=name, daemon=True
        )
        try:
            start_thread(thread)
        except RuntimeError:  # no more threads can be had: those that are there do it
            if not lane.threads:
                raise
        else:
            lane.threads[thread] = None

    def threads(self) -> list[threading.Thread]:
        """Those that it has made."""
        return [thread for lane in self._lanes for thread in list(lane.threads)]

    def close(self) -> None:
        """Wait for everything submitted, callbacks included; called from a callback, only for what runs.

        Where it is interrupted, it can be called again.
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
        """Cancel what has not begun, and wait for what runs."""
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
        for lane in self.__dict__.get("_lanes", ()):  # not there where __init__ raised
            lane.jobs.put(None)


def _cancel(job: _Job) -> None:
    """End a call that nobody has begun: who waits for it goes on."""
    call: Any = job.args[0] if isinstance(job, partial) else job.__self__  # type: ignore[attr-defined]
    call.cancel()
    with suppress(Exception):
        job()


def _work(jobs: _Jobs, threads: dict[threading.Thread, None], tell: Callable[[], None]) -> None:
    threads[threading.current_thread()] = None
    while (job := jobs.get()) is not None:
        try:
            job()
        except BaseException:  # a SystemExit out of a future's callback, say: the next call comes all the same
            sys.excepthook(*sys.exc_info())
        del job
        tell()
    jobs.put(None)  # for the next one


_alive: weakref.WeakSet[Submitter] = weakref.WeakSet()
_exiting = False
#: A shell's exit code for a program that Ctrl-C ended.
_INTERRUPTED = 130


def _end_all() -> None:
    """The threads are daemons, since others would keep the interpreter from ending: what was submitted is done now.

    An interrupt meanwhile, as by a second Ctrl-C: what has not begun is dropped, and what runs is waited for, because
    the interpreter's end would abort the process inside onnxruntime. One more ends the process at once.
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


class Started(Awaited, Generic[T]):
    """A call under way, for one thread that waits for it: a Future without callbacks, and quicker.

    It ends on the thread that runs it, also if it was cancelled: that thread sees no signals.
    """

    __slots__ = ("_args", "_function", "_task", "_told", "lane", "place", "value")

    def __init__(
        self,
        function: Callable[..., T],
        args: tuple[Any, ...],
        place: Place,
        task: Task,
        over: Callable[[Started[T]], None] | None = None,
    ) -> None:
        super().__init__()
        self._function: Callable[..., T] | None = function
        self._args = args
        self.place = place
        self._task = task
        self.lane = task.lane
        self._told = over
        self.value: T | None = None
        """What it gave, once it has ended; given away by :meth:`result`."""

    def run(self) -> None:
        """Do it, unless it was cancelled."""
        if self.claim():
            assert self._function is not None
            self._task.begin()
            try:
                self.value = self._function(*self._args)
            except BaseException as error:
                self.error = error
            finally:
                self._task.end()
        else:
            self.error = CancelledError()
        self._function, self._args = None, ()
        self.place.clear()
        self.finish()
        if self._told is not None:
            self._told(self)

    def assign(self, task: Task) -> None:
        """Another task, before it is started."""
        self._task = task
        self.lane = task.lane

    def cancel(self) -> bool:
        """Whether it will never run: false where it has begun."""
        return self.claim()

    def exception(self) -> BaseException | None:
        """Wait until it has ended; what it raised. Raises CancelledError if it was cancelled."""
        self.wait()
        if isinstance(self.error, CancelledError):
            raise self.error
        return self.error

    def result(self) -> T:
        """Wait until it has ended; what it gave, or raise what it raised. Once."""
        self.wait()
        self.raise_error()
        value, self.value = self.value, None
        return value  # type: ignore[return-value]  # None is a T where the function gives None


def _done(task: Task, function: Callable[..., T], args: tuple[Any, ...]) -> T:
    task.begin()
    try:
        return function(*args)
    finally:
        task.end()


def _set(future: CallFuture[T], task: Task, function: Callable[..., T], args: tuple[Any, ...]) -> None:
    """Run it and set the future; its place is given back elsewhere."""
    if not future.begin():
        return
    try:
        result = _done(task, function, args)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
    del future


def _into(future: CallFuture[T], task: Task, function: Callable[..., T], args: tuple[Any, ...]) -> None:
    try:
        _set(future, task, function, args)
    finally:
        future.place.clear()


def _in_order(future: InOrder[T], order: Order, task: Task, function: Callable[..., T], args: tuple[Any, ...]) -> None:
    try:
        _set(future, task, function, args)
    finally:
        future.over = True
        order.advance(future)


class Pending(Protocol):
    """A call that was started, such as a Future."""

    def result(self) -> Any:
        """Wait for it; give its result or raise its error."""
        ...


class Pipeline:
    """Calls go in, results come out ``depth`` calls later, in order: one caller keeps all cores busy. Thread safe."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._flying: deque[Pending] = deque()
        self._lock = threading.Lock()

    def push(self, call: Pending) -> Any:
        """The result of the call ``depth`` calls ago, or None while there is none. Raises that call's error."""
        with self._lock:
            self._flying.append(call)
            due = self._flying.popleft() if len(self._flying) > self.depth else None
        return due.result() if due is not None else None

    def flush(self) -> list[Any]:
        """The results that are still in it, oldest first; empties it. Raises the first error, after all have ended."""
        results: list[Any] = []
        first: BaseException | None = None
        with self._lock:
            flying, self._flying = self._flying, deque()
        while flying:
            try:
                results.append(flying.popleft().result())
            except BaseException as error:
                first = first or error
        if first is not None:
            try:
                raise first
            finally:
                del first  # else its traceback would lead back to it
        return results
