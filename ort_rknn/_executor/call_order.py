"""Call numbers for a session with several compiled models (a model in parts): all runs of a call share one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Protocol

#: The number of threads remembered; beyond it, older ones have ended.
_MOST = 1024


class CallOrder:
    """Numbers the calls of a session whose parts run one after the other, each on the thread of its call.

    Thus all parts of call n run on ``schedule[n % len(schedule)]``, even if several threads call at once. If a part
    runs again on a thread, that is the thread's next call: for a part in a loop, each iteration counts as a call.
    """

    __slots__ = ("_numbers", "_rows")

    def __init__(self) -> None:
        self._numbers = itertools.count()
        #: By thread: the number of its call, and a bit mask of the parts it has run.
        self._rows: dict[int, tuple[int, int]] = {}

    def take(self) -> int:
        """The next call's number."""
        return next(self._numbers)

    def number(self, bit: int) -> int:
        """The number of this thread's current call, for the part of ``bit``."""
        thread = threading.get_ident()
        row = self._rows.get(thread)
        if row is None or row[1] & bit:
            if len(self._rows) > _MOST:
                self._rows.clear()
            row = (next(self._numbers), 0)
        self._rows[thread] = (row[0], row[1] | bit)
        return row[0]


class TakesTurns(Protocol):
    """An executor, as far as call numbers are concerned."""

    def join(self, order: CallOrder, bit: int) -> None:
        """Take run numbers from ``order`` from now on, as the part of ``bit``."""


def run_in_one_order(executors: Sequence[TakesTurns]) -> None:
    """Let the parts of a model take their cores call by call. For executors with the same dispatch, before their first
    run."""
    if len(executors) > 1:
        order = CallOrder()
        for place, executor in enumerate(executors):
            executor.join(order, 1 << place)
