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
        self._waiting: list[deque[tuple[_Entry[T], Task]]] = []  # for a place, by lane
        self._busy: list[int] = []  # calls in flight, by lane
        self._most: list[int] = []
        self._enough = 0

    def fill(self) -> bool:
        """Take items and start calls until every lane has enough. False: nothing is left to wait for."""
        while not self._news.empty():
            self._note(self._news.get())
        submitter = self._submitters()
        if submitter is not self._submitter:  # the first one, or the session has got others
            self._adopt(submitter)
        while self._start_next() or (self._hungry() and self._take()):
            pass
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

    def _adopt(self, submitter: Submitter) -> None:
        before = sorted((w for lane in self._waiting for w in lane), key=lambda w: self._entries.index(w[0]))
        self._submitter = submitter
        self._busy = [0] * len(submitter.workers)
        self._most = [self._depth or count + 1 for count in submitter.workers]
        self._enough = sum(self._most)
        self._waiting = [deque() for _ in submitter.workers]
        for entry in self._flying.values():
            entry.lane = -1  # runs elsewhere
        for entry, _ in before:
            self._wait(entry, submitter.task())

    def _wait(self, entry: _Entry[T], task: Task) -> None:
        entry.lane = task.lane
        self._waiting[task.lane].append((entry, task))

    def _hungry(self) -> bool:
        """Whether a lane lacks calls, and another item may be taken."""
        if self._items is None:
            return False
        ahead = len(self._entries)
        if self._depth is not None:
            return ahead < self._depth
        if ahead >= self._enough and (ahead >= _WINDOW * len(self._most) or self._held >= _HELD_BYTES):
            return False
        return any(busy < most and not waiting for waiting, busy, most in zip(self._waiting, self._busy, self._most))

    def _take(self) -> bool:
        """Take an item. False where there is none."""
        assert self._items is not None and self._submitter is not None
        try:
            item = next(self._items)
        except StopIteration:
            self._items = None
            return False
        entry: _Entry[T] = _Entry(self._prepare(item))
        self._held += entry.held
        self._entries.append(entry)
        self._wait(entry, self._submitter.task())
        return True

    def _start_next(self) -> bool:
        """Start a call, in the lane that has least to do of those that have one waiting. False where none waits, or
        there is no place for it now, but calls of ours are under way or a result is there already."""
        lane, least = -1, 0
        for k, waiting in enumerate(self._waiting):
            if waiting and self._busy[k] < self._most[k] and (lane < 0 or self._busy[k] < least):
                lane, least = k, self._busy[k]
        if lane < 0:
            return False
        submitter = self._submitter
        assert submitter is not None
        first = self._entries[0].call
        if self._flying or (first is not None and first.ended):
            place = submitter.places.take(0)
            if place is None:
                return False
        else:
            place = submitter.take_place()
        try:
            entry, task = self._waiting[lane][0]
            call = submitter.start(self._function, entry.feed, place=place, task=task, over=self._news.put)
        except Ended:
            self._adopt(self._submitters())
            return True
        except BaseException:
            place.clear()
            raise
        self._waiting[lane].popleft()
        self._flying[call] = entry
        self._busy[lane] += 1
        entry.call, entry.feed = call, None
        return True

    def _note(self, call: Started[T]) -> None:
        """It has ended."""
        entry = self._flying.pop(call)
        if entry.lane >= 0:
            self._busy[entry.lane] -= 1
        result = call.value
        held = 0
        if isinstance(result, list):
            for array in result:
                held += getattr(array, "nbytes", 0)
        self._held += held - entry.held
        entry.held = held
