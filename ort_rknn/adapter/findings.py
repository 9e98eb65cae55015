"""The result of a check. Adapters that know a board provide checks for ``ort-rknn doctor``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from .contract import Query

State = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    """What was checked, in a word or two: "device node". The same in every release."""
    state: State
    """"failure": no session can use the NPU this way. "warning": it works, but with less speed or fewer features."""
    seen: str
    """What was found, in one sentence without a full stop."""
    remedy: str = ""
    """What to do about it, in a sentence or two; "" if nothing is wrong."""
    command: str = ""
    """One line to paste into a shell; "" if no command helps."""


class Examines(Protocol):
    """Optional for an adapter: all of its checks, whereas :meth:`Adapter.find` stops at the first failure."""

    def examine(self, query: Query) -> Iterable[Finding]:
        """Run every check, in the order in which things fail. May take a second. Changes nothing, and never raises for
        what it finds. Yields nothing if ``query`` asks for a device that this adapter never has."""
