"""A pending call on a thread of a submitter."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Generic, TypeVar

from .callbacks import InOrder, Order
from .future import CallFuture
from .one_shot import Awaited
from .places import Place

T = TypeVar("T")


class Task:
    """Where a call runs: on the threads of queue ``lane``, between :meth:`begin` and :meth:`end`."""

    __slots__ = ("lane",)

    def __init__(self, lane: int = 0) -> None:
        self.lane = lane

    def begin(self) -> None:
        """Called before the call, on the thread that runs it."""

    def end(self) -> None:
        """Called after it."""


class StartedCall(Awaited, Generic[T]):
    """A call under way, for one thread that waits for it: a Future without callbacks, and quicker.

    It ends on the thread that runs it, even if it was canceled: that thread gets no signals.
    """

    __slots__ = ("_args", "_function", "_task", "_when_over", "lane", "place", "value")

    def __init__(
        self,
        function: Callable[..., T],
        args: tuple[Any, ...],
        place: Place,
        task: Task,
        over: Callable[[StartedCall[T]], None] | None = None,
    ) -> None:
        super().__init__()
        self._function: Callable[..., T] | None = function
        self._args = args
        self.place = place
        self._task = task
        self.lane = task.lane
        self._when_over = over
        self.value: T | None = None
        """The return value, once it has ended; released by :meth:`result`."""

    def run(self) -> None:
        """Run the call, unless it was canceled."""
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
        if self._when_over is not None:
            self._when_over(self)

    def assign(self, task: Task) -> None:
        """Assign another task before the call starts."""
        self._task = task
        self.lane = task.lane

    def cancel(self) -> bool:
        """Cancel the call. True if it will never run, False if it has started."""
        return self.claim()

    def exception(self) -> BaseException | None:
        """Wait for the end; return the exception it raised, if any. Raises CancelledError if it was canceled."""
        self.wait()
        if isinstance(self.error, CancelledError):
            raise self.error
        return self.error

    def result(self) -> T:
        """Wait for the end; return the result or raise the exception. Call it once."""
        self.wait()
        self.raise_error()
        value, self.value = self.value, None
        return value  # type: ignore[return-value]  # T may be None


def _done(task: Task, function: Callable[..., T], args: tuple[Any, ...]) -> T:
    task.begin()
    try:
        return function(*args)
    finally:
        task.end()


def run_and_set(future: CallFuture[T], task: Task, function: Callable[..., T], args: tuple[Any, ...]) -> None:
    """Run the function and set the future. The place is returned elsewhere."""
    if not future.begin():
        return
    try:
        result = _done(task, function, args)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
    del future


def run_into(future: CallFuture[T], task: Task, function: Callable[..., T], args: tuple[Any, ...]) -> None:
    try:
        run_and_set(future, task, function, args)
    finally:
        future.place.clear()


def run_in_order(
    future: InOrder[T], order: Order, task: Task, function: Callable[..., T], args: tuple[Any, ...]
) -> None:
    try:
        run_and_set(future, task, function, args)
    finally:
        future.over = True
        order.advance(future)
