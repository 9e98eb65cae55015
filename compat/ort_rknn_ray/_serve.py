"""Ray Serve: a deployment that rejects requests instead of queueing without limit."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ort_rknn import QueueFull
from ort_rknn._arrays import ArrayError, names_in, open_npz, read_member
from ort_rknn._options import PROVIDER

from ._board import CORES, RESOURCE
from ._gathering import Gathering
from ._model import NpuModel, OnCpu, closed_on_error
from ._samples import SampleForm
from ._store import StoredModel

#: Waiting requests per running one; beyond that Serve answers 503.
_WAITING = 2
#: Limits of a request: the number of arrays, and the bytes of one. A small body may unpack to anything.
_MOST_ARRAYS, _LARGEST_ARRAY = 256, 256 << 20


class _Service(NpuModel):
    """HTTP: POST an ``.npz`` whose arrays are the inputs; the answer is an ``.npz`` of the outputs.

    From Python: ``handle.predict.remote({"images": array})``. ``batch``: the maximum number of one-sample requests in a
    run. Raises ValueError if the model does not take that many.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | StoredModel,
        *,
        provider_options: Mapping[str, Any] | None = None,
        on_cpu: OnCpu = "refuse",
        batch: int = 1,
    ) -> None:
        super().__init__(model, provider_options=provider_options, on_cpu=on_cpu)
        self._gathering: Gathering | None = None
        if batch > 1:
            with closed_on_error(self.session):
                samples = SampleForm(self.session, self.path)
                # As many further runs as there are contexts wait in the session; other requests fill up batches.
                self._gathering = Gathering(self.session, samples, self.run, most=batch, at_once=2 * self._contexts())

    async def predict(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        names = [value.name for value in self.session.get_outputs()]
        run = self.run if self._gathering is None else self._gathering.run
        return dict(zip(names, await run(feed)))

    async def __call__(self, request: Any) -> Any:
        from starlette.responses import PlainTextResponse, Response

        status, answer = await self.answer(await request.body())
        if isinstance(answer, str):
            return PlainTextResponse(answer, status_code=status)
        return Response(answer, media_type="application/octet-stream")

    async def answer(self, body: bytes) -> tuple[int, bytes | str]:
        """The HTTP status and content for a request's body: 400 for invalid inputs, 503 while the queue is full. Raises
        any other exception of a run."""
        try:
            with open_npz(io.BytesIO(body)) as archive:
                feed = {name: read_member(archive, name, _LARGEST_ARRAY) for name in names_in(archive)[:_MOST_ARRAYS]}
        except (ArrayError, OSError) as error:
            return 400, f"expected a .npz with one array per input: {error}\n"
        try:
            outputs = await self.predict(feed)
        except QueueFull as error:
            return 503, f"{error}\n"
        except ValueError as error:
            return 400, f"{error}\n"
        except Exception as error:
            if type(error).__name__ != "InvalidArgument":
                raise
            return 400, f"{error}\n"
        written = io.BytesIO()
        np.savez(written, **outputs)
        return 200, written.getvalue()

    def check_health(self) -> None:
        """Called by Serve, which replaces a replica that raises: if the session fell back to the CPU after it was
        created, its device is gone, or all runs since the last check failed."""
        if not self._wants_npu:
            return
        if self.session.get_providers()[0] != PROVIDER:
            raise RuntimeError("the session does not run on the NPU any more")
        stats = self.session.stats()
        now = stats.total.runs, stats.total.errors, sum(model.fallback_runs for model in stats.models)
        runs, errors, instead = (new - old for new, old in zip(now, self._seen))
        self._seen = now
        if instead and not runs:
            raise RuntimeError(f"the device is gone: {instead} runs went to the CPU since the last check")
        if errors and not runs:
            raise RuntimeError(f"all {errors} runs on the NPU failed since the last check")

    _seen = (0, 0, 0)
    _wants_npu = True


class _ServiceAnywhere(_Service):
    _wants_npu = False


def deployment(
    model: str | os.PathLike[str] | StoredModel,
    *,
    boards: int = 1,
    cores: int = 3,
    provider_options: Mapping[str, Any] | None = None,
    on_cpu: OnCpu = "refuse",
    name: str = "npu",
    batch: int = 1,
) -> Any:
    """A Ray Serve application: one replica per board.

    ``cores``: of one board; determines how many requests run at once (``max_ongoing_requests``) and how many may wait
    (``max_queued_requests``). Beyond that, callers get 503 at once. Run: ``serve.run(deployment("model.onnx"))``.

    ``batch``: the maximum number of one-sample requests in a run (``@serve.batch``), for a model that takes that many
    samples: its first axes have that length, or are free and its samples are known to be independent. It pays off if
    the model was compiled for several samples. Requests then wait at most 5 ms for others.

    Raises ValueError for a ``batch`` or ``cores`` below 1; the replica does if the model does not take that many.
    """
    from ray import serve

    for what, value in (("batch", batch), ("cores", cores)):
        if value < 1:
            raise ValueError(f"{what}: expected an integer >= 1, got {value!r}")
    ongoing = 2 * cores * batch
    resources = {RESOURCE: 1} if on_cpu == "refuse" else {}
    made: Any = serve.deployment(
        _Service if on_cpu == "refuse" else _ServiceAnywhere,
        name=name,
        num_replicas=boards,
        max_ongoing_requests=ongoing,
        max_queued_requests=_WAITING * ongoing * boards,
        ray_actor_options={"num_cpus": 0, "resources": resources},
        health_check_period_s=5,
    )
    return made.bind(model, provider_options=dict(provider_options or {}), on_cpu=on_cpu, batch=batch)


__all__ = ["CORES", "deployment"]
