"""One number for all runs of a call, where a session has several compiled models: a model in parts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .executor import Executor

#: Threads that are remembered; more are ended ones.
_MOST = 1024


class CallOrder:
    """Numbers the calls of a session whose parts run one after the other, each on the thread of its call.

    Call n then has all its parts on ``schedule[n % len(schedule)]``, also where several threads call at once. A part
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


def run_in_one_order(executors: Sequence[Executor]) -> None:
    """Let the parts of a model take their cores call by call. For executors of the same dispatch, before their first
    run."""
    if len(executors) > 1:
        order = CallOrder()
        for place, executor in enumerate(executors):
            executor.join(order, 1 << place)
