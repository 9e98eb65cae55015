"""The resources of a session, and their end: at close, at a fork and at the interpreter's exit."""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ort_rknn._concurrency.forks import keep
from ort_rknn._concurrency.pipeline import Pending, Pipeline
from ort_rknn._concurrency.places import Place, Places
from ort_rknn._concurrency.started import Task
from ort_rknn._concurrency.submitter import Submitter
from ort_rknn._locks import Lock, RLock
from ort_rknn._options import Options

from ._cpu import CpuCalls
from ._feeds import Array
from ._loading import LoadedSession


class SessionCore:
    """The resources of a session, separate from it: pending work refers to this object, never to the session."""

    def __init__(self, loaded: LoadedSession, options: Options) -> None:
        self.loaded = loaded
        self.calls = loaded.calls
        self.options = options
        self.ended = False
        self._over = False
        self._timeout = options.submit_timeout_ms / 1000
        self.pipeline_of_parent = False
        """Whether the results in the pipeline belong to the parent from which this process was forked."""
        self._begin()
        _alive.add(self)

    def _begin(self) -> None:
        contexts = self.calls.dispatch.contexts if self.calls.dispatch is not None else 1
        self._places = Places(contexts + self.options.max_queue_size)
        self._tasks = itertools.count()
        self._submitter: Submitter | None = None
        self._lock = RLock()  # garbage collection may end the session on a thread that is already using it
        self.pipeline: Pipeline | None = None
        self.pipeline_lock = Lock()

    def after_fork(self) -> None:
        """In the child, when there is no other thread: submitted calls and their threads are the parent's."""
        if self._over:
            return
        for thing in (self._submitter, self.pipeline):
            keep(thing)
        self.pipeline_of_parent = self.pipeline_of_parent or self.pipeline is not None
        self._begin()
        if isinstance(self.calls, CpuCalls):
            self.calls.after_fork()

    def run(self, arrays: Sequence[Array], places: list[int] | None, batch: bool) -> list[Array]:
        """Run and wait. Meanwhile it takes one of ``max_queue_size`` places, in addition to those of the contexts."""
        self.check_open()
        place = self._take_place("run submit timed out: async queue/callback pipeline is saturated")
        try:
            return _chosen(self.calls.run(arrays, batch=batch, lane=self._next_lane()), places)
        finally:
            place.clear()

    def start(self, arrays: Sequence[Array]) -> Pending:
        """Run on another thread; returns all outputs. Takes a place as :meth:`run` does."""
        place = self._take_place("run_pipeline submit timed out")
        try:
            return self.calls.start(arrays, self._next_lane(), place.clear)
        except BaseException:
            place.clear()
            raise

    def _next_lane(self) -> int:
        """The lane of a new run: run n goes to core ``schedule[n % len(schedule)]``."""
        dispatch = self.calls.dispatch
        return dispatch.lane_of(next(self._tasks)) if dispatch is not None else 0

    def start_with_callback(
        self, arrays: Sequence[Array], places: list[int] | None, callback: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run on another thread, and pass the outcome to ``callback``. These calls have separate places."""
        submitter = self.submitter()
        place = submitter.take_place()
        try:
            lane = self._next_lane()  # now, not when a thread starts it
            call = (arrays, places, lane)
            submitter.submit_with_callback(self._run_later, call, callback, place=place, task=Task(lane))
        except BaseException:
            place.clear()
            raise

    def _run_later(self, arrays: Sequence[Array], places: list[int] | None, lane: int) -> list[Array]:
        return _chosen(self.calls.run(arrays, lane=lane), places)

    def _take_place(self, words: str) -> Place:
        place = self._places.take(self._timeout)
        if place is None:
            raise RuntimeError(
                f"{words}; no place became free in {self._timeout:g} s (submit_timeout_ms) with "
                f"max_queue_size={self.options.max_queue_size}"
            )
        return place

    def check_open(self) -> None:
        if self.ended:
            raise RuntimeError("the session was closed")

    def submitter(self) -> Submitter:
        self.check_open()
        with self._lock:
            if self._submitter is None:
                self._submitter = Submitter.for_dispatch(self.calls.dispatch, self.options, Task)
            return self._submitter

    def end(self) -> None:
        """Wait for submitted calls, including callbacks, then release everything. Idempotent; if interrupted, the next
        call continues."""
        self.ended = True
        with self._lock:
            if self._over:
                return
            if self._submitter is not None:
                self._submitter.close()
            self._places.wait_until_free()
            self.calls.close()
            self._over = True

    def end_from_anywhere(self) -> None:
        """As :meth:`end`, but also works on a thread that the end would have to wait for."""
        if threading.current_thread().name.startswith("ort_rknn"):
            threading.Thread(target=self.end, name="end of a session").start()
        else:
            self.end()


def _chosen(results: list[Array], places: list[int] | None) -> list[Array]:
    """The requested outputs. An output that is requested twice is copied, not shared."""
    if places is None:
        return results
    return [results[p] if p not in places[:k] else results[p].copy() for k, p in enumerate(places)]


_alive: weakref.WeakSet[SessionCore] = weakref.WeakSet()


def _after_fork() -> None:
    for core in list(_alive):
        core.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _end_all() -> None:
    """Run pending callbacks at interpreter exit, while they still can run."""
    for core in list(_alive):
        try:
            core.end()
        except Exception:
            sys.excepthook(*sys.exc_info())
