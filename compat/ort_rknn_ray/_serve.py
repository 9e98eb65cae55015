"""Ray Serve: a deployment that refuses instead of queueing without end."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._board import CORES, RESOURCE
from ._model import NpuModel, OnCpu
from ._store import StoredModel

#: Requests that wait per request that runs; beyond it Serve answers 503.
_WAITING = 2


class _Service(NpuModel):
    """HTTP: POST an ``.npz`` whose arrays are the inputs; the answer is an ``.npz`` of the outputs.

    From Python: ``handle.predict.remote({"images": array})``.
    """

    async def predict(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs by name."""
        names = [value.name for value in self.session.get_outputs()]
        return dict(zip(names, await self.run(feed)))

    async def __call__(self, request: Any) -> Any:
        from starlette.responses import PlainTextResponse, Response

        try:
            with np.load(io.BytesIO(await request.body()), allow_pickle=False) as file:
                feed = {name: file[name] for name in file.files}
        except (ValueError, OSError, EOFError) as error:
            return PlainTextResponse(f"expected a .npz with one array per input: {error}\n", status_code=400)
        try:
            outputs = await self.predict(feed)
        except ValueError as error:
            return PlainTextResponse(f"{error}\n", status_code=400)
        except Exception as error:
            if type(error).__name__ != "InvalidArgument":
                raise
            return PlainTextResponse(f"{error}\n", status_code=400)
        answer = io.BytesIO()
        np.savez(answer, **outputs)
        return Response(answer.getvalue(), media_type="application/octet-stream")

    def check_health(self) -> None:
        """Asked by Serve: a session that fell back to the CPU after it was made is not healthy."""
        if self._wants_npu and self.session.get_providers()[0] != "RKNNExecutionProvider":
            raise RuntimeError("the session does not run on the NPU any more")

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
) -> Any:
    """A Ray Serve application: one replica per board.

    ``cores``: of one board; it decides how many requests run at once (``max_ongoing_requests``) and how many may wait
    (``max_queued_requests``). Beyond that, callers get 503 at once. Run: ``serve.run(deployment("model.onnx"))``.
    """
    from ray import serve

    ongoing = 2 * cores
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
    return made.bind(model, provider_options=dict(provider_options or {}), on_cpu=on_cpu)


__all__ = ["CORES", "deployment"]
