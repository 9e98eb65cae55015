"""The protobuf wire format: reading fields in place, and writing them.

The reader takes nothing out of the buffer but what is asked for: a length-delimited field is its start and end. Every
length is checked against the message around it, and the number of fields is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator

from ._source import Data

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_TEXT_LIMIT = 64 << 20

#: A field: its number, its wire type, and for BYTES its start and end, else its value (0 for the fixed ones) and end.
Field = tuple[int, int, int, int]


class WireError(ValueError):
    """The bytes are not a protobuf message of the expected kind."""


class WireReader:
    """Reads messages of ``data``; at most ``limit`` fields in all, so that no file keeps it busy for long."""

    __slots__ = ("data", "left")

    def __init__(self, data: Data, limit: int) -> None:
        self.data = data
        self.left = limit

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message at ``start`` to ``end``, in the file's order. Raises WireError."""
        data = self.data
        allowance = self.left
        used = 0
        position = start
        try:
            while position < end:
                used += 1
                if used > allowance:
                    raise WireError(f"offset {position}: more fields than any model has")
                tag = data[position]
                position += 1
                if tag > 0x7F:
                    tag, position = self._varint(tag, position, end)
                elif tag < 8:
                    raise WireError(f"offset {position - 1}: expected a field, found the number 0")
                kind = tag & 7
                if kind == BYTES:
                    length = data[position]
                    position += 1
                    if length > 0x7F:
                        length, position = self._varint(length, position, end)
                    stop = position + length
                    if stop > end:
                        raise WireError(
                            f"offset {position}: field {tag >> 3} has {length} bytes, its message {end - position} more"
                        )
                    yield tag >> 3, BYTES, position, stop
                    position = stop
                elif kind == VARINT:
                    value = data[position]
                    position += 1
                    if value > 0x7F:
                        value, position = self._varint(value, position, end)
                    yield tag >> 3, VARINT, value, position
                elif kind in (FIXED32, FIXED64):
                    position += 4 if kind == FIXED32 else 8
                    yield tag >> 3, kind, 0, position
                else:
                    raise WireError(f"offset {position - 1}: expected a field, found wire type {kind}")
            if position != end:
                raise WireError(f"offset {end}: a field goes on after the end of its message")
        except IndexError:
            raise WireError(f"offset {len(data)}: the data ends within a field") from None
        finally:
            self.left -= used

    def _varint(self, first: int, position: int, end: int) -> tuple[int, int]:
        """The rest of a varint whose first byte is ``first``; ten bytes at most, 64 bits are kept."""
        data = self.data
        value = first & 0x7F
        for shift in range(7, 70, 7):
            if position >= end:
                raise WireError(f"offset {position}: the message ends within a number")
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, position
        raise WireError(f"offset {position}: a number of more than ten bytes")

    def text(self, start: int, end: int) -> str:
        """A string of at most 64 MB. Bytes that are not UTF-8 become lone surrogates, which :func:`text_field` writes
        back as they were."""
        if end - start > _TEXT_LIMIT:
            raise WireError(f"offset {start}: a text of {end - start} bytes, at most {_TEXT_LIMIT} are expected")
        return self.data[start:end].decode("utf-8", "surrogateescape")


def signed(value: int) -> int:
    """An int32 or int64 field's value from its varint."""
    return value - (1 << 64) if value >> 63 else value


def varint(value: int) -> bytes:
    """``value`` as a varint; a negative one as the ten bytes of its 64-bit two's complement."""
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
