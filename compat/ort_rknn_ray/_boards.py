"""Distributes calls over all boards of a cluster, with one actor per board."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from ._board import RESOURCE
from ._dispatch import Actor, CallFailed, FeedCall, StreamDispatch
from ._model import NpuModel, OnCpu
from ._store import StoredModel, put_model

#: Seconds to wait for a board's session before the stream begins without it.
_START = 15.0


class Boards:
    """One :class:`NpuModel` per board of the cluster. A context manager; not thread-safe.

    ``model``: a path, which is put into the object store once, with its twins; a :class:`StoredModel`; or, with
    ``on_boards=True``, a path that exists on every board. ``boards``: the number of boards; None: as many as the
    cluster has now. ``timeout``: seconds after which a call counts as lost and is retried on another board; None:
    never. ``tries``: the maximum number of attempts per call. ``group``: the maximum number of small feeds (up to 96 kB
    each) that :meth:`map` sends with one actor call, because Ray's cost is per call; None: as many as the board runs at
    once; 1: each feed on its own.

    Inference has no side effects, so a lost call may run twice; its result is returned once. Raises RuntimeError if the
    cluster has no board, and Ray's ActorDiedError with the session's error if no board can create the session. If some
    boards cannot, that is a RuntimeWarning, and they are tried again later. The same goes for boards that have not
    answered after 15 s, for example because another program has them; if none has answered, it waits for the first one.
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
        group: int | None = None,
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
        if group is not None and group < 1:
            raise ValueError(f"group: expected an integer >= 1 or None, got {group!r}")
        self._group = group if hasattr(actor_class, "run_group") else 1
        self._stored = model if on_boards or isinstance(model, StoredModel) else put_model(model)
        needed = {RESOURCE: 1.0} if resources is None else dict(resources)
        remote: Any = ray.remote(actor_class).options(
            resources=needed, num_cpus=0, max_restarts=-1, max_task_retries=0, max_concurrency=256
        )

        def make() -> Any:
            return remote.remote(self._stored, provider_options=dict(provider_options or {}), on_cpu=on_cpu)

        self._actors = [Actor(make, make()) for _ in range(count)]
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """Wait for the boards' sessions. Raises the first error if no board has one."""
        import ray

        errors: list[Exception] = []
        asked = {actor.handle.describe.remote(): actor for actor in self._actors}
        ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_START)
        if silent:
            warnings.warn(
                f"{len(silent)} of {len(asked)} boards have not answered within {_START:g} s: another program has "
                "them, or their sessions take longer. Each is used as soon as it answers",
                RuntimeWarning,
                stacklevel=3,
            )
        if not ready:
            ready, silent = ray.wait(list(asked), num_returns=1, timeout=None)
        for answer in silent:
            asked[answer].lost, asked[answer].probe = True, answer
        for answer in ready:
            actor = asked[answer]
            try:
                actor.room = ray.get(answer)["calls_at_once"]
            except ray.exceptions.RayError as error:
                errors.append(error)
                actor.lost = True
        if len(errors) == len(asked):
            raise errors[0]
        if errors:
            warnings.warn(
                f"{len(errors)} of {len(self._actors)} boards have no session and are asked again: {errors[0]}",
                RuntimeWarning,
                stacklevel=3,
            )

    def __len__(self) -> int:
        return len(self._actors)

    def map(
        self, feeds: Iterable[Mapping[str, Any]], *, output_names: Sequence[str] | None = None, ordered: bool = True
    ) -> Iterator[list[Any]]:
        """Results of a stream of feeds over all boards, in the order of the feeds, or with ``ordered=False`` as they
        complete.

        Feeds are consumed as results are requested: enough calls are in flight to keep all cores busy, and at most
        twice as many results wait for their turn. While no board answers, calls wait for one. Small feeds that the
        source has ready go to a board together, see ``group``; a feed is not kept for more than a millisecond because
        the source is slow. Raises CallFailed for a call that failed ``tries`` times; for a call that is itself invalid,
        at once what ``InferenceSession.run`` raises; and RuntimeError after :meth:`close`.
        """
        return self._results(feeds, output_names, ordered, self._group)

    def _results(
        self,
        feeds: Iterable[Mapping[str, Any]],
        output_names: Sequence[str] | None,
        ordered: bool,
        group: int | None,
    ) -> Iterator[list[Any]]:
        if not self._actors:
            raise RuntimeError("these boards are closed")
        run = StreamDispatch(self._actors, self._timeout, self._tries, output_names, group)
        source = enumerate(feeds)
        held: dict[int, list[Any]] = {}
        next_number, more = 0, True
        try:
            while True:
                while more and run.has_room() and len(held) + run.under_way < 2 * run.room:
                    item = run.next_of(source)
                    if item is None:
                        more = False
                        break
                    run.add(FeedCall(*item))
                run.flush()
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
        """One call, on the board with the most capacity."""
        return next(self._results([feed], output_names, True, 1))

    def describe(self) -> list[dict[str, Any]]:
        """Each board's description of its session, see :meth:`NpuModel.describe`; {"error": ...} for a board that is
        gone."""
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

        for actor in self._actors:
            with suppress(Exception):  # gone with its node
                ray.kill(actor.handle)
        self._actors = []

    def __enter__(self) -> Boards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["Boards", "CallFailed"]
