"""A stand-in for the parts of Ray that ort_rknn_ray uses, in simulated time.

Its boards die, hang, fail and return when a test says so. Nothing really waits.
"""

import heapq
import sys
from itertools import count
from types import SimpleNamespace

import ort_rknn
from ort_rknn_ray import Boards, _dispatch

RUN_SECONDS, CORES, CALLS_AT_ONCE = 0.02, 3, 6


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class RayActorError(RayError):
    pass


class ActorDiedError(RayActorError):
    pass


class Answer:
    """Ray's object reference."""

    def __init__(self, due=None, value=None, error=None):
        self.due, self.value, self.error = due, value, error


class Board:
    """One machine. ``state``: "up", "dead", "hangs" (answers nothing), "stuck" (its runs do not end), "fails" (its runs
    are errors of the runtime), "busy" (QueueFull)."""

    def __init__(self, ray, number):
        self.ray, self.number = ray, number
        self.state = "up"
        self.free = [0.0] * CORES
        self.owed = []
        self.asked = 0
        self.ran = []
        self.calls = []
        """The feeds of each actor call."""
        self.deadly = set()
        """Feeds that end the process that runs them."""
        self.actor = None
        self.refuses = None
        """An error of the actor's constructor."""
        self.dead = None
        """Why the actor is permanently dead: Ray does not restart one whose constructor raised."""

    def run(self, feed):
        self.calls.append([feed])
        return self._run(feed)

    def run_group(self, feeds):
        """One answer: a list of each feed's outputs or error."""
        self.calls.append(list(feeds))
        answers = [self._run(feed) for feed in feeds]
        gone = [answer for answer in answers if isinstance(answer.error, ActorDiedError)]
        if gone:
            return gone[0]
        self.owed = [answer for answer in self.owed if answer not in answers]
        values = [answer.value if answer.error is None else answer.error.cause for answer in answers]
        due = [answer.due for answer in answers]
        return self._owe(Answer(None if None in due else max(due), values))

    def _run(self, feed):
        if self.state in ("hangs", "stuck"):
            return self._owe(Answer(None, self.answer(feed)))
        if self.state == "dead" or self.dead:
            return Answer(self.ray.now, error=ActorDiedError(self.dead or "the node died"))
        if feed == "wrong":
            return Answer(self.ray.now, error=RayTaskError(ValueError("a wrong call")))
        self.asked += 1
        if feed in self.deadly:
            self.become("dead")
            return Answer(self.ray.now, error=ActorDiedError("the process ended"))
        codes = ort_rknn.capi.onnxruntime_pybind11_state
        if self.state in ("fails", "busy"):
            error = codes.RuntimeException("rknn_run failed") if self.state == "fails" else ort_rknn.QueueFull("full")
            return Answer(self.ray.now + 0.001, error=RayTaskError(error))
        core = min(range(CORES), key=self.free.__getitem__)
        self.free[core] = max(self.ray.now, self.free[core]) + RUN_SECONDS
        self.ran.append(feed)
        return self._owe(Answer(self.free[core], self.answer(feed)))

    def answer(self, feed):
        return [feed * 10]

    def describe(self):
        if self.dead:
            return Answer(self.ray.now, error=ActorDiedError(self.dead))
        if self.state in ("dead", "hangs"):  # a restarting actor's calls wait
            return self._owe(Answer(None, {"calls_at_once": CALLS_AT_ONCE}))
        return Answer(self.ray.now, {"calls_at_once": CALLS_AT_ONCE})

    def _owe(self, answer):
        self.owed.append(answer)
        return answer

    def become(self, state):
        """Change the state now. A death ends the calls in flight; a hanging call is answered late, when the state
        ends."""
        before, self.state = self.state, state
        now = self.ray.now
        for answer in self.owed:
            if answer.due is not None and answer.due <= now:
                continue
            if state == "dead":
                answer.due, answer.error = now, ActorDiedError("the node died")
            elif before in ("dead", "hangs", "stuck") and state not in ("hangs", "stuck") and answer.due is None:
                answer.due = now
        self.owed = [answer for answer in self.owed if answer.due is None or answer.due > now]
        self.free = [now] * CORES


class Ray:
    """The module. ``at(seconds, function)``: call it at that time."""

    def __init__(self, boards):
        self.now = 0.0
        self.waits = 0
        self.boards = [Board(self, k) for k in range(boards)]
        self.killed = []
        self._events, self._numbers = [], count()
        self.exceptions = SimpleNamespace(
            RayError=RayError, RayTaskError=RayTaskError, RayActorError=RayActorError, ActorDiedError=ActorDiedError
        )

    # What the dispatching code sees as the module "time".
    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self._forward(self.now + seconds)

    def at(self, seconds, function):
        heapq.heappush(self._events, (seconds, next(self._numbers), function))

    def _forward(self, until):
        while self._events and self._events[0][0] <= until:
            self.now, _, function = heapq.heappop(self._events)
            function()
        self.now = max(self.now, until)

    def wait(self, answers, num_returns, timeout):
        self.waits += 1
        limit = self.now + timeout if timeout is not None else float("inf")
        while True:
            due = min((a.due for a in answers if a.due is not None and a.due > self.now), default=float("inf"))
            if sum(a.due is not None and a.due <= self.now for a in answers) >= num_returns:
                due = self.now
            event = self._events[0][0] if self._events else float("inf")
            target = min(due, event, limit)
            assert target < float("inf"), "it would wait forever"
            self._forward(target)
            ready = [a for a in answers if a.due is not None and a.due <= self.now][:num_returns]
            if len(ready) >= num_returns or self.now >= limit:
                return ready, [a for a in answers if a not in ready]

    def get(self, answer, timeout=None):
        if answer.due is None or answer.due > self.now:
            self.wait([answer], 1, timeout)
        if answer.error is not None:
            raise answer.error
        return answer.value

    def kill(self, handle):
        self.killed.append(handle)
        if handle.board.actor is handle:
            handle.board.actor = None

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"rknpu": float(len(self.boards))} if self.boards else {}

    def remote(self, actor_class):
        return self

    def options(self, **options):
        assert options["resources"] == {"rknpu": 1.0}

        def remote(model, **arguments):
            board = next(board for board in self.boards if board.actor is None)
            board.dead = board.refuses
            board.actor = Handle(board)
            return board.actor

        return SimpleNamespace(remote=remote)


class Handle:
    """Of an actor."""

    def __init__(self, board):
        self.board = board
        self.run = SimpleNamespace(remote=lambda feed, names: board.run(feed))
        self.run_group = SimpleNamespace(remote=lambda names, *feeds: board.run_group(feeds))
        self.describe = SimpleNamespace(remote=board.describe)


def in_place_of_ray(monkeypatch, boards):
    """A cluster of that many boards, which ort_rknn_ray takes for Ray; its time is the simulated one."""
    ray = Ray(boards)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(_dispatch, "time", ray)
    return ray


def boards(**options):
    return Boards("model.onnx", on_boards=True, **options)


def want(calls):
    """The results of the feeds 0, 1, 2 ..."""
    return [[k * 10] for k in range(calls)]
