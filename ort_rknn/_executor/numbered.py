"""Asynchronous calls get their number when they are accepted, before a thread starts them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from .._concurrency.submitter import Task
from .executor import Executor


class Numbered(Task):
    """A call's number, in every executor of the session. It tells the cores of all runs that the call makes."""

    __slots__ = ("_numbers",)

    def __init__(self, executors: Sequence[Executor]) -> None:
        self._numbers = [(executor.numbers, executor.take_number()) for executor in executors]
        super().__init__(executors[0].dispatch.lane_of(self._numbers[0][1]))

    def begin(self) -> None:
        thread = threading.get_ident()
        for numbers, number in self._numbers:
            numbers[thread] = number

    def end(self) -> None:
        thread = threading.get_ident()
        for numbers, _ in self._numbers:
            numbers.pop(thread, None)
