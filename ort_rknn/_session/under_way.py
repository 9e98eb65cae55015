"""Pending ``run_async`` calls: onnxruntime's session may be destroyed only when they are over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .._concurrency import forks
from .._concurrency.one_shot import Awaited
from .._errors import bare_message
from .._executor.run_settings import asynchronous
from .._interrupts import start_thread
from .closed import Closed, closed_error

if TYPE_CHECKING:
    from concurrent.futures import Future


class UnderWay(Awaited):
    """A ``run_async`` call that onnxruntime may still be working on. Destroying its session now would leave
    onnxruntime's threads working on freed memory."""

    __slots__ = ("thread",)

    def __init__(self) -> None:
        super().__init__()
        self.thread = 0
        """The thread that is inside the callback."""

    def finish(self) -> None:
        """As :meth:`Awaited.finish`; idempotent."""
        if not self.ended:
            super().finish()

    def wait(self) -> None:
        """As :meth:`Awaited.wait`, for any number of threads: a thread that is interrupted may leave the lock taken."""
        while not self.wait_for(0.1):
            pass


class Callback:
    """The user's callback. The call is over once this was called or is no longer referenced. In the latter case
    onnxruntime did not accept the call, whatever was raised and wherever an interrupt came.

    ``feed`` is kept alive as long: onnxruntime 1.23.1 reads arrays without holding a reference to them.
    """

    __slots__ = ("_callback", "_calls", "_feed", "_under_way")

    def __init__(
        self, callback: Callable[[list[Any], Any, str], object], calls: set[UnderWay], feed: Any, *, has_options: bool
    ) -> None:
        self._feed = feed
        self._callback = callback
        self._calls = calls
        self._under_way = under_way = UnderWay()
        calls.add(under_way)
        if has_options:
            asynchronous.add(under_way)

    def __call__(self, results: list[Any], user_data: Any, error: str) -> None:
        self._under_way.thread = threading.get_ident()
        try:
            self._callback(results, user_data, error)
        finally:
            self._finish()

    def _finish(self) -> None:
        self._calls.discard(self._under_way)
        asynchronous.discard(self._under_way)
        self._under_way.finish()
        self._feed = None

    def __del__(self) -> None:
        if hasattr(self, "_under_way"):  # not if __init__ was interrupted, or ran out of stack
            self._finish()


def run_as_submitted(session: Any, output_names: Any, feed: Any, callback: Any, user_data: Any, options: Any) -> None:
    """``run_async``, implemented as ``submit``, where onnxruntime's own would not do: in a forked child, where its
    threads are the parent's and the call would never start, and for calls that onnxruntime's session does not serve.
    Raises what ``submit`` raises, including QueueFull."""
    if isinstance(session._sess, Closed):
        raise closed_error()
    session._validate_input(list(feed.keys()))

    def tell(future: Future[list[Any]]) -> None:
        error = future.exception()
        if error is None:
            callback(future.result(), user_data, "")
        else:
            callback([], user_data, bare_message(error))

    session.submit(output_names, feed, options, copy=False).add_done_callback(tell)


def drop(leaving: list[Any], calls: set[UnderWay]) -> None:
    """Drop native sessions once the ``run_async`` calls that may use them are over. If interrupted, ``leaving`` still
    holds them, for the next time.

    Inside a callback of such a call, which cannot wait for itself, another thread does it.
    """
    if any(id(native) in forks.inherited for native in leaving):
        leaving.clear()  # never destroyed: the calls are the parent's
        return
    still = calls.copy()
    if any(call.thread == threading.get_ident() for call in still):
        start_thread(threading.Thread(target=partial(_wait_and_drop, leaving, still), name="ort_rknn close"))
    else:
        _wait_and_drop(leaving, still)


def _wait_and_drop(leaving: list[Any], calls: set[UnderWay]) -> None:
    for call in calls:
        call.wait()
    leaving.clear()
