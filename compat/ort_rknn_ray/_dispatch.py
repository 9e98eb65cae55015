"""Chooses a board for each call, and retries lost calls."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

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
    """The number of calls that it should have in flight."""
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

    def is_able(self, now: float) -> bool:
        """Whether it may get a call; after a rest one at a time, until one succeeds."""
        return self.answers(now) and self.pending < (1 if self.rests else self.room)

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
    """One feed, and the state of its call."""

    number: int
    feed: Any
    tries: int = 0
    started: float = 0.0
    actor: Actor | None = None
    failed_on: list[Actor] = field(default_factory=list)


class StreamDispatch:
    """The calls of one stream.

    ``timeout``: seconds after which a call counts as lost; None: never. ``tries``: the maximum number of attempts per
    call.
    """

    def __init__(
        self, actors: Sequence[Actor], timeout: float | None, tries: int, output_names: Sequence[str] | None
    ) -> None:
        self._actors = actors
        self._timeout = timeout
        self._tries = tries
        self._names = output_names
        self._calls: dict[Any, FeedCall] = {}
        self._waiting: deque[FeedCall] = deque()

    @property
    def under_way(self) -> int:
        """Calls without a result yet."""
        return len(self._calls) + len(self._waiting)

    @property
    def room(self) -> int:
        """The number of calls that all boards together should have in flight."""
        return sum(actor.room for actor in self._actors)

    def has_room(self) -> bool:
        """Whether a board can take another call."""
        now = time.monotonic()
        return not self._waiting and any(actor.is_able(now) for actor in self._actors)

    def start(self, call: FeedCall) -> None:
        """Send it to the board with the most capacity, or let it wait for one.

        A call that failed on a board waits for a different one, as long as a different one answers.
        """
        now = time.monotonic()
        fresh = [actor for actor in self._actors if actor not in call.failed_on and actor.answers(now)]
        able = [actor for actor in fresh or self._actors if actor.is_able(now)]
        if not able:
            self._waiting.append(call)
            return
        actor = min(able, key=lambda one: one.pending / one.room)
        call.actor, call.started, call.tries = actor, now, call.tries + 1
        actor.pending += 1
        self._calls[actor.handle.run.remote(call.feed, self._names)] = call

    def wait(self) -> list[tuple[int, list[Any]]]:
        """Results that arrived, with their calls' numbers. Resends lost calls, and detects boards that are back.

        Raises CallFailed, and what the session raises for an invalid call.
        """
        import ray

        self._ask_lost_boards(time.monotonic())
        probes = {actor.probe: actor for actor in self._actors if actor.probe is not None}
        pending = [*self._calls, *probes]
        ready: Sequence[Any] = ()
        if pending:
            look = self._timeout is not None or self._waiting or any(actor.lost for actor in self._actors)
            ready, _ = ray.wait(pending, num_returns=1, timeout=_LOOK if look else None)
        else:
            time.sleep(_LOOK)  # all boards are resting
        finished = []
        for reference in ready:
            if reference in probes:
                self._probed(probes[reference], reference)
            elif (number_and_result := self._finished(reference)) is not None:
                finished.append(number_and_result)
        if self._timeout is not None:
            self._give_up_late(time.monotonic() - self._timeout)
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            self.start(call)
        return finished

    def cancel(self) -> None:
        """Abandon all calls in flight."""
        for call in self._calls.values():
            if call.actor is not None:
                call.actor.pending -= 1
        self._calls.clear()
        self._waiting.clear()

    def _finished(self, reference: Any) -> tuple[int, list[Any]] | None:
        import ray

        call, actor = self._taken(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as failed:
            cause = failed.cause if isinstance(failed.cause, Exception) else failed
            if not _may_go_elsewhere(cause):
                raise cause from None
            actor.failed(time.monotonic())
            self._again(call, cause)
        except ray.exceptions.RayError as gone:
            # The actor, its node or its result is gone. Check whether it answers.
            actor.lost = True
            self._again(call, gone)
        else:
            actor.succeeded()
            return call.number, result
        return None

    def _taken(self, reference: Any) -> tuple[FeedCall, Actor]:
        call = self._calls.pop(reference)
        assert call.actor is not None
        call.actor.pending -= 1
        return call, call.actor

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
            told = ray.get(reference)
        except Exception as error:
            actor.rest(time.monotonic())
            if isinstance(error, ray.exceptions.ActorDiedError):
                actor.replace()  # Ray does not restart an actor whose constructor raised
        else:
            actor.lost, actor.room = False, told["calls_at_once"]

    def _give_up_late(self, before: float) -> None:
        late = [reference for reference, call in self._calls.items() if call.started < before]
        for reference in late:
            call, actor = self._taken(reference)
            actor.failed(time.monotonic(), FAILURES_IN_A_ROW)
            actor.lost = True
            self._again(call, TimeoutError(f"no result within {self._timeout:g} s"))


def _may_go_elsewhere(error: BaseException) -> bool:
    """Whether another board may succeed: a failure of the runtime, not of the call."""
    import ort_rknn

    codes = ort_rknn.capi.onnxruntime_pybind11_state
    return isinstance(error, (codes.RuntimeException, codes.EPFail, ort_rknn.QueueFull))
