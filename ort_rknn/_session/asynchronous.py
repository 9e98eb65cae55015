"""Calls that return before the result is there, beside onnxruntime's own ``run_async``."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .._concurrency.submitter import Pipeline, Started, Submitter
    from .start import State

#: Held for moments, while a session's parts are exchanged.
making = threading.Lock()
T = TypeVar("T")
R = TypeVar("R")


def _depth(depth: int) -> int:
    if isinstance(depth, bool) or not hasattr(depth, "__index__"):
        raise TypeError(f"depth is the number of calls in flight, a whole number from 1; got {depth!r}")
    if depth < 1:
        raise ValueError(f"depth is the number of calls in flight and must be at least 1; got {depth}")
    return depth.__index__()


class AsynchronousCalls:
    """Mixed into our InferenceSession. A call runs ``session.run`` on a thread of ours, made on first use: one for
    every NPU context (one on the CPU), and where a core has one context up to three that wait with their calls ready
    (``max_queue_size`` at most).

    Feeds are read when their call runs: do not change their arrays before the result is there.
    """

    _npu: State | None
    _submitter: Submitter | None = None
    _submitter_process = 0
    _pipeline: Pipeline | None = None

    if TYPE_CHECKING:

        def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> list[Any]: ...

    def submit(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> Future[list[Any]]:
        """Run soon; the future gives what ``run`` returns or raises.

        Waits for a place in the queue at most ``submit_timeout_ms``. Raises Fail when none became free. Callbacks that
        are added to the future come in the order of submission, with ``sequential_callbacks=False`` as runs finish.
        """
        return self._retried(
            lambda submitter: submitter.submit_in_order(self.run, output_names, input_feed, run_options)
        )

    def map(
        self,
        feeds: Iterable[Mapping[str, Any]],
        *,
        output_names: Sequence[str] | None = None,
        depth: int | None = None,
        run_options: Any = None,
    ) -> Iterator[list[Any]]:
        """Results of a stream of feeds, in their order, several in flight: all cores work for one caller.

        ``depth``: how many at most; by default one per context and one waiting. The stream may be endless: feeds are
        taken as results are asked for. When the consumer stops early, or ``feeds`` raises, what has not begun is
        dropped and what runs is waited for. Raises ValueError for a depth below 1, TypeError for one that is no whole
        number, Fail where a place in the queue is waited for too long.
        """
        from .._concurrency.submitter import in_order

        depth = self._contexts()[0] + 1 if depth is None else _depth(depth)
        return in_order(lambda feed: self._start_call(self.run, output_names, feed, run_options), feeds, depth)

    async def run_awaitable(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[Any]:
        """``await`` it: what ``run`` returns or raises. Never blocks the event loop, also while the queue is full.

        When it is cancelled before it runs, it does not run.
        """
        import asyncio

        from .._errors import FAIL, status_code

        cancelled: list[bool] = []

        def run() -> list[Any]:
            return [] if cancelled else self.run(output_names, input_feed, run_options)

        try:
            try:
                future = self._submit(run, timeout=0)
            except Exception as error:
                if status_code(error) != FAIL:
                    raise
                loop = asyncio.get_running_loop()
                future = await loop.run_in_executor(None, self._submit, run)
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    def run_pipeline(
        self, input_feed: Mapping[str, Any], depth: int = 3, reset: bool = False, *, output_names: Any = None
    ) -> list[Any] | None:
        """Submit a feed and get the result of the one ``depth`` calls ago; None for the first ``depth`` calls.

        ``reset``, or another depth, begins anew: results still in flight are lost. :meth:`flush` gives the last ones.
        Raises the error of the call whose result it would be, ValueError for a depth below 1, TypeError for one that is
        no whole number.
        """
        from .._concurrency.submitter import Pipeline

        depth = _depth(depth)
        call = self._start_call(self.run, output_names, input_feed)
        with making:
            if self._pipeline is None or reset or self._pipeline.depth != depth:
                self._pipeline = Pipeline(depth)
            pipeline = self._pipeline
        result: list[Any] | None = pipeline.push(call)
        return result

    def flush(self) -> list[list[Any]]:
        """The results still in the pipeline, oldest first; also after close(). Raises the first error among them, after
        all have ended, and RuntimeException in a forked child: the results are the parent's."""
        pipeline = self._pipeline
        if pipeline is None:
            return []
        if self._submitter_process != os.getpid():
            from .._errors import RUNTIME_EXCEPTION, ort_error

            raise ort_error(RUNTIME_EXCEPTION, "the process was forked: what is in the pipeline is the parent's")
        return pipeline.flush()

    def _submit(self, function: Callable[..., T], *args: Any, timeout: float | None = None) -> Future[T]:
        return self._retried(lambda submitter: submitter.submit(function, *args, timeout=timeout))

    def _start_call(self, function: Callable[..., T], *args: Any) -> Started[T]:
        return self._retried(lambda submitter: submitter.start(function, *args))

    def _retried(self, submit: Callable[[Submitter], R]) -> R:
        from .._concurrency.submitter import Ended

        while True:
            try:
                return submit(self._submitters())
            except Ended:
                pass  # by set_providers(), or by close(): the next one's calls say so

    def _contexts(self) -> tuple[int, int]:
        """How many, and how many calls are worth a thread besides."""
        executors = self._npu.executors if self._npu is not None else ()
        return max(((executor.dispatch.contexts, executor.dispatch.ready) for executor in executors), default=(1, 1))

    def _submitters(self) -> Submitter:
        submitter = self._submitter
        if submitter is not None and self._submitter_process == os.getpid():
            return submitter
        from .._concurrency.submitter import Submitter
        from .._options import Options

        with making:
            if self._submitter is None or self._submitter_process != os.getpid():
                # In a forked child the threads of the parent's are missing, and its calls are not ours.
                self._pipeline = None
                request = self._npu.request if self._npu is not None else None
                options = request.options if request is not None else Options()
                self._submitter_process = os.getpid()
                self._submitter = Submitter.for_contexts(*self._contexts(), options)
            return self._submitter

    def _end_submissions(self) -> None:
        """Wait for what was submitted. What is in the pipeline stays for flush()."""
        with making:
            submitter, self._submitter = self._submitter, None
        if submitter is not None and self._submitter_process == os.getpid():
            submitter.close()
