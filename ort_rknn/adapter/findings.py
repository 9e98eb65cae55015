"""What a check found. Adapters that know a board offer checks for ``ort-rknn doctor``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from .contract import Query

State = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of one check."""

    check: str
    """What was looked at, in a word or two: "device node". The same in every release."""
    state: State
    """"failure": no session can use the NPU like this. "warning": it works, but slower or less than it could."""
    seen: str
    """What was seen, in one sentence without a full stop."""
    remedy: str = ""
    """What to do about it, in a sentence or two; "" if nothing is wrong."""
    command: str = ""
    """One line to paste into a shell; "" if no command helps."""


class Examines(Protocol):
    """What an adapter may offer besides: its checks one by one, where :meth:`Adapter.find` stops at the first that
    fails."""

    def examine(self, query: Query) -> Iterable[Finding]:
        """Every check, in the order in which things fail. May take a second. Changes nothing and never raises for what
        it finds. Nothing where ``query`` asks for a device that this adapter never has."""
