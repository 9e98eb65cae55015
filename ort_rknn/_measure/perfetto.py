"""A writer of Perfetto's TrackEvent format, which https://ui.perfetto.dev and its ``trace_processor`` open.

Field numbers are those of Perfetto's public ``trace_packet.proto``, ``track_descriptor.proto`` and
``track_event.proto``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from ..files._wire import bytes_field, int_field, text_field, varint

_BEGIN, _END, _INSTANT, _COUNTER = 1, 2, 3, 4
#: The order of events of a track with the same time: ends first, beginnings last.
_ORDER = {_END: 0, _INSTANT: 1, _COUNTER: 1, _BEGIN: 2}
_IN_THE_GIVEN_ORDER = 3


def _fixed64(number: int, value: int) -> bytes:
    return varint(number << 3 | 1) + struct.pack("<Q", value)


class TraceWriter:
    """Collects tracks and events; :meth:`to_bytes` returns the file. Times are nanoseconds of one clock."""

    def __init__(self) -> None:
        self._tracks: list[bytes] = []
        self._events: list[tuple[int, tuple[int, int], bytes]] = []

    # Tracks: each gives its number ----------------------------------------------------------------------------

    def process(self, name: str, pid: int) -> int:
        """The parent of other tracks, which are shown in the order of creation."""
        body = bytes_field(3, int_field(1, pid) + text_field(6, name))
        return self._track(body + int_field(11, _IN_THE_GIVEN_ORDER))

    def track(self, name: str, parent: int) -> int:
        """A row of slices."""
        return self._track(text_field(2, name) + int_field(11, _IN_THE_GIVEN_ORDER), parent)

    def counter(self, name: str, parent: int) -> int:
        """A row with a curve."""
        return self._track(text_field(2, name) + bytes_field(8, int_field(3, 2)), parent)  # UNIT_COUNT

    def _track(self, body: bytes, parent: int | None = None) -> int:
        number = len(self._tracks) + 1
        head = int_field(1, number)
        if parent is not None:
            head += int_field(5, parent) + int_field(12, number)
        self._tracks.append(bytes_field(60, head + body))
        return number

    # Events ---------------------------------------------------------------------------------------------------

    def slice(
        self,
        track: int,
        name: str,
        begin: int,
        end: int,
        *,
        flows: Iterable[int] = (),
        last: Iterable[int] = (),
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """Something with a duration; nested slices are shown below. ``flows``: arrows through this slice; ``last``:
        arrows that end here."""
        body = text_field(23, name)
        body += b"".join(_fixed64(47, flow) for flow in flows) + b"".join(_fixed64(48, flow) for flow in last)
        for key, value in (notes or {}).items():
            body += bytes_field(4, text_field(10, key) + text_field(6, value))
        self._event(_BEGIN, track, begin, body)
        self._event(_END, track, max(end, begin + 1), b"")

    def instant(self, track: int, name: str, at: int, *, flows: Iterable[int] = ()) -> None:
        """Something without duration."""
        self._event(_INSTANT, track, at, text_field(23, name) + b"".join(_fixed64(47, flow) for flow in flows))

    def count(self, track: int, at: int, value: int) -> None:
        """From this time the counter has ``value``."""
        self._event(_COUNTER, track, at, int_field(30, value))

    def _event(self, kind: int, track: int, at: int, body: bytes) -> None:
        # Perfetto loses an arrow whose end comes before its beginning in the file. Arrows lead from tracks that were
        # made later (callers) to earlier ones (contexts, cores), so these go first where the time is the same.
        self._events.append(
            (at, (_ORDER[kind], -track), bytes_field(11, int_field(9, kind) + int_field(11, track) + body))
        )

    def to_bytes(self) -> bytes:
        """The file."""
        first = int_field(13, 1)  # SEQ_INCREMENTAL_STATE_CLEARED
        sequence = int_field(10, 1)
        packets = [bytes_field(1, t + sequence + (b"" if k else first)) for k, t in enumerate(self._tracks)]
        for at, _, event in sorted(self._events, key=lambda row: row[:2]):
            packets.append(bytes_field(1, int_field(8, at) + event + sequence))
        return b"".join(packets)
