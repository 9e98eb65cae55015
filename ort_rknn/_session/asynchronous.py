"""Calls that return before the result is ready, besides onnxruntime's own ``run_async``."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .._locks import Lock

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .._concurrency.pipeline import Pipeline
    from .._concurrency.submitter import Submitter
    from .feeds import Buffers, Feed
    from .state import State

#: Held briefly while a session's parts are replaced.
making = Lock()
if hasattr(os, "register_at_fork"):
    # forks.renewed_in_child inlined: importing ort_rknn imports nothing that only sessions need.
    os.register_at_fork(after_in_child=making._at_fork_reinit)  # type: ignore[attr-defined]
T = TypeVar("T")
R = TypeVar("R")


def _depth(depth: int) -> int:
    if isinstance(depth, bool) or not hasattr(depth, "__index__"):
        raise TypeError(f"depth is the number of calls in flight: expected an integer >= 1, got {depth!r}")
    if depth < 1:
        raise ValueError(f"depth is the number of calls in flight and must be at least 1; got {depth}")
    return depth.__index__()


def no_feed(feed: object, inputs: Sequence[Any] | None) -> str:
    """The error message for a feed that is not a dict."""
    what = type(feed).__name__
    shape = getattr(feed, "shape", None)
    if isinstance(shape, tuple):
        what += f" of shape {list(shape)}"
    wanted = "{" + ", ".join(f"{value.name!r}: ..." for value in inputs) + "}" if inputs else "a dict"
    return f"input_feed is a dict of arrays by input name, {wanted}; got {what}"


class AsynchronousCalls:
    """Mixin of our InferenceSession. A call does what ``session.run`` does, on one of our threads, which are created on
    first use: one per NPU context (one on the CPU), plus one per core that has a single context, which waits with the
    next call ready.

    Call k runs on core ``schedule[k % len(schedule)]``. k counts blocking runs and calls of all kinds in the order in
    which they were accepted, whichever thread starts them later. Calls queue per core: a slow core delays no other
    core.

    Feeds (dict, arrays, lists and OrtValues) are copied into reused buffers when the call is made, so the caller may
    change them at once. ``copy=False`` skips the copy, for callers who leave the feed unchanged until the result is
    ready.
    """

    _npu: State | None
    _submitter: Submitter | None = None
    _submitter_process = 0
    _ending: tuple[Submitter, ...] = ()
    """Closed or being closed; the calls they accepted are still waited for."""
    _buffers: Buffers | None = None
    _pipeline: Pipeline | None = None

    if TYPE_CHECKING:

        def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> list[Any]: ...

    def submit(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
        *,
        copy: bool = True,
    ) -> Future[list[Any]]:
        """Run soon; the future gives what ``run`` returns or raises.

        Waits up to ``submit_timeout_ms`` for a place in the queue, then raises QueueFull. Callbacks added to the future
        are called in submission order, or, with ``sequential_callbacks=False``, as runs finish; then
        ``asyncio.wrap_future`` never waits for earlier calls.
        """
        feed = self._feed(input_feed, copy)
        return self._retried(
            lambda submitter: submitter.submit_in_order(self._run_feed, feed, output_names, run_options)
        )

    def map(
        self,
        feeds: Iterable[Mapping[str, Any]],
        *,
        output_names: Sequence[str] | None = None,
        depth: int | None = None,
        run_options: Any = None,
        copy: bool = True,
    ) -> Iterator[list[Any]]:
        """The results of a stream of feeds, in order, with several runs in flight: one caller keeps all cores busy.

        The stream may be endless: feeds are consumed as results are requested, and as needed to keep every core busy.
        Finished results may have to wait for an older one: at most 64 calls, or 64 MiB of results and copied feeds.
        ``depth``: the maximum number of calls, finished or not. If the consumer stops early, or ``feeds`` raises, calls
        that have not started are dropped and running ones are waited for. Raises ValueError for a depth below 1,
        TypeError for one that is not an integer, QueueFull if other callers hold all places for too long.
        """
        from .._concurrency.stream import in_order

        if depth is not None:
            depth = _depth(depth)
        return in_order(
            self._submitters,
            partial(self._run_feed, output_names=output_names, run_options=run_options),
            partial(self._feed, copied=copy),
            feeds,
            depth,
        )

    def run_awaitable(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
        *,
        copy: bool = True,
    ) -> Coroutine[Any, Any, list[Any]]:
        """Awaitable: returns what ``run`` returns or raises. Never blocks the event loop, and uses no thread of its
        executor. While the queue is full, calls wait in order; after ``submit_timeout_ms`` QueueFull is raised.

        The feed is copied at the call, not at the ``await``. A call that is canceled before it runs does not run.
        """
        return self._awaited(output_names, self._feed(input_feed, copy), run_options)

    async def _awaited(self, output_names: Sequence[str] | None, feed: Feed, run_options: Any) -> list[Any]:
        import asyncio

        from .._concurrency.submitter import Ended

        while True:
            submitter = self._submitters()
            place = await submitter.wait_for_place()
            try:
                future = submitter.submit(self._run_feed, feed, output_names, run_options, place=place)
                break
            except Ended:
                pass  # by set_providers() or close(): the next one's calls report it
            finally:
                del place
        return await asyncio.wrap_future(future)

    def run_pipeline(
        self,
        input_feed: Mapping[str, Any],
        depth: int = 3,
        reset: bool = False,
        *,
        output_names: Any = None,
        copy: bool = True,
    ) -> list[Any] | None:
        """Submit a feed and return the result of the call made ``depth`` calls ago; None for the first ``depth`` calls.

        ``reset``, or a different depth, starts over: results still in flight are lost. :meth:`flush` returns the last
        ones. Raises the error of the call whose result is due, ValueError for a depth below 1, TypeError for one that
        is not an integer, QueueFull as :meth:`submit` does.
        """
        from .._concurrency.pipeline import Pipeline

        depth = _depth(depth)
        feed = self._feed(input_feed, copy)
        call = self._retried(lambda submitter: submitter.start(self._run_feed, feed, output_names, None))
        with making:
            if self._pipeline is None or reset or self._pipeline.depth != depth:
                self._pipeline = Pipeline(depth)
            pipeline = self._pipeline
        result: list[Any] | None = pipeline.push(call)
        return result

    def flush(self) -> list[list[Any]]:
        """The results still in the pipeline, oldest first; works after close(), too. Raises the first error among them
        once all have ended, and RuntimeException in a forked child: the results belong to the parent."""
        pipeline = self._pipeline
        if pipeline is None:
            return []
        if self._submitter_process != os.getpid():
            from .._errors import RUNTIME_EXCEPTION, ort_error

            raise ort_error(RUNTIME_EXCEPTION, "the process was forked: what is in the pipeline is the parent's")
        return pipeline.flush()

    def _feed(self, feed: Any, copied: bool) -> Feed:
        from .feeds import Buffers, Feed

        if not hasattr(feed, "keys"):
            raise TypeError(no_feed(feed, getattr(self, "_inputs_meta", None)))
        if not copied:
            return Feed(feed)
        if self._buffers is None:
            # As many as can be in flight.
            self._buffers = Buffers(len(self._submitters().places))
        return self._buffers.copy(feed)

    def _run_feed(self, feed: Feed, output_names: Any, run_options: Any) -> list[Any]:
        try:
            return feed.without(self.run(output_names, feed.values, run_options))
        finally:
            feed.give_back()

    def _retried(self, submit: Callable[[Submitter], R]) -> R:
        from .._concurrency.submitter import Ended

        while True:
            try:
                return submit(self._submitters())
            except Ended:
                pass  # by set_providers() or close(): the next one's calls report it

    def _submitters(self) -> Submitter:
        submitter = self._submitter
        if submitter is not None and self._submitter_process == os.getpid():
            return submitter
        from .._concurrency.started import Task
        from .._concurrency.submitter import Submitter
        from .._executor.numbered import Numbered
        from .._options import Options

        with making:
            if self._submitter is None or self._submitter_process != os.getpid():
                # In a forked child the parent's threads do not exist, and its calls are not ours.
                self._pipeline, self._ending = None, ()
                state = self._npu
                options = state.request.options if state is not None and state.request is not None else Options()
                executors = state.executors if state is not None else []
                dispatch = executors[0].dispatch if executors else None
                known = state is None or not state.parallel
                task = partial(Numbered, executors) if executors else Task
                self._submitter = Submitter.for_dispatch(dispatch, options, task if known else None)
                self._submitter_process = os.getpid()
            return self._submitter

    def _end_submissions(self) -> None:
        """Wait for submitted calls. What is in the pipeline stays for flush(). If interrupted, the next call
        continues."""
        with making:
            if self._submitter_process != os.getpid():
                self._ending = ()
            elif self._submitter is not None:
                self._ending = (*self._ending, self._submitter)
            self._submitter = None
        for submitter in self._ending:
            submitter.close()
        self._ending = ()
