"""Combines requests of one sample into runs with as many samples as the model takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np

import ort_rknn

from ._samples import SampleForm, filled

Feed = Mapping[str, Any]
Run = Callable[[Feed], Awaitable[list[Any]]]

#: Maximum seconds that a request waits for others: less than a run takes.
WAIT = 0.005


class Gathering:
    """Runs requests through ``run``, up to ``most`` samples in one run, with Ray Serve's ``@serve.batch``.

    ``at_once``: the number of concurrent runs. Requests of several samples run on their own. An invalid request fails
    alone. Raises ValueError if the model does not take ``most`` samples.
    """

    def __init__(
        self, session: ort_rknn.InferenceSession, samples: SampleForm, run: Run, *, most: int, at_once: int
    ) -> None:
        from ray import serve

        if samples.length is not None and samples.length < most:
            raise ValueError(
                f"batch={most}: the model takes {samples.length} sample{'s'[: samples.length != 1]} per run. It takes "
                "any number where its first axes are free and its samples are known to be independent; explain() says "
                "why they are not"
            )
        self._run = run
        self._length = samples.length
        self._names = {value.name for value in session.get_inputs()}

        async def several(feeds: list[Feed]) -> list[list[Any] | Exception]:
            return await self.several(feeds)

        decorated: Any = serve.batch(
            max_batch_size=most, batch_wait_timeout_s=WAIT, max_concurrent_batches=max(1, at_once)
        )(several)
        self._gathered = decorated

    async def run(self, feed: Feed) -> list[Any]:
        """The outputs. Raises what the run raises."""
        arrays = {name: np.asarray(value) for name, value in feed.items()}
        if set(arrays) != self._names or any(array.shape[:1] != (1,) for array in arrays.values()):
            return await self._run(feed)
        result = await self._gathered(arrays)
        if isinstance(result, Exception):
            raise result
        outputs: list[Any] = result
        return outputs

    async def several(self, feeds: Sequence[Feed]) -> list[list[Any] | Exception]:
        """The outputs or the error of each of several one-sample requests. Requests of the same form share a run."""
        forms: dict[tuple[Any, ...], list[int]] = {}
        for number, feed in enumerate(feeds):
            form = tuple((name, feed[name].dtype.str, feed[name].shape) for name in sorted(feed))
            forms.setdefault(form, []).append(number)
        answers: list[list[Any] | Exception] = [[] for _ in feeds]

        async def together(numbers: list[int]) -> None:
            feed = {name: np.concatenate([feeds[number][name] for number in numbers]) for name in feeds[numbers[0]]}
            if self._length is not None:
                feed = {name: filled(array, self._length) for name, array in feed.items()}
            try:
                outputs = await self._run(feed)
            except Exception as error:
                for number in numbers:
                    answers[number] = error
            else:
                for k, number in enumerate(numbers):
                    answers[number] = [output[k : k + 1] for output in outputs]

        await asyncio.gather(*map(together, forms.values()))
        return answers
