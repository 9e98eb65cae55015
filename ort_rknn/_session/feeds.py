"""Copies of feeds, made at the call: the caller may change its arrays at once, as a camera loop does."""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

#: The number of combinations of shape and dtype for which buffers are kept.
_KINDS_KEPT = 16
#: Kinds of dtypes whose elements are plain bytes: bool, numbers.
_PLAIN = "biufc"

#: numpy releases the GIL while copying and then waits to get it back, which does not pay below this many bytes.
_BRIEF = 1 << 17
#: Those of the dtypes that memoryview supports.
_BYTES = "?bBhHiIlLqQfd"


def in_native_order(feed: Any) -> Any:
    """A feed whose arrays have native byte order: the same one if all have, else with copies of the others.

    onnxruntime looks only at a dtype's number, which big-endian arrays share, and would misread their bytes.
    """
    try:
        values = feed.values()
    except AttributeError:
        return feed  # ``run`` reports what is wrong
    for value in values:
        if isinstance(value, np.ndarray) and not value.dtype.isnative:
            return {name: _in_native_order(one) for name, one in feed.items()}
    return feed


def _in_native_order(value: Any) -> Any:
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        return value.astype(value.dtype.newbyteorder("="))
    return value


class Feed:
    """The feed of one call. :meth:`give_back` returns its buffers once the call has ended."""

    __slots__ = ("_buffers", "_pool", "nbytes", "values")

    def __init__(
        self, values: Any, pool: Buffers | None = None, buffers: list[np.ndarray[Any, Any]] | None = None
    ) -> None:
        self.values = values
        self._pool = pool
        self._buffers = buffers
        self.nbytes = 0
        """Of its buffers."""
        for buffer in buffers or ():
            self.nbytes += buffer.nbytes

    def without(self, results: list[Any]) -> list[Any]:
        """``results``, with copies of those that lie in one of the buffers, which happens if a model's output is its
        input. Before 1.24, onnxruntime returns such a result without a reference to the array that it lies in."""
        if self._buffers and isinstance(results, list):
            for place, result in enumerate(results):
                if isinstance(result, np.ndarray) and any(np.may_share_memory(result, b) for b in self._buffers):
                    results[place] = result.copy()
        return results

    def give_back(self) -> None:
        """Return the buffers after the call. A buffer that is still referenced is not reused: by a result of a model
        whose output is its input, by an exception's traceback, or by a subclass that keeps its feeds."""
        self.values = None
        pool, buffers = self._pool, self._buffers
        self._buffers = None
        if pool is None or buffers is None:
            return
        while buffers:
            buffer = buffers.pop()
            if sys.getrefcount(buffer) == 2:  # this name, and the argument of getrefcount
                pool.put(buffer)


class Buffers:
    """A pool of arrays by shape and dtype: fresh pages cost as much as the copy. Thread-safe.

    ``kept``: the number of arrays kept for each shape and dtype.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._free: dict[tuple[tuple[int, ...], np.dtype[Any]], deque[np.ndarray[Any, Any]]] = {}

    def copy(self, feed: Any) -> Feed:
        """A copy of a feed: dict, arrays, lists and OrtValues. Anything else is returned as is, for ``run`` to
        reject."""
        if not isinstance(feed, Mapping):
            return Feed(feed)
        buffers: list[np.ndarray[Any, Any]] = []
        values = {name: self._copied(value, buffers) for name, value in feed.items()}
        return Feed(values, self, buffers)

    def put(self, buffer: np.ndarray[Any, Any]) -> None:
        """Return a buffer to the pool."""
        free = self._free.get((buffer.shape, buffer.dtype))
        if free is not None and len(free) < self._kept:
            free.append(buffer)

    def _copied(self, value: Any, buffers: list[np.ndarray[Any, Any]]) -> Any:
        if isinstance(value, np.ndarray):
            return self._array(value, buffers)
        if isinstance(value, onnxruntime.OrtValue):
            return self._ort_value(value, buffers)
        try:
            return copy.deepcopy(value)
        except Exception:  # it cannot be copied; pass it on as is, in case it can be run
            return value

    def _array(self, value: np.ndarray[Any, Any], buffers: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        if value.dtype.kind not in _PLAIN:
            return np.array(value)
        native = value.dtype.isnative
        key = (value.shape, value.dtype if native else value.dtype.newbyteorder("="))
        free = self._free.get(key)
        if free is None:
            if len(self._free) >= _KINDS_KEPT:
                self._free.pop(next(iter(self._free)), None)
            free = self._free.setdefault(key, deque())
        buffer: np.ndarray[Any, Any]
        try:
            buffer = free.pop()
        except IndexError:
            buffer = np.empty(*key)
        plain = native and value.flags.c_contiguous and value.dtype.char in _BYTES
        if plain and 0 < value.nbytes <= _BRIEF:
            target: Any = buffer
            source: Any = value
            memoryview(target).cast("B")[:] = memoryview(source).cast("B")
        else:
            np.copyto(buffer, value)
        buffers.append(buffer)
        return buffer

    def _ort_value(self, value: onnxruntime.OrtValue, buffers: list[np.ndarray[Any, Any]]) -> Any:
        if not value.is_tensor() or value.data_type() == "tensor(string)":
            return value  # a sequence, a map or strings, which are immutable from Python
        if value.data_type() in _AS_BITS:
            return _copied_bits(value)
        # numpy() of a value in other memory is already a copy; a second one does no harm.
        return onnxruntime.OrtValue.ortvalue_from_numpy(self._array(value.numpy(), buffers))


#: Types that numpy lacks, with their element size in bytes.
_AS_BITS = {
    "tensor(bfloat16)": 2,
    "tensor(float8e4m3fn)": 1,
    "tensor(float8e4m3fnuz)": 1,
    "tensor(float8e5m2)": 1,
    "tensor(float8e5m2fnuz)": 1,
}


def _copied_bits(value: onnxruntime.OrtValue) -> Any:
    import ctypes

    size = _AS_BITS[value.data_type()]
    bits = np.empty(value.shape(), f"u{size}")
    ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, value.element_type())
