"""A stream of calls with results in order, and enough calls in flight to keep every lane busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from . import pipeline  # noqa: F401 - loaded together: a forked child imports nothing for an inherited session
from .places import Place
from .started import StartedCall, Task
from .submitter import Ended, Submitter

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
T = TypeVar("T")

#: If no depth is given: the maximum distance between the oldest and the newest call. It covers a core that is 25 times
#: slower than two others.
_WINDOW = 64
#: And roughly this many bytes of waiting results and feeds; as many calls as there are threads are always allowed.
_HELD_BYTES = 64 << 20


class PreparedFeed(Protocol):
    """The feed of a call, ready to run."""

    @property
    def nbytes(self) -> int:
        """The memory it holds, in bytes."""
        ...


class _StreamCall(StartedCall[T]):
    """The call for an item that was taken: waiting, running, or finished."""

    __slots__ = ("begun", "held", "known")

    def __init__(
        self, function: Callable[[Any], T], feed: PreparedFeed, task: Task, over: Callable[[StartedCall[T]], None]
    ) -> None:
        super().__init__(function, (feed,), _NOWHERE, task, over)
        self.held = feed.nbytes
        self.begun = False
        self.known = True
        """Counted among the calls of its lane."""


#: No place, for calls that were not started.
_NOWHERE: Place = []


def in_order(
    submitters: Callable[[], Submitter],
    function: Callable[[Any], T],
    prepare: Callable[[Item], PreparedFeed],
    items: Iterable[Item],
    depth: int | None,
) -> Iterator[T]:
    """Results of ``function(prepare(item))`` in the order of the items; ``prepare`` is called when the item is taken.

    An item is taken when a lane runs short of calls; at most ``depth`` calls lie between the oldest result not yet
    requested and the newest item. If the consumer stops early, or ``items`` raises, calls that have not started are
    dropped and running ones are waited for.
    """
    stream = _Stream(submitters, function, prepare, iter(items), depth)
    try:
        while stream.fill():
            yield stream.oldest()
    finally:
        stream.stop()


class _Stream(Generic[Item, T]):
    def __init__(
        self,
        submitters: Callable[[], Submitter],
        function: Callable[[Any], T],
        prepare: Callable[[Item], PreparedFeed],
        items: Iterator[Item],
        depth: int | None,
    ) -> None:
        self._submitters = submitters
        self._function = function
        self._prepare = prepare
        self._items: Iterator[Item] | None = items
        self._depth = depth
        self._calls: deque[_StreamCall[T]] = deque()  # oldest first
        self._news: SimpleQueue[Any] = SimpleQueue()  # calls that have ended
        self._held = 0
        self._flying = 0
        self._submitter: Submitter | None = None
        self._waiting: list[deque[_StreamCall[T]]] = []  # for a place, by lane
        self._busy: list[int] = []  # calls in flight, by lane
        self._most: list[int] = []
        self._enough = 0

    def fill(self) -> bool:
        """Take items and start calls until every lane has enough. False: nothing is left to wait for."""
        while not self._news.empty():
            self._note(self._news.get())
        submitter = self._submitters()
        if submitter is not self._submitter:  # the first one, or the session was planned again
            self._adopt(submitter)
        while self._start_waiting() or (self._hungry() and self._take()):
            pass
        return bool(self._calls)

    def oldest(self) -> T:
        """Wait for the oldest call. Returns its result or raises its error."""
        call = self._calls[0]
        while not call.ended:
            self._note(self._news.get())
            if not call.ended:
                self.fill()
        self._calls.popleft()
        self._held -= call.held
        return call.result()

    def stop(self) -> None:
        """Drop calls that have not started and wait for running ones."""
        running = [call for call in self._calls if call.begun and not call.cancel()]
        for call in running:
            try:
                call.exception()
            except CancelledError:
                pass

    def _adopt(self, submitter: Submitter) -> None:
        """Use the first submitter, or a new one after the session's providers changed."""
        self._submitter = submitter
        self._busy = [0] * len(submitter.workers)
        self._most = [self._depth or count + 1 for count in submitter.workers]
        self._enough = sum(self._most)
        self._waiting = [deque() for _ in submitter.workers]
        for call in self._calls:
            if call.begun:
                call.known = False  # runs on another submitter
            else:
                call.assign(submitter.task())
                self._waiting[call.lane].append(call)

    def _hungry(self) -> bool:
        """Whether a lane lacks calls and another item may be taken."""
        if self._items is None:
            return False
        ahead = len(self._calls)
        if self._depth is not None:
            return ahead < self._depth
        if ahead >= self._enough and (
            # Only a slow older call is a reason to run further ahead, not a slow consumer.
            self._calls[0].ended or ahead >= _WINDOW or self._held >= _HELD_BYTES
        ):
            return False
        for lane, busy in enumerate(self._busy):  # noqa: SIM110 - on every call's way
            if busy < self._most[lane] and not self._waiting[lane]:
                return True
        return False

    def _take(self) -> bool:
        """Take an item, and start its call if its lane is idle. False if there are no more items."""
        assert self._items is not None and self._submitter is not None
        try:
            item = next(self._items)
        except StopIteration:
            self._items = None
            return False
        call = _StreamCall(self._function, self._prepare(item), self._submitter.task(), self._news.put)
        self._held += call.held
        self._calls.append(call)
        self._waiting[call.lane].append(call)
        return True

    def _start_waiting(self) -> bool:
        """Start a waiting call, in the lane with the fewest calls in flight. False if none is waiting, or if there is
        no place now but calls of ours are in flight or a result is ready."""
        lane, least = -1, 0
        for k, waiting in enumerate(self._waiting):
            if waiting and self._busy[k] < self._most[k] and (lane < 0 or self._busy[k] < least):
                lane, least = k, self._busy[k]
        if lane < 0:
            return False
        submitter = self._submitter
        assert submitter is not None
        if self._flying or self._calls[0].ended:
            place = submitter.places.take(0)
            if place is None:
                return False
        else:
            place = submitter.take_place()
        try:
            call = self._waiting[lane][0]
            call.place = place
            submitter.start_call(call)
        except Ended:
            self._adopt(self._submitters())
            return True
        except BaseException:
            place.clear()
            raise
        self._waiting[lane].popleft()
        call.begun = True
        self._flying += 1
        self._busy[lane] += 1
        return True

    def _note(self, call: _StreamCall[T]) -> None:
        """Record that a call has ended."""
        self._flying -= 1
        if call.known:
            self._busy[call.lane] -= 1
        if self._depth is None:
            held, results = 0, call.value
            if isinstance(results, list):
                for array in results:
                    held += getattr(array, "nbytes", 0)
            self._held += held - call.held
            call.held = held
