"""One number for all runs of a call, where a session has several compiled models: a model in parts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Protocol

#: Threads that are remembered; more are ended ones.
_MOST = 1024


class CallOrder:
    """Numbers the calls of a session whose parts run one after the other, each on the thread of its call.

    Call n then has all its parts on ``schedule[n % len(schedule)]``, also if several threads call at once. A part
    that runs again on a thread belongs to that thread's next call: of a part in a loop every turn counts as one.
    """

    __slots__ = ("_numbers", "_rows")

    def __init__(self) -> None:
        self._numbers = itertools.count()
        #: By thread: the number of its call, and which parts of that it has run (a bit each).
        self._rows: dict[int, tuple[int, int]] = {}

    def take(self) -> int:
        """The next call's number."""
        return next(self._numbers)

    def number(self, bit: int) -> int:
        """The number of the call that this thread is in, for the part of ``bit``."""
        thread = threading.get_ident()
        row = self._rows.get(thread)
        if row is None or row[1] & bit:
            if len(self._rows) > _MOST:
                self._rows.clear()
            row = (next(self._numbers), 0)
        self._rows[thread] = (row[0], row[1] | bit)
        return row[0]


class TakesTurns(Protocol):
    """An executor, as far as its place in the order goes."""

    def join(self, order: CallOrder, bit: int) -> None:
        """From now on take the numbers of runs from ``order``, as the part of ``bit``."""


def run_in_one_order(executors: Sequence[TakesTurns]) -> None:
    """Let the parts of a model take their cores call by call. For executors of the same dispatch, before their first
    run."""
    if len(executors) > 1:
        order = CallOrder()
        for place, executor in enumerate(executors):
            executor.join(order, 1 << place)
