"""Asynchronous calls get their number when they are accepted, before a thread starts them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from .._concurrency.started import Task
from .executor import Executor


class Numbered(Task):
    """A call's number, the same in every executor of the session. It determines the cores of all its runs."""

    __slots__ = ("_first", "_number", "_others")

    def __init__(self, executors: Sequence[Executor]) -> None:
        self._first = executors[0].numbers
        self._number = executors[0].take_number()
        self._others = [e.numbers for e in executors[1:]]
        self.lane = executors[0].dispatch.lane_of(self._number)

    def begin(self) -> None:
        thread = threading.get_ident()
        self._first[thread] = self._number
        for numbers in self._others:
            numbers[thread] = self._number

    def end(self) -> None:
        thread = threading.get_ident()
        del self._first[thread]
        for numbers in self._others:
            del numbers[thread]
