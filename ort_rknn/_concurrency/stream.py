"""A stream of calls whose results come in their order, with as many in flight as keep every lane busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from .submitter import Ended, Started, Submitter, Task

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
T = TypeVar("T")

#: Without a given depth: calls between the oldest one and the newest, at most. It covers a core that is 25 times slower
#: than two others.
_WINDOW = 64
#: And so many bytes of results and feeds that wait, roughly; fewer calls than there are threads never wait.
_HELD_BYTES = 64 << 20


class Prepared(Protocol):
    """A call's feed, ready to be run."""

    @property
    def nbytes(self) -> int:
        """What it holds in memory of its own."""
        ...


class _Entry(Generic[T]):
    """An item that was taken: it waits, runs, or has its result."""

    __slots__ = ("call", "feed", "held", "lane")

    def __init__(self, feed: Prepared) -> None:
        self.feed: Prepared | None = feed
        self.call: Started[T] | None = None
        self.held = feed.nbytes
        self.lane = 0


def in_order(
    submitters: Callable[[], Submitter],
    function: Callable[[Any], T],
    prepare: Callable[[Item], Prepared],
    items: Iterable[Item],
    depth: int | None,
) -> Iterator[T]:
    """Results of ``function(prepare(item))`` in the items' order; ``prepare`` is called when the item is taken.

    An item is taken when a lane has too little to do, and at most ``depth`` are between the oldest result that was not
    asked for and the newest item. When the consumer stops early, or ``items`` raises, calls that have not begun are
    dropped and the running ones waited for.
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
        prepare: Callable[[Item], Prepared],
        items: Iterator[Item],
        depth: int | None,
    ) -> None:
        self._submitters = submitters
        self._function = function
        self._prepare = prepare
        self._items: Iterator[Item] | None = items
        self._depth = depth
        self._entries: deque[_Entry[T]] = deque()  # oldest first
        self._flying: dict[Started[T], _Entry[T]] = {}
        self._news: SimpleQueue[Started[T]] = SimpleQueue()
        self._held = 0
        self._submitter: Submitter | None = None
        self._tasks: list[deque[tuple[_Entry[T], Task]]] = []  # what waits for a place, by lane
        self._busy: list[int] = []  # calls in flight, by lane
        self._most: list[int] = []

    def fill(self) -> bool:
        """Take items and start calls until every lane has enough. False: nothing is left to wait for."""
        while not self._news.empty():
            self._note(self._news.get())
        submitter = self._current()
        while True:
            lane = self._next_lane()
            if lane is not None:
                if not self._start(submitter, lane):
                    break
            elif self._hungry():
                if not self._take(submitter):
                    break
            else:
                break
            submitter = self._current()
        return bool(self._entries)

    def oldest(self) -> T:
        """Wait for the oldest call; its result, or raise its error."""
        entry = self._entries[0]
        while entry.call is None or not entry.call.ended:
            self._note(self._news.get())
            self.fill()
        self._entries.popleft()
        self._held -= entry.held
        return entry.call.result()

    def stop(self) -> None:
        """Drop what has not begun and wait for what runs."""
        calls = [entry.call for entry in self._entries if entry.call is not None]
        running = [call for call in calls if not call.cancel()]
        for call in running:
            try:
                call.exception()
            except CancelledError:
                pass

    def _current(self) -> Submitter:
        submitter = self._submitters()
        if submitter is not self._submitter:  # the first one, or the session has got others
            self._submitter = submitter
            self._busy = [0] * len(submitter.workers)
            self._most = [self._depth or count + 1 for count in submitter.workers]
            waiting = sorted(
                ((entry, task) for lane in self._tasks for entry, task in lane), key=lambda w: self._entries.index(w[0])
            )
            self._tasks = [deque() for _ in submitter.workers]
            for entry in self._flying.values():
                entry.lane = -1  # runs elsewhere
            for entry, _ in waiting:
                self._wait(entry, submitter.task())
        return submitter

    def _wait(self, entry: _Entry[T], task: Task) -> None:
        entry.lane = task.lane
        self._tasks[task.lane].append((entry, task))

    def _next_lane(self) -> int | None:
        """The lane with least to do of those that have a call waiting."""
        lanes = [k for k, waiting in enumerate(self._tasks) if waiting and self._busy[k] < self._most[k]]
        return min(lanes, key=self._busy.__getitem__, default=None)

    def _hungry(self) -> bool:
        if self._items is None:
            return False
        if self._depth is not None:
            return len(self._entries) < self._depth
        if len(self._entries) >= sum(self._most) and (
            len(self._entries) >= _WINDOW * len(self._most) or self._held >= _HELD_BYTES
        ):
            return False
        return any(not waiting and busy < most for waiting, busy, most in zip(self._tasks, self._busy, self._most))

    def _take(self, submitter: Submitter) -> bool:
        assert self._items is not None
        try:
            item = next(self._items)
        except StopIteration:
            self._items = None
            return False
        entry: _Entry[T] = _Entry(self._prepare(item))
        self._held += entry.held
        self._entries.append(entry)
        self._wait(entry, submitter.task())
        return True

    def _start(self, submitter: Submitter, lane: int) -> bool:
        """Start the next call of a lane. False where there is no place for it now, but calls of ours are under way, or
        a result is there already."""
        if self._flying or (self._entries[0].call is not None and self._entries[0].call.ended):
            place = submitter.places.take(0)
            if place is None:
                return False
        else:
            place = submitter.take_place()
        try:
            entry, task = self._tasks[lane][0]
            call = submitter.start(self._function, entry.feed, place=place, task=task, over=self._news.put)
        except Ended:
            return True  # the next submitter gets it
        except BaseException:
            place.clear()
            raise
        self._tasks[lane].popleft()
        self._flying[call] = entry
        self._busy[lane] += 1
        entry.call, entry.feed = call, None
        return True

    def _note(self, call: Started[T]) -> None:
        """It has ended."""
        entry = self._flying.pop(call)
        if entry.lane >= 0:
            self._busy[entry.lane] -= 1
        held = _size(call.value)
        self._held += held - entry.held
        entry.held = held


def _size(result: Any) -> int:
    return sum(getattr(array, "nbytes", 0) for array in result) if isinstance(result, list) else 0
