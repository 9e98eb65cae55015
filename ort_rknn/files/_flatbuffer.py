"""A bounds-checked reader of FlatBuffers tables, limited to what an .rknn file needs.

Copies only what is asked for. Every offset in the file is checked against the buffer before use, and every vector's
length against the bytes available.
"""

from __future__ import annotations

import struct
from typing import Any

from ._source import Data

_U16 = struct.Struct("<H")
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")


class FlatbufferError(ValueError):
    """The buffer is not valid FlatBuffers data."""


class Budget:
    """How many bytes of memory may still be used for the metadata of one file.

    Any number of offsets may point to the same string, so limits on single strings do not limit their sum: 20 kB can
    contain a terabyte of names.
    """

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size

    def spend(self, size: int) -> None:
        """Raise FlatbufferError if less than ``size`` bytes are left."""
        if size > self.left:
            raise FlatbufferError("it would take more memory than any such file needs")
        self.left -= size


#: The cost of a table: the object, and what a reader creates from it.
_TABLE_COST = 400
#: The cost of a text or number, in addition to its contents.
_OBJECT_COST = 48


class Table:
    """A table at ``position`` of ``data``, in a buffer from ``start`` to ``end``.

    Fields are identified by their slot, the index in the vtable. A getter returns None if the slot is absent, and
    raises FlatbufferError if an offset leaves the buffer.
    """

    __slots__ = ("_budget", "_data", "_end", "_position", "_slots", "_start", "_vtable")

    def __init__(self, data: Data, start: int, end: int, position: int, budget: Budget) -> None:
        self._data, self._start, self._end, self._position, self._budget = data, start, end, position, budget
        budget.spend(_TABLE_COST)
        self._vtable = self._check(position - _I32.unpack(self._take(position, 4))[0], 4)
        length = _U16.unpack(self._take(self._vtable, 2))[0]
        self._check(self._vtable, length)
        self._slots = (length - 4) // 2

    @classmethod
    def root(cls, data: Data, start: int, end: int, budget: Budget) -> Table:
        """The root table of the buffer from ``start`` to ``end`` of ``data``; the table and its subtables spend
        ``budget``."""
        if start < 0 or end > len(data) or end - start < 8:
            raise FlatbufferError("no room for a root table")
        return cls(data, start, end, start + _U32.unpack(data[start : start + 4])[0], budget)

    def _check(self, position: int, size: int) -> int:
        if position < self._start or position + size > self._end:
            raise FlatbufferError(f"offset {position - self._start} leaves the buffer")
        return position

    def _take(self, position: int, size: int) -> bytes:
        self._check(position, size)
        return self._data[position : position + size]

    def _field(self, slot: int) -> int | None:
        if slot >= self._slots:
            return None
        offset: int = _U16.unpack(self._take(self._vtable + 4 + 2 * slot, 2))[0]
        return self._position + offset if offset else None

    def _vector(self, slot: int, item_size: int, limit: int) -> tuple[int, int] | None:
        """Position and number of the items of a vector (with item size 1: the bytes of a string)."""
        field = self._field(slot)
        if field is None:
            return None
        at = field + _U32.unpack(self._take(field, 4))[0]
        count: int = _U32.unpack(self._take(at, 4))[0]
        if count > limit:
            raise FlatbufferError(f"slot {slot} has {count} items, at most {limit} are expected")
        self._check(at + 4, count * item_size)
        return at + 4, count

    def byte(self, slot: int) -> int | None:
        """A signed byte."""
        field = self._field(slot)
        return None if field is None else int.from_bytes(self._take(field, 1), "little", signed=True)

    def number(self, slot: int) -> int | None:
        """An unsigned 32-bit integer."""
        field = self._field(slot)
        return None if field is None else int(_U32.unpack(self._take(field, 4))[0])

    def string(self, slot: int, limit: int) -> bytes | None:
        """A string of at most ``limit`` bytes."""
        vector = self._vector(slot, 1, limit)
        if vector is None:
            return None
        self._budget.spend(_OBJECT_COST + 2 * vector[1])  # its bytes, and the text made from them
        return self._data[vector[0] : vector[0] + vector[1]]

    def place_of_string(self, slot: int, limit: int) -> tuple[int, int, int] | None:
        """Positions of a string's offset and of its first byte, and its length in bytes."""
        field, vector = self._field(slot), self._vector(slot, 1, limit)
        return None if field is None or vector is None else (field, *vector)

    def ints(self, slot: int, limit: int) -> tuple[int, ...] | None:
        """A vector of at most ``limit`` 32-bit signed integers."""
        return self._numbers(slot, limit, "i")

    def floats(self, slot: int, limit: int) -> tuple[float, ...] | None:
        """A vector of at most ``limit`` 32-bit floats."""
        return self._numbers(slot, limit, "f")

    def _numbers(self, slot: int, limit: int, kind: str) -> tuple[Any, ...] | None:
        vector = self._vector(slot, 4, limit)
        if vector is None:
            return None
        self._budget.spend(_OBJECT_COST + _OBJECT_COST * vector[1])
        return struct.unpack(f"<{vector[1]}{kind}", self._take(vector[0], 4 * vector[1]))

    def count(self, slot: int, limit: int) -> int:
        """The number of tables in a vector of at most ``limit`` tables; 0 if the slot is absent."""
        vector = self._vector(slot, 4, limit)
        return 0 if vector is None else vector[1]

    def table(self, slot: int, index: int, limit: int) -> Table:
        """Table ``index`` of a vector of at most ``limit`` tables."""
        vector = self._vector(slot, 4, limit)
        if vector is None or not 0 <= index < vector[1]:
            raise FlatbufferError(f"slot {slot} has no table {index}")
        at = vector[0] + 4 * index
        position = at + _U32.unpack(self._take(at, 4))[0]
        return Table(self._data, self._start, self._end, position, self._budget)
