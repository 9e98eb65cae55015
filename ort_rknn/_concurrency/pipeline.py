"""A pipeline: results in call order, returned some calls later."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol, TypeVar

from .._locks import Lock

T = TypeVar("T")


class Pending(Protocol):
    """A call that was started, such as a Future."""

    def result(self) -> Any:
        """Wait for the call; return its result or raise its error."""
        ...


class Pipeline:
    """Calls go in, results come out ``depth`` calls later, in order: one caller keeps all cores busy. Thread-safe."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._flying: deque[Pending] = deque()
        self._lock = Lock()

    def push(self, call: Pending) -> Any:
        """The result of the call ``depth`` calls ago; None if there is none yet. Raises that call's error."""
        with self._lock:
            self._flying.append(call)
            due = self._flying.popleft() if len(self._flying) > self.depth else None
        return due.result() if due is not None else None

    def flush(self) -> list[Any]:
        """The remaining results, oldest first; empties the pipeline. Raises the first error, once all calls have
        ended."""
        results: list[Any] = []
        first: BaseException | None = None
        with self._lock:
            flying, self._flying = self._flying, deque()
        while flying:
            try:
                results.append(flying.popleft().result())
            except BaseException as error:
                first = first or error
        if first is not None:
            try:
                raise first
            finally:
                del first  # else its traceback would refer back to it
        return results
