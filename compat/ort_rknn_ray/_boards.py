"""Calls over all boards of a cluster: one actor per board, and calls that move where a board dies or hangs."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from ._board import RESOURCE
from ._model import NpuModel, OnCpu
from ._store import StoredModel, put_model


class CallFailed(RuntimeError):
    """A call was tried on several boards, and none gave a result. ``__cause__`` is what the last one said."""


@dataclass(slots=True)
class _Actor:
    handle: Any
    room: int
    """Calls that are worth having under way on it."""
    pending: int = 0
    probe: Any = None
    """The answer that an actor owes which did not serve a call; no calls go to it meanwhile."""


@dataclass(slots=True, eq=False)
class _Call:
    number: int
    feed: Any
    tries: int = 0
    started: float = 0.0
    actor: _Actor | None = None
    error: BaseException | None = field(default=None)


class Boards:
    """One :class:`NpuModel` per board of the cluster. A context manager; not thread safe.

    ``model``: a path, which is put into the object store once with its twins, a :class:`StoredModel`, or, with
    ``on_boards=True``, a path that every board has. ``boards``: how many; None: as many as the cluster has now.
    ``timeout``: seconds after which a call counts as lost and is tried on another board; None: never. ``tries``: how
    often a call is tried in all.

    Inference has no side effects, so a lost call may run twice; its result is delivered once. Raises RuntimeError where
    the cluster has no board, what the session raises where it cannot be made.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | StoredModel,
        *,
        boards: int | None = None,
        on_boards: bool = False,
        provider_options: Mapping[str, Any] | None = None,
        on_cpu: OnCpu = "refuse",
        timeout: float | None = None,
        tries: int = 4,
        actor_class: type = NpuModel,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        import ray

        if not ray.is_initialized():
            ray.init()
        there = int(ray.cluster_resources().get(RESOURCE, 0))
        count = there if boards is None else boards
        if count < 1:
            raise RuntimeError(
                f"the cluster has no resource {RESOURCE!r}: start its boards with "
                "`ray start --address=... $(ort-rknn ray-resources)`"
            )
        self._timeout = timeout
        self._tries = tries
        self._stored = model if on_boards or isinstance(model, StoredModel) else put_model(model)
        needed = {RESOURCE: 1.0} if resources is None else dict(resources)
        remote: Any = ray.remote(actor_class).options(
            resources=needed, num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=256
        )
        handles = [
            remote.remote(self._stored, provider_options=dict(provider_options or {}), on_cpu=on_cpu)
            for _ in range(count)
        ]
        self._handles = handles
        try:
            told = ray.get([handle.describe.remote() for handle in handles])
        except BaseException:
            self.close()
            raise
        self._actors = [_Actor(handle, each["calls_at_once"]) for handle, each in zip(handles, told)]

    def __len__(self) -> int:
        return len(self._actors)

    def map(
        self, feeds: Iterable[Mapping[str, Any]], *, output_names: Sequence[str] | None = None, ordered: bool = True
    ) -> Iterator[list[Any]]:
        """Results of a stream of feeds over all boards, in the order of the feeds; with ``ordered=False`` as they come.

        Feeds are taken as results are asked for: as many are under way as keep all cores busy, and not more than
        twice as many results are held for their turn. Raises CallFailed where a call found no board in ``tries`` tries,
        and at once what ``InferenceSession.run`` raises for a call that is wrong in itself.
        """
        run = _Run(self._actors, self._timeout, self._tries, output_names)
        source = enumerate(feeds)
        held: dict[int, list[Any]] = {}
        next_number, more = 0, True
        try:
            while True:
                while more and run.has_room() and len(held) + run.under_way < 2 * run.room:
                    item = next(source, None)
                    if item is None:
                        more = False
                        break
                    run.start(_Call(*item))
                if not run.under_way and not more:
                    break
                for number, result in run.wait():
                    held[number] = result
                while held if not ordered else next_number in held:
                    number = next_number if ordered else next(iter(held))
                    next_number += 1
                    yield held.pop(number)
        finally:
            run.cancel()

    def run(self, feed: Mapping[str, Any], output_names: Sequence[str] | None = None) -> list[Any]:
        """One call, on the board with the most room."""
        return next(self.map([feed], output_names=output_names))

    def describe(self) -> list[dict[str, Any]]:
        """What each board says of its session, see :meth:`NpuModel.describe`; {"error": ...} for one that is gone."""
        import ray

        answers: list[dict[str, Any]] = []
        for actor in self._actors:
            try:
                answers.append(ray.get(actor.handle.describe.remote(), timeout=10))
            except Exception as error:
                answers.append({"error": f"{type(error).__name__}: {error}"})
        return answers

    def close(self) -> None:
        """End the actors. Idempotent."""
        import ray

        for handle in self._handles:
            with suppress(Exception):  # gone with its node
                ray.kill(handle)
        self._handles = []

    def __enter__(self) -> Boards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Run:
    """The calls of one stream: which actor has which, and what happens where one is lost."""

    def __init__(
        self, actors: Sequence[_Actor], timeout: float | None, tries: int, output_names: Sequence[str] | None
    ) -> None:
        self._actors = actors
        self._timeout = timeout
        self._tries = tries
        self._names = output_names
        self._calls: dict[Any, _Call] = {}
        self._waiting: deque[_Call] = deque()

    @property
    def under_way(self) -> int:
        """Calls that have no result yet."""
        return len(self._calls) + len(self._waiting)

    @property
    def room(self) -> int:
        """Calls that all boards together are worth."""
        return sum(actor.room for actor in self._actors)

    def has_room(self) -> bool:
        """Whether an actor that answers could take another call."""
        return not self._waiting and any(a.probe is None and a.pending < a.room for a in self._actors)

    def start(self, call: _Call) -> None:
        """Send it to the actor with the most room, or let it wait for one."""
        able = [a for a in self._actors if a.probe is None and a.pending < a.room and a is not call.actor]
        able = able or [a for a in self._actors if a.probe is None and a.pending < a.room]
        if not able:
            self._waiting.append(call)
            return
        actor = min(able, key=lambda a: a.pending / a.room)
        call.actor, call.started, call.tries = actor, time.monotonic(), call.tries + 1
        actor.pending += 1
        self._calls[actor.handle.run.remote(call.feed, self._names)] = call

    def wait(self) -> list[tuple[int, list[Any]]]:
        """Results that came; sends lost calls elsewhere, and asks actors whether they are back."""
        import ray

        probes = {actor.probe: actor for actor in self._actors if actor.probe is not None}
        pending = [*self._calls, *probes]
        ready, _ = ray.wait(pending, num_returns=1, timeout=0.2 if self._timeout is not None or probes else None)
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
        """Nobody waits for what is under way any more."""
        for call in self._calls.values():
            if call.actor is not None:
                call.actor.pending -= 1
        self._calls.clear()
        self._waiting.clear()

    def _finished(self, reference: Any) -> tuple[int, list[Any]] | None:
        import ray

        call = self._calls.pop(reference)
        assert call.actor is not None
        call.actor.pending -= 1
        try:
            return call.number, ray.get(reference)
        except (
            ray.exceptions.RayActorError,
            ray.exceptions.ObjectLostError,
            ray.exceptions.WorkerCrashedError,
        ) as gone:
            self._lost(call, gone)
        except ray.exceptions.RayTaskError as failed:
            cause = failed.cause if isinstance(failed.cause, Exception) else failed
            if not _may_go_elsewhere(cause):
                raise cause from None
            self._again(call, cause)
        return None

    def _lost(self, call: _Call, error: BaseException) -> None:
        """Its actor is not there: ask it to answer, and do not use it until it does."""
        assert call.actor is not None
        if call.actor.probe is None:
            call.actor.probe = call.actor.handle.ping.remote()
        self._again(call, error)

    def _again(self, call: _Call, error: BaseException) -> None:
        if call.tries >= self._tries:
            raise CallFailed(f"call {call.number} was tried {call.tries} times: {error}") from error
        call.error = error
        self.start(call)

    def _probed(self, actor: _Actor, reference: Any) -> None:
        import ray

        try:
            ray.get(reference)
        except Exception:
            # Restarting, or waiting for a board: asked again, which waits on Ray's side.
            time.sleep(0.05)
            actor.probe = actor.handle.ping.remote()
        else:
            actor.probe = None

    def _give_up_late(self, before: float) -> None:
        for reference, call in list(self._calls.items()):
            if call.started < before:
                del self._calls[reference]
                assert call.actor is not None
                call.actor.pending -= 1
                self._lost(call, TimeoutError(f"no result within {self._timeout:g} s"))


def _may_go_elsewhere(error: BaseException) -> bool:
    """Whether another board may do better: a failure of the runtime, not of the call."""
    import ort_rknn

    codes = ort_rknn.capi.onnxruntime_pybind11_state
    return isinstance(error, (codes.RuntimeException, codes.EPFail, ort_rknn.QueueFull))
