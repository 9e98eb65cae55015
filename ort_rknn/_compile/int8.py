"""int8 that preserves a model's outputs: first the whole model, then cuts behind the last layers with weights, until
the accuracy bound holds; then plans that are more accurate at the same cost.

A tensor has a single int8 scale. If an output contains boxes up to 640 and scores up to 1, the scores vanish. What
follows the last convolutions is little work, so it can stay on the CPU, in float, with the ONNX's own nodes.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from .accuracy import OutputAccuracy
from .calibration import Samples
from .converter import ConversionError
from .cuts import CutPlan, candidate_plans, with_refined
from .graph import load_graph
from .measure import compare, simulate_parts, spread
from .observe import observe
from .parts import InParts
from .recipe import Recipe
from .work import quantized_share

#: The number of samples on which outputs are judged; each takes a single-threaded run of the simulator.
_JUDGED = 16
#: If the errors use up at most this share of the bound, nothing better is searched for.
_GOOD_ENOUGH = 1 / 3
#: Refined plans take many times as long: tried only if this many attempts fit in the remaining time.
_REFINING = 10


@dataclass(frozen=True, slots=True)
class Int8Attempt:
    """The result of a plan."""

    plan: CutPlan
    outputs: tuple[OutputAccuracy, ...]
    quantized: float
    """Share of the multiplications of Conv, MatMul and Gemm that are int8."""
    made: InParts
    seconds: float
    accuracy: float
    """The requested bound."""

    @property
    def problems(self) -> list[str]:
        """The violations of the bound, per output."""
        found = ((one.name, one.problem(self.accuracy)) for one in self.outputs)
        return [f"{name}: {problem}" for name, problem in found if problem is not None]

    @property
    def used_share(self) -> float:
        """The share of the bound used up by the worst output; above 1 it is violated."""
        return max((one.used_share(self.accuracy) for one in self.outputs), default=0.0)

    @property
    def whole(self) -> bool:
        """Whether it is a single compiled model."""
        return self.plan.whole

    def line(self) -> str:
        """The attempt as text."""
        verdict = "; ".join(self.problems) or f"within the bound, {self.used_share:.0%} of it used"
        return f"{self.plan.name}: {self.quantized:.0%} of the work in int8, {verdict}"


@dataclass(slots=True)
class Search:
    """Tries plans, cheapest first."""

    recipe: Recipe
    samples: Samples
    accuracy: float
    """The bound to reach on the simulator; see :class:`.accuracy.OutputAccuracy`."""
    budget: float
    """Minutes."""
    refusal: ConversionError | None = None
    """Why the toolkit cannot compile the whole model."""
    only_whole: bool = False
    """Nothing may stay on the CPU."""

    def run(self) -> list[Int8Attempt]:
        """Try until a plan holds the bound and nothing at the same cost is better, or the time is over.

        Returns the attempts; the best is :func:`best_of`. Ctrl-C ends the search and keeps the results so far. Raises
        ConversionError if no plan could be built.
        """
        deadline = time.monotonic() + self.budget * 60
        attempts: list[Int8Attempt] = []
        error: ConversionError | None = None
        try:
            waiting = self._plans()
            while waiting:
                plan = waiting.pop(0)
                if attempts and time.monotonic() > deadline:
                    self._say(f"{self.budget:g} minutes are over")
                    break
                self._say(f"int8, {plan.name}")
                try:
                    one = self._attempt(plan)
                except ConversionError as refused:
                    self._say(f"  {refused}")
                    error = refused
                    if plan.whole and not plan.hybrid and plan.algorithm == "normal":
                        self.refusal = refused
                        waiting = [] if self.only_whole else [CutPlan("in parts"), *_in_parts(waiting)]
                    continue
                attempts.append(one)
                self._say(f"  {one.line()}")
                if not one.problems:
                    waiting = self._better(one, waiting, deadline - time.monotonic())
        except KeyboardInterrupt:
            if not attempts:
                raise
            self._say("interrupted: the best so far is kept")
        if not attempts:
            raise error or ConversionError(f"{self._name}: nothing of it could be compiled to int8")
        return attempts

    @property
    def _name(self) -> str:
        return os.path.basename(self.recipe.job.path)

    def _say(self, text: str) -> None:
        self.recipe.job.progress(text)

    def _plans(self) -> list[CutPlan]:
        model = load_graph(self.recipe.job.path)
        observed = observe(model, os.path.dirname(self.recipe.job.path), [self.samples.feed(0)])
        found = candidate_plans(model, observed, whole=self.refusal is None)
        if not self.only_whole:
            return found
        whole = [plan for plan in found if plan.whole]
        return [*whole[:1], *(better for plan in whole[:1] for better in plan.refined()), *whole[1:]]

    def _better(self, one: Int8Attempt, waiting: list[CutPlan], left: float) -> list[CutPlan]:
        """Plans that cost a call as much as ``one`` does, and may be closer to the ONNX. ``waiting``: the plans that
        would follow if ``one`` did not hold the bound."""
        if one.used_share <= _GOOD_ENOUGH:
            return []
        if one.plan.algorithm != "normal":
            return [plan for plan in waiting if plan.algorithm != "normal" and plan.hybrid == one.plan.hybrid]
        if one.seconds * _REFINING >= left:
            return []
        return with_refined(one.made.model, one.made.observed, one.plan)

    def _attempt(self, plan: CutPlan) -> Int8Attempt:
        started = time.monotonic()
        feeds = [self.samples.feed(index) for index in spread(self.samples.count, 2)]
        made, reference = self.recipe.build(plan, feeds, self.refusal)
        indices = spread(self.samples.count, _JUDGED)
        outputs = simulate_parts(self.recipe.job.converter, made.built, reference, self.samples, indices)
        found = compare(reference, self.samples, indices, outputs)
        return Int8Attempt(plan, tuple(found), quantized_share(made), made, time.monotonic() - started, self.accuracy)


def _in_parts(plans: list[CutPlan]) -> list[CutPlan]:
    return [plan for plan in plans if not plan.whole]


def best_of(attempts: list[Int8Attempt]) -> Int8Attempt:
    """The attempt that uses up the least of the bound, if any holds it; else the one whose worst output is the least
    bad.

    If cosines violate the bound, they decide, and not the largest errors: in outputs that far off, single values differ
    by up to the whole range in any attempt.
    """

    def badness(one: Int8Attempt) -> tuple[int, float, float]:
        cosine = max((output.cosine_share(one.accuracy) for output in one.outputs), default=0.0)
        return len(one.problems), max(cosine, 1.0), one.used_share

    return min(attempts, key=badness)
