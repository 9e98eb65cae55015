"""A session's own state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .._executor.executor import Executor
from .._planning.decision import Decision
from .._planning.facts import Facts
from .._planning.plan import Plan
from .._planning.request import Request
from .._tensors import Quantization
from ..files.pinned import PinnedModel
from .fed_calls import FedCalls


@dataclass(slots=True)
class State:
    """The state of our session, besides onnxruntime's own attributes."""

    kwargs: dict[str, Any]
    again: bool = False
    """Created by set_providers, not by the constructor."""
    decision: Decision | None = None
    """None if the user chose providers on the SessionOptions, which onnxruntime handles."""
    executor: Executor | None = None
    """Set if the whole model is one compiled model."""
    of_nodes: list[Executor] = field(default_factory=list)
    """For a model with EPContext nodes: one executor per node."""
    notes: list[str] = field(default_factory=list)
    raw: Mapping[str, Quantization] = field(default_factory=dict)
    """Outputs that the CPU returns in the form in which a compiled model would store them."""
    parallel: bool = False
    """Nodes run on onnxruntime's own threads (ORT_PARALLEL), so the thread does not identify the run."""
    pinned: PinnedModel | None = None
    """The model that was given and the files used with it, for set_providers(). None for a model in memory, and on the
    CPU, where :attr:`path` is used as in onnxruntime."""
    path: str | None = None
    """The absolute path of the model that was given."""
    fed: FedCalls | None = None
    """What serves calls that feed initializers, if the graph that onnxruntime has does not declare them."""

    @property
    def request(self) -> Request | None:
        """The decision's request."""
        return self.decision.request if self.decision is not None else None

    @property
    def facts(self) -> Facts | None:
        """The decision's facts."""
        return self.decision.facts if self.decision is not None else None

    @property
    def plan(self) -> Plan | None:
        """The decision's plan."""
        return self.decision.plan if self.decision is not None else None

    def decide(self, decision: Decision) -> None:
        """Replace the decision after its model did not load."""
        self.decision = decision
        self.of_nodes.clear()
        self.notes[:] = decision.request.notes

    @property
    def executors(self) -> list[Executor]:
        """All executors of the session."""
        return [*self.of_nodes] if self.executor is None else [self.executor]

    @contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Close the open files if the block raises."""
        try:
            yield
        except BaseException:
            self.unpin()
            raise

    def inherit(self, other: State) -> None:
        """Take over the files of the previous state: a session that moves to the CPU may move back, and models read
        from copies have no path of their own."""
        if other.pinned is not None and (self.pinned is None or self.path != other.path):
            self.unpin()
            self.pinned, other.pinned = other.pinned, None
            self.path = other.path

    def unpin(self) -> None:
        """Close the files that are held open, and drop what needs them. Idempotent."""
        if self.fed is not None:
            self.fed.let_go()
        pinned, self.pinned = self.pinned, None
        if pinned is not None:
            pinned.close()
