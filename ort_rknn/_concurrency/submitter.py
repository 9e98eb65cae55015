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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .._errors import FAIL, ort_error
from .callbacks import Callback, Delivery, InOrder, Order
from .one_shot import Awaited

if TYPE_CHECKING:
    from .._options import Options

T = TypeVar("T")
Item = TypeVar("Item")


class Ended(RuntimeError):
    """The submitter was closed."""


_Job = Callable[[], None]
_Jobs = queue.SimpleQueue["_Job | None"]  # None: the threads end


class Submitter:
    """Runs functions on ``workers`` threads, with at most ``max_queue_size`` waiting besides those that run.

    The threads are made as calls come and wait for more. They end with :meth:`close`, when it is collected, or when the
    interpreter ends, and in each case after what was submitted.
    ``sequential_callbacks``: callbacks come in the order of submission, else as calls finish. They are those of
    :meth:`submit_with_callback`, and those of the futures of :meth:`submit_in_order`. Thread safe.
    """

    def __init__(
        self, workers: int, *, max_queue_size: int, submit_timeout_ms: int, sequential_callbacks: bool = True
    ) -> None:
        self._places = threading.Semaphore(workers + max_queue_size)
        self._workers = workers
        self._threads: list[threading.Thread] = []
        self._jobs: _Jobs = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._timeout = submit_timeout_ms / 1000
        self._delivery: Delivery | None = None
        self._sequential = sequential_callbacks
        self._order = Order(self._places.release)
        self._lock = threading.Lock()
        self._ended = False
        _alive.add(self)

    @classmethod
    def for_contexts(cls, contexts: int, ready: int, options: Options) -> Submitter:
        """For calls that run on one of so many contexts: a thread for each, and for as many calls that wait ``ready``
        as ``options.max_queue_size`` allows to wait at all."""
        ready = min(ready, options.max_queue_size)
        return cls(
            contexts + ready,
            max_queue_size=options.max_queue_size - ready,
            submit_timeout_ms=options.submit_timeout_ms,
            sequential_callbacks=options.sequential_callbacks,
        )

    def submit(self, function: Callable[..., T], *args: Any, timeout: float | None = None) -> Future[T]:
        """Run ``function(*args)`` soon. Waits for a place at most ``timeout`` seconds (None: submit_timeout_ms).

        Raises Fail where none became free, Ended after :meth:`close`.
        """
        self._take_place(self._timeout if timeout is None else timeout)
        future: Future[T] = Future()
        self._start(partial(_into, future, function, args))
        future.add_done_callback(self._free_place)
        return future

    def start(self, function: Callable[..., T], *args: Any) -> Started[T]:
        """As :meth:`submit`, for who waits for the result alone and from one thread: with less around it."""
        self._take_place(self._timeout)
        started = Started(function, args, self._places.release)
        self._start(started.run)
        return started

    def submit_in_order(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """As :meth:`submit`; with ``sequential_callbacks`` the callbacks that are added to the futures wait for their
        turn, and hold the place until then. Results do not wait."""
        if not self._sequential:
            return self.submit(function, *args)
        self._take_place(self._timeout)
        future: InOrder[T] = InOrder(self._order)
        with self._lock:  # else two that submit at once could be in one order here and in the other there
            self._order.expect(future)
            try:
                self._start(partial(_into, future, function, args))
            except BaseException:
                self._order.forget(future)
                raise
        return future

    def submit_with_callback(self, function: Callable[..., Any], args: tuple[Any, ...], callback: Callback) -> None:
        """As :meth:`submit`; the outcome goes to ``callback``, on a thread that does nothing else.

        The place becomes free when the callback's turn comes, so slow callbacks hold up submitters, not memory. A
        callback that raises has its traceback shown by ``sys.excepthook`` and harms no other.
        """
        self._take_place(self._timeout)
        with self._lock:
            if self._delivery is None:
                self._delivery = Delivery(self._sequential, self._places.release)
            future: Future[Any] = Future()
            self._start(partial(_into, future, function, args))
            self._delivery.expect(future, callback)

    def _take_place(self, timeout: float) -> None:
        if not self._places.acquire(timeout=timeout):
            raise ort_error(
                FAIL,
                f"submit timed out: no place became free in {timeout:g} s; collect results, submit less often, or set "
                "the provider options max_queue_size or submit_timeout_ms higher",
            )

    def _start(self, job: _Job) -> None:
        try:
            with self._gate:
                if _exiting:
                    raise RuntimeError("no more calls are taken: the interpreter is ending")
                if self._ended:
                    raise Ended("no more calls are taken: it was closed")
                if len(self._threads) < self._workers:
                    self._add_thread()
                self._jobs.put(job)
        except BaseException:
            self._places.release()
            raise

    def _add_thread(self) -> None:
        name = f"ort_rknn submit_{len(self._threads)}"
        thread = threading.Thread(target=_work, args=(self._jobs,), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads can be had: those that are there do it
            if not self._threads:
                raise
        else:
            self._threads.append(thread)

    def _free_place(self, future: Future[Any]) -> None:
        self._places.release()

    def close(self) -> None:
        """Wait for everything submitted, callbacks included; called from a callback, only for what runs."""
        with self._gate:
            if not self._ended:
                self._ended = True
                self._jobs.put(None)
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join()
        if self._delivery is not None:
            self._delivery.close()

    def __del__(self) -> None:
        self._jobs.put(None)


def _work(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        try:
            job()
        except BaseException:  # a SystemExit out of a future's callback, say: the next call comes all the same
            sys.excepthook(*sys.exc_info())
        del job
    jobs.put(None)  # for the next one


_alive: weakref.WeakSet[Submitter] = weakref.WeakSet()
_exiting = False


def _end_all() -> None:
    """The threads are daemons, since others would keep the interpreter from ending: what was submitted is done now."""
    global _exiting
    _exiting = True
    for submitter in list(_alive):
        submitter.close()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alive.clear)  # their threads are the parent's


class Started(Awaited, Generic[T]):
    """A call under way, for one thread that waits for it: a Future without callbacks, and quicker."""

    __slots__ = ("_args", "_free", "_function", "_value")

    def __init__(self, function: Callable[..., T], args: tuple[Any, ...], free: Callable[[], None]) -> None:
        super().__init__()
        self._function: Callable[..., T] | None = function
        self._args = args
        self._free = free  # called once, when it has ended
        self._value: T | None = None

    def run(self) -> None:
        """Do it, unless it was cancelled."""
        if not self.claim():
            return
        assert self._function is not None
        try:
            self._value = self._function(*self._args)
        except BaseException as error:
            self.error = error
        self.finish()

    def cancel(self) -> bool:
        """Whether it will never run: false where it has begun."""
        if not self.claim():
            return False
        self.error = CancelledError()
        self.finish()
        return True

    def finish(self) -> None:
        """As :meth:`Awaited.finish`; gives up the feed and the place."""
        self._function, self._args = None, ()
        self._free()
        super().finish()

    def exception(self) -> BaseException | None:
        """Wait until it has ended; what it raised. Raises CancelledError where it was cancelled."""
        self.wait()
        if isinstance(self.error, CancelledError):
            raise self.error
        return self.error

    def result(self) -> T:
        """Wait until it has ended; what it gave, or raise what it raised. Once."""
        self.wait()
        self.raise_error()
        return self._value  # type: ignore[return-value]  # None is a T where the function gives None


def in_order(submit: Callable[[Item], Started[T]], items: Iterable[Item], depth: int) -> Iterator[T]:
    """Results of ``submit`` in the items' order, at most ``depth`` in flight. Items are taken as results are asked for.

    When the consumer stops early, or ``items`` raises, calls that have not begun are dropped and the running ones
    waited for.
    """
    flying: deque[Started[T]] = deque()
    try:
        for item in items:
            flying.append(submit(item))
            if len(flying) >= depth:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    finally:
        for call in flying:
            call.cancel()
        for call in flying:
            try:
                call.exception()
            except CancelledError:
                pass


def _into(future: Future[T], function: Callable[..., T], args: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*args)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
    del future


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
