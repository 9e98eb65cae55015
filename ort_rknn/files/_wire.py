"""The protobuf wire format: reads fields in place, and writes them.

The reader copies only what is asked for: a length-delimited field is its start and end. Every length is checked against
the enclosing message, and the number of fields is limited.
"""

from __future__ import annotations

from collections.abc import Iterator

from ._source import Data, FileData

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_TEXT_LIMIT = 64 << 20
#: A tag and a length, or a value, of at most ten bytes each.
_FIELD_HEAD = 20

#: A field: its number, its wire type, and for BYTES its start and end, otherwise its value (0 for fixed-size ones) and
#: end.
Field = tuple[int, int, int, int]


class WireError(ValueError):
    """The bytes are not a protobuf message of the expected kind."""


class WireReader:
    """Reads messages of ``data``, at most ``limit`` fields in all, so that no file keeps it busy for long."""

    __slots__ = ("_base", "_block", "_last", "data", "left")

    def __init__(self, data: Data, limit: int) -> None:
        self.data = data
        self.left = limit
        #: The current block, the position of its first byte, and the last position at which a field's tag and length
        #: (or value) are within the block.
        self._block = b"" if isinstance(data, FileData) else data
        self._base = 0
        self._last = -1 if isinstance(data, FileData) else len(data)

    def _move(self, position: int) -> tuple[bytes, int, int]:
        """Load the block around ``position``, which must be inside the data. Returns what it sets."""
        if not self._base <= position <= self._last:
            data = self.data
            assert isinstance(data, FileData)
            self._block, self._base = data.window(position)
            end = self._base + len(self._block)
            self._last = end if end >= len(data) else end - _FIELD_HEAD
        return self._block, self._base, self._last

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message from ``start`` to ``end``, in the file's order. Raises WireError."""
        if start >= end:
            return
        block, base, last = self._move(start)
        allowance = self.left
        used = 0
        position = start
        try:
            while position < end:
                used += 1
                if used > allowance:
                    raise WireError(f"offset {position}: more fields than any model has")
                if position > last:
                    block, base, last = self._move(position)
                at = position - base
                tag = block[at]
                at += 1
                if tag > 0x7F:
                    tag, at = _varint(block, base, tag, at, end)
                elif tag < 8:
                    raise WireError(f"offset {position}: expected a field, found the number 0")
                kind = tag & 7
                if kind == BYTES:
                    length = block[at]
                    at += 1
                    if length > 0x7F:
                        length, at = _varint(block, base, length, at, end)
                    position = base + at
                    stop = position + length
                    if stop > end:
                        raise WireError(
                            f"offset {position}: field {tag >> 3} has {length} bytes, its message {end - position} more"
                        )
                    yield tag >> 3, BYTES, position, stop
                    position = stop
                elif kind == VARINT:
                    value = block[at]
                    at += 1
                    if value > 0x7F:
                        value, at = _varint(block, base, value, at, end)
                    position = base + at
                    yield tag >> 3, VARINT, value, position
                elif kind in (FIXED32, FIXED64):
                    position = base + at + (4 if kind == FIXED32 else 8)
                    yield tag >> 3, kind, 0, position
                else:
                    raise WireError(f"offset {base + at - 1}: expected a field, found wire type {kind}")
            if position != end:
                raise WireError(f"offset {end}: a field goes on after the end of its message")
        except IndexError:
            raise WireError(f"offset {len(self.data)}: the data ends within a field") from None
        finally:
            self.left -= used

    def whole_fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """As :meth:`fields`, with the position of each field's tag after its wire type, for copying fields."""
        begin = start
        for number, kind, first, last in self.fields(start, end):
            yield number, kind, begin, first, last
            begin = last

    def text(self, start: int, end: int) -> str:
        """A string of at most 64 MB. Bytes that are not UTF-8 become lone surrogates, which :func:`text_field` writes
        back unchanged."""
        if end - start > _TEXT_LIMIT:
            raise WireError(f"offset {start}: a text of {end - start} bytes, at most {_TEXT_LIMIT} are expected")
        return self.take(start, end).decode("utf-8", "surrogateescape")

    def take(self, start: int, end: int) -> bytes:
        """The bytes from ``start`` to ``end``."""
        base, block = self._base, self._block
        if base <= start and end - base <= len(block):
            return block[start - base : end - base]
        return self.data[start:end]


def _varint(block: bytes, base: int, first: int, at: int, end: int) -> tuple[int, int]:
    """The rest of a varint whose first byte is ``first``, starting at ``block[at]``; at most ten bytes, of which 64
    bits are kept.

    ``base`` is the position of ``block[0]``, ``end`` the end of the message.
    """
    value = first & 0x7F
    for shift in range(7, 70, 7):
        if base + at >= end:
            raise WireError(f"offset {base + at}: the message ends within a number")
        byte = block[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise WireError(f"offset {base + at}: a number of more than ten bytes")


def signed(value: int) -> int:
    """The value of an int32 or int64 field from its varint."""
    return value - (1 << 64) if value >> 63 else value


def varint(value: int) -> bytes:
    """``value`` as a varint; negative values as the ten bytes of the 64-bit two's complement."""
    if value < 0:
        value += 1 << 64
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def int_field(number: int, value: int) -> bytes:
    """An int64, int32 or enum field."""
    return varint(number << 3) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """A bytes field, or a nested message."""
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def text_field(number: int, value: str) -> bytes:
    """A string field."""
    return bytes_field(number, value.encode("utf-8", "surrogateescape"))
