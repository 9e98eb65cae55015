"""What a session of ours knows of itself."""

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


@dataclass(slots=True)
class State:
    """What a session of ours knows besides onnxruntime's own attributes."""

    kwargs: dict[str, Any]
    again: bool = False
    """Made by set_providers, not by the constructor."""
    decision: Decision | None = None
    """None if the user chose providers on the SessionOptions, which is onnxruntime's business."""
    executor: Executor | None = None
    """Where the whole model is one compiled model."""
    of_nodes: list[Executor] = field(default_factory=list)
    """Where the model has EPContext nodes: one executor each."""
    notes: list[str] = field(default_factory=list)
    raw: Mapping[str, Quantization] = field(default_factory=dict)
    """Outputs that the CPU gives as a compiled model would hold them."""
    parallel: bool = False
    """Nodes run on onnxruntime's own threads (ORT_PARALLEL), so a run is not told by its thread."""
    pinned: PinnedModel | None = None
    """The model that was given and what was used with it, for set_providers(). None for one in memory, and on the CPU:
    there it is :attr:`path`, as in onnxruntime."""
    path: str | None = None
    """The absolute path of the model that was given."""

    @property
    def request(self) -> Request | None:
        """Of the decision."""
        return self.decision.request if self.decision is not None else None

    @property
    def facts(self) -> Facts | None:
        """Of the decision."""
        return self.decision.facts if self.decision is not None else None

    @property
    def plan(self) -> Plan | None:
        """Of the decision."""
        return self.decision.plan if self.decision is not None else None

    def decide(self, decision: Decision) -> None:
        """Put ``decision`` in the place of one that did not load."""
        self.decision = decision
        self.of_nodes.clear()
        self.notes[:] = decision.request.notes

    @property
    def executors(self) -> list[Executor]:
        """All of them."""
        return [*self.of_nodes] if self.executor is None else [self.executor]

    @contextmanager
    def released_on_error(self) -> Iterator[None]:
        """What raises in here leaves no file open."""
        try:
            yield
        except BaseException:
            self.unpin()
            raise

    def inherit(self, other: State) -> None:
        """Take over the files of the state that this one was made from again: a session that goes to the CPU may come
        back, and what was read from copies has no path of its own."""
        if other.pinned is not None and (self.pinned is None or self.path != other.path):
            self.unpin()
            self.pinned, other.pinned = other.pinned, None
            self.path = other.path

    def unpin(self) -> None:
        """Close the files that are held open. Idempotent."""
        pinned, self.pinned = self.pinned, None
        if pinned is not None:
            pinned.close()
