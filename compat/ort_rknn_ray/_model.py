"""The actor: one session on all cores of its board."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import ort_rknn
from ort_rknn._options import PROVIDER

from ._store import StoredModel, on_this_node

OnCpu = Literal["refuse", "serve"]


@contextmanager
def closed_on_error(session: ort_rknn.InferenceSession) -> Iterator[None]:
    """Close the session if the block raises."""
    try:
        yield
    except BaseException:
        session.close()
        raise


class NpuModel:
    """One session on the NPU of the machine where it is created. A plain class: turn it into a Ray actor with
    ``ray.remote(resources={"rknpu": 1})(NpuModel)``, or let :class:`~ort_rknn_ray.Boards` do so.

    ``model``: a path on that machine, or a :class:`StoredModel`. ``provider_options``: of the session; without
    ``schedule`` and ``tp_mode``, ``schedule="auto"`` uses every core. ``on_cpu``: what to do on a machine without a
    usable NPU: "refuse" raises NpuUnavailable, "serve" runs on the CPU with the usual warning.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | StoredModel,
        *,
        provider_options: Mapping[str, Any] | None = None,
        on_cpu: OnCpu = "refuse",
    ) -> None:
        if on_cpu not in ("refuse", "serve"):
            raise ValueError(f"on_cpu: expected 'refuse' or 'serve', got {on_cpu!r}")
        options = {"max_queue_size": 64, "submit_timeout_ms": 60_000, **(provider_options or {})}
        if "schedule" not in options and "tp_mode" not in options:
            options["schedule"] = "auto"
        settings = ort_rknn.SessionOptions()
        if on_cpu == "refuse":
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        with warnings.catch_warnings():
            if on_cpu == "serve":
                warnings.simplefilter("always", ort_rknn.FallbackWarning)
            self.path = on_this_node(model)
            self.session = ort_rknn.InferenceSession(self.path, settings, provider_options=[options])

    async def run(self, feed: Mapping[str, Any], output_names: Sequence[str] | None = None) -> list[Any]:
        """Run once. Concurrent calls use all cores. Raises what ``InferenceSession.run`` raises."""
        # Ray owns the arrays of a call, and nothing else writes to them.
        return await self.session.run_awaitable(output_names, feed, copy=False)

    async def run_group(
        self, output_names: Sequence[str] | None, *feeds: Mapping[str, Any]
    ) -> list[list[Any] | Exception]:
        """:meth:`run` for each of several feeds at once: its outputs, or the exception that it raised, in order."""

        async def one(feed: Mapping[str, Any]) -> list[Any] | Exception:
            try:
                outputs = self.run(feed, output_names)
                return await outputs if inspect.isawaitable(outputs) else outputs  # a subclass may have a plain method
            except Exception as error:
                return _portable(error)

        return await asyncio.gather(*map(one, feeds))

    async def describe(self) -> dict[str, Any]:
        """Where it runs: "providers", "on_npu", "calls_at_once" (the useful number of calls in flight), "explain"."""
        providers = self.session.get_providers()
        return {
            "providers": providers,
            "on_npu": providers[0] == PROVIDER,
            "calls_at_once": 2 * self._contexts(),
            "pid": os.getpid(),
            "explain": self.session.explain(),
        }

    def _contexts(self) -> int:
        """The number of concurrent runs of the session; for a model in parts, that of the part on the most cores."""
        options = self.session.get_provider_options().get(PROVIDER, {})
        lanes = max((len(model.cores) for model in self.session.stats().models), default=1)
        return max(1, lanes) * int(options.get("threads_per_core", 1))

    async def ping(self) -> bool:
        """True as soon as the actor answers."""
        return True


def _portable(error: Exception) -> Exception:
    """The exception, or one with its type and text if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what this process wrote
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
