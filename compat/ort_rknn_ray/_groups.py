"""Groups of small feeds: one actor call for several, since Ray's cost is per call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

#: Bytes of a feed that may share a call. Ray sends an argument below 100 kB with the call; a larger one goes through
#: the object store, which costs more than the call.
SMALL_FEED = 96_000
#: Bytes of all feeds of a group.
GROUP_BYTES = 1_000_000
#: Seconds that a feed may wait for the source to have the next one.
PATIENCE = 0.001

Call = TypeVar("Call")


def feed_bytes(feed: Any) -> int | None:
    """The size of a feed; None if it has values of an unknown size."""
    total = 0
    for value in feed.values() if isinstance(feed, Mapping) else (feed,):
        if isinstance(value, (bytes, bytearray, str)):
            total += len(value)
        elif isinstance(value, (int, float)):
            total += 8
        elif isinstance(size := getattr(value, "nbytes", None), int):
            total += size
        else:
            return None
    return total


class OpenGroup(Generic[Call]):
    """The calls that will go into the next actor call, while the source is asked for more of them.

    ``send``: called with the group's calls. A thread calls it if the source takes longer than ``PATIENCE`` for the next
    feed, so a feed does not wait for a slow source. Otherwise the owner does, with :meth:`flush`.
    """

    def __init__(self, send: Callable[[list[Call]], None]) -> None:
        self._send = send
        self.calls: list[Call] = []
        self.most = 1
        """The length of a full group."""
        self._bytes = 0
        self._lock = threading.Lock()
        self._asked: float | None = None
        """When the source was asked for the next feed; None: it is not being asked."""
        self._asking = threading.Event()
        self._watch: threading.Thread | None = None
        self._closed = threading.Event()
        self._error: BaseException | None = None
        self.is_slow = False
        """Whether the source took longer than ``PATIENCE`` for its last feed: that feed should not wait."""

    def __len__(self) -> int:
        return len(self.calls)

    def takes(self, size: int) -> bool:
        """Whether a call of that many bytes may join the calls that are there."""
        return 0 < len(self.calls) < self.most and self._bytes + size <= GROUP_BYTES

    def add(self, call: Call, size: int) -> None:
        """Add a call. A full group is sent."""
        self.calls.append(call)
        self._bytes += size
        if len(self.calls) >= self.most:
            self.flush()

    def flush(self) -> None:
        """Send what is there."""
        calls, self.calls, self._bytes = self.calls, [], 0
        if calls:
            self._send(calls)

    def next_of(self, source: Iterator[Any]) -> Any:
        """The source's next item, or None at its end. Sends the group if that takes too long."""
        before = time.monotonic()
        if not self.calls:
            item = next(source, None)
            self.is_slow = time.monotonic() - before > PATIENCE
            return item
        if self._watch is None:
            self._watch = threading.Thread(target=self._watch_source, name="ort_rknn_ray-group", daemon=True)
            self._watch.start()
        with self._lock:
            self._asked = before
        self._asking.set()
        try:
            item = next(source, None)
        finally:
            with self._lock:
                self._asked = None
        self.is_slow = time.monotonic() - before > PATIENCE
        if self._error is not None:
            raise self._error
        return item

    def _watch_source(self) -> None:
        while self._asking.wait():
            self._asking.clear()
            if self._closed.wait(PATIENCE):
                return
            with self._lock:
                if self._asked is None:
                    continue
                if time.monotonic() - self._asked < PATIENCE:
                    self._asking.set()  # asked anew meanwhile
                    continue
                try:
                    self.flush()
                except BaseException as error:  # raised where the source was asked
                    self._error = error

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._closed.set()
        self._asking.set()
        if self._watch is not None:
            self._watch.join()
