"""Chooses a board for each call, groups small calls, and retries lost ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ._groups import SMALL_FEED, OpenGroup, feed_bytes

#: A board that failed this many consecutive calls rests: otherwise, a failing board would have the most capacity and
#: get all calls.
FAILURES_IN_A_ROW = 3
#: Seconds of the first rest; each further one is twice as long, up to the maximum.
FIRST_REST, LONGEST_REST = 0.5, 10.0
#: Seconds between checks for late calls and for boards that are back.
_LOOK = 0.2


class CallFailed(RuntimeError):
    """A call was tried on several boards without success. ``__cause__`` is the last error."""


@dataclass(slots=True, eq=False)
class Actor:
    """One board's actor as the caller sees it."""

    make: Callable[[], Any]
    """Creates a new actor for the board, if Ray does not restart this one."""
    handle: Any
    room: int = 1
    """The number of feeds that it should have in flight."""
    pending: int = 0
    lost: bool = False
    """It was missing or did not answer: it gets no calls until it answers."""
    probe: Any = None
    """The pending answer of a lost board."""
    failures: int = 0
    """Consecutive failed calls."""
    rests: int = 0
    rest_until: float = 0.0

    def answers(self, now: float) -> bool:
        """Whether it is there and not resting."""
        return not self.lost and now >= self.rest_until

    def is_able(self, now: float, most: int | None = 1) -> bool:
        """Whether it may get a call of up to ``most`` feeds; after a rest one at a time, until one succeeds."""
        if self.rests:
            return self.answers(now) and not self.pending
        length = self.group_length(most)
        # Each core has a feed and the next one when a group leaves: it may take until the group is complete again.
        return self.answers(now) and self.pending < self.room + (length > 1)

    def group_length(self, most: int | None) -> int:
        """The number of feeds that its next call may have: at most those that its cores run at once, so that a group
        is answered after its longest run, and each board gets its share. ``most``: a further limit."""
        there = 1 if self.rests else max(1, self.room // 2)
        return there if most is None else min(there, most)

    def rest(self, now: float) -> None:
        """Rest for a while, longer each time, until a call succeeds."""
        self.rest_until = now + min(FIRST_REST * 2 ** min(self.rests, 10), LONGEST_REST)
        self.rests += 1

    def failed(self, now: float, failures: int = 1) -> None:
        """Record a failed call. Calls in flight together fail together, and cause one rest."""
        self.failures += failures
        if self.failures >= FAILURES_IN_A_ROW and now >= self.rest_until:
            self.rest(now)

    def succeeded(self) -> None:
        self.failures = self.rests = 0
        self.rest_until = 0.0

    def replace(self) -> None:
        """Replace it with a new actor, which waits for a board if there is none."""
        import ray

        with suppress(Exception):  # already dead
            ray.kill(self.handle)
        self.handle = self.make()


@dataclass(slots=True, eq=False)
class FeedCall:
    """One feed, and the state of its call, which may be shared with other feeds."""

    number: int
    feed: Any
    tries: int = 0
    started: float = 0.0
    actor: Actor | None = None
    failed_on: list[Actor] = field(default_factory=list)


class StreamDispatch:
    """The calls of one stream.

    ``timeout``: seconds after which a call counts as lost; None: never. ``tries``: the maximum number of attempts per
    feed. ``group``: the maximum number of feeds in one actor call; None: as many as the board has cores.

    Feeds of up to 96 kB share an actor call (``run_group``) if the source has them without delay. A feed whose call was
    lost or failed is retried alone, so it cannot harm others again.
    """

    def __init__(
        self,
        actors: Sequence[Actor],
        timeout: float | None,
        tries: int,
        output_names: Sequence[str] | None,
        group: int | None = None,
    ) -> None:
        self._actors = actors
        self._timeout = timeout
        self._tries = tries
        self._names = output_names
        self._group = group
        self._next_group = group
        """What the next feed is expected to allow: 1 after a large one."""
        self._open: OpenGroup[FeedCall] = OpenGroup(self._send)
        self._calls: dict[Any, list[FeedCall]] = {}
        self._in_flight = 0
        self._waiting: deque[FeedCall] = deque()

    @property
    def under_way(self) -> int:
        """Feeds without a result yet."""
        return self._in_flight + len(self._waiting)

    @property
    def room(self) -> int:
        """The number of feeds that all boards together should have in flight."""
        return sum(actor.room for actor in self._actors)

    def has_room(self) -> bool:
        """Whether a board can take another feed."""
        if self._open:
            return True  # it is not full, else it would have been sent
        now = time.monotonic()
        return not self._waiting and any(actor.is_able(now, self._next_group) for actor in self._actors)

    def next_of(self, source: Iterator[Any]) -> Any:
        """The source's next item, or None at its end. Feeds that wait for company are sent if that takes long."""
        return self._open.next_of(source)

    def add(self, call: FeedCall) -> None:
        """Start a new call, together with those that were added just before if all of them are small. A call without
        company may wait for the next one until :meth:`flush`, unless the source is slow."""
        size = None if self._group == 1 else feed_bytes(call.feed)
        is_small = size is not None and size <= SMALL_FEED
        self._next_group = self._group if is_small else 1
        if size is None or not is_small:
            self._open.flush()
            self.start(call)
            return
        if self._open and not self._open.takes(size):
            self._open.flush()
        if self._open:
            actor = self._open.calls[0].actor
        else:
            actor = self._board_for(call, self._group)
            if actor is not None:
                self._open.most = actor.group_length(self._group)
        if actor is None:
            self._waiting.append(call)
            return
        self._reserve(call, actor)
        self._open.add(call, size)
        if self._open.is_slow:
            self._open.flush()

    def flush(self) -> None:
        """Send the feeds that wait for company."""
        self._open.flush()

    def start(self, call: FeedCall) -> None:
        """Send it to the board with the most capacity, or let it wait for one.

        A call that failed on a board waits for a different one, as long as a different one answers.
        """
        actor = self._board_for(call)
        if actor is None:
            self._waiting.append(call)
            return
        self._reserve(call, actor)
        self._send([call])

    def _board_for(self, call: FeedCall, most: int | None = 1) -> Actor | None:
        now = time.monotonic()
        fresh = [actor for actor in self._actors if actor not in call.failed_on and actor.answers(now)]
        able = [actor for actor in fresh or self._actors if actor.is_able(now, most)]
        return min(able, key=lambda one: one.pending / one.room, default=None)

    def _reserve(self, call: FeedCall, actor: Actor) -> None:
        call.actor, call.tries = actor, call.tries + 1
        actor.pending += 1
        self._in_flight += 1

    def _send(self, calls: list[FeedCall]) -> None:
        """One actor call. All counts are those of :meth:`_reserve`, since another thread may send an open group."""
        actor = calls[0].actor
        assert actor is not None
        now = time.monotonic()
        for call in calls:
            call.started = now
        if len(calls) == 1:
            reference = actor.handle.run.remote(calls[0].feed, self._names)
        else:
            # Each feed is an argument of its own, which Ray sends with the call if it is small.
            reference = actor.handle.run_group.remote(self._names, *(call.feed for call in calls))
        self._calls[reference] = calls

    def wait(self) -> list[tuple[int, list[Any]]]:
        """All results that have arrived, with their feeds' numbers; waits for the first one. Resends lost calls, and
        detects boards that are back.

        Raises CallFailed, and what the session raises for an invalid call.
        """
        import ray

        self._ask_lost_boards(time.monotonic())
        probes = {actor.probe: actor for actor in self._actors if actor.probe is not None}
        pending = [*self._calls, *probes]
        ready: Sequence[Any] = ()
        if pending:
            ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
            if not ready:
                look = self._timeout is not None or self._waiting or any(actor.lost for actor in self._actors)
                ready, _ = ray.wait(pending, num_returns=1, timeout=_LOOK if look else None)
        else:
            time.sleep(_LOOK)  # all boards are resting
        finished = []
        for reference in ready:
            if reference in probes:
                self._probed(probes[reference], reference)
            else:
                finished.extend(self._finished(reference))
        if self._timeout is not None:
            self._give_up_late(time.monotonic() - self._timeout)
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            self.start(call)
        return finished

    def cancel(self) -> None:
        """Abandon all calls in flight."""
        self._open.close()
        for call in [*self._open.calls, *(call for calls in self._calls.values() for call in calls)]:
            if call.actor is not None:
                call.actor.pending -= 1
        self._calls.clear()
        self._waiting.clear()
        self._in_flight = 0

    def _finished(self, reference: Any) -> list[tuple[int, list[Any]]]:
        """The results of an actor call that ended, with their feeds' numbers; feeds without one are tried again."""
        import ray

        calls, actor = self._taken(reference)
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as failed:
            if len(calls) > 1:  # the call, not a feed: each feed on its own says what is wrong with it
                for call in calls:
                    call.tries -= 1
                    self.start(call)
                return []
            answers: list[Any] = [failed.cause if isinstance(failed.cause, Exception) else failed]
        except ray.exceptions.RayError as gone:
            # The actor, its node or its result is gone. Check whether it answers.
            actor.lost = True
            for call in calls:
                self._again(call, gone)
            return []
        else:
            answers = [answer] if len(calls) == 1 else answer
        return [
            (call.number, result) for call, result in zip(calls, answers, strict=True) if self._is_result(call, result)
        ]

    def _is_result(self, call: FeedCall, answer: list[Any] | Exception) -> bool:
        """Whether it is a result. An error is raised if it is the call's own, else the call is tried again."""
        assert call.actor is not None
        if not isinstance(answer, Exception):
            call.actor.succeeded()
            return True
        if not _may_go_elsewhere(answer):
            raise answer from None
        call.actor.failed(time.monotonic())
        self._again(call, answer)
        return False

    def _taken(self, reference: Any) -> tuple[list[FeedCall], Actor]:
        calls = self._calls.pop(reference)
        actor = calls[0].actor
        assert actor is not None
        actor.pending -= len(calls)
        self._in_flight -= len(calls)
        return calls, actor

    def _again(self, call: FeedCall, error: BaseException) -> None:
        if call.tries >= self._tries:
            raise CallFailed(f"call {call.number} was tried {call.tries} times: {error}") from error
        if call.actor is not None and call.actor not in call.failed_on:
            call.failed_on.append(call.actor)
        self.start(call)

    def _ask_lost_boards(self, now: float) -> None:
        for actor in self._actors:
            if actor.lost and actor.probe is None and now >= actor.rest_until:
                actor.probe = actor.handle.describe.remote()

    def _probed(self, actor: Actor, reference: Any) -> None:
        import ray

        actor.probe = None
        try:
            description = ray.get(reference)
        except Exception as error:
            actor.rest(time.monotonic())
            if isinstance(error, ray.exceptions.ActorDiedError):
                actor.replace()  # Ray does not restart an actor whose constructor raised
        else:
            actor.lost, actor.room = False, description["calls_at_once"]

    def _give_up_late(self, before: float) -> None:
        late = [reference for reference, calls in self._calls.items() if calls[0].started < before]
        for reference in late:
            calls, actor = self._taken(reference)
            actor.failed(time.monotonic(), FAILURES_IN_A_ROW)
            actor.lost = True
            for call in calls:
                self._again(call, TimeoutError(f"no result within {self._timeout:g} s"))


def _may_go_elsewhere(error: BaseException) -> bool:
    """Whether another board may succeed: a failure of the runtime, not of the call."""
    import ort_rknn

    codes = ort_rknn.capi.onnxruntime_pybind11_state
    return isinstance(error, (codes.RuntimeException, codes.EPFail, ort_rknn.QueueFull))
