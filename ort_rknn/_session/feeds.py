"""Copies of feeds, made at the call: the caller may change its arrays at once, as a camera loop does."""

from __future__ import annotations

import copy
import math
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from .._executor.buffers import table

#: The number of combinations of shape and dtype for which buffers are kept.
_POOLS_KEPT = 16
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

    __slots__ = ("_buffers", "nbytes", "values")

    def __init__(self, values: Any, buffers: list[_Used] | None = None, nbytes: int = 0) -> None:
        self.values = values
        self._buffers = buffers
        self.nbytes = nbytes
        """Of its buffers."""

    def without(self, results: list[Any]) -> list[Any]:
        """``results``, with copies of those that lie in one of the buffers, which happens if a model's output is its
        input. Before 1.24, onnxruntime returns such a result without a reference to the array that it lies in."""
        if self._buffers and isinstance(results, list):
            for place, result in enumerate(results):
                if isinstance(result, np.ndarray):
                    for buffer, _ in self._buffers:
                        if np.may_share_memory(result, buffer.array):
                            results[place] = result.copy()
                            break
        return results

    def give_back(self) -> None:
        """Return the buffers after the call. A buffer that is still referenced is not reused: by a result of a model
        whose output is its input, by an exception's traceback, or by a subclass that keeps its feeds."""
        self.values = None
        buffers, self._buffers = self._buffers, None
        while buffers:
            buffer, pool = buffers.pop()
            if sys.getrefcount(buffer.array) == buffer.references and len(pool.free) < pool.kept:
                pool.free.append(buffer)


class _PooledArray:
    """An array of a pool. ``view``: its bytes, if copies go through them (see :data:`_BRIEF`)."""

    __slots__ = ("array", "references", "view")

    def __init__(self, pool: _ArrayPool) -> None:
        self.array: np.ndarray[Any, Any] = np.empty(*pool.form)
        self.view = memoryview(self.array).cast("B") if pool.brief else None  # type: ignore[arg-type]
        self.references = sys.getrefcount(self.array)
        """References to the array while only this object has it."""


class _ArrayPool:
    """Arrays of one shape and dtype that are free, and what depends on these two alone."""

    __slots__ = ("brief", "form", "free", "kept", "nbytes")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], kept: int) -> None:
        self.form = (shape, dtype if dtype.isnative else dtype.newbyteorder("="))
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.brief = dtype.isnative and dtype.char in _BYTES and 0 < self.nbytes <= _BRIEF
        self.kept = kept
        self.free: deque[_PooledArray] = deque()


#: An array in use, and the pool that it goes back to.
_Used = tuple[_PooledArray, _ArrayPool]


class Buffers:
    """Pools of arrays, one per shape and dtype: fresh pages cost as much as the copy. Thread-safe.

    ``kept``: the number of arrays kept for each shape and dtype.
    """

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._pools: dict[tuple[tuple[int, ...], np.dtype[Any]], _ArrayPool] = {}

    def copy(self, feed: Any) -> Feed:
        """A copy of a feed: dict, arrays, lists and OrtValues. Anything else is returned as is, for ``run`` to
        reject."""
        if type(feed) is not dict and not isinstance(feed, Mapping):
            return Feed(feed)
        buffers: list[_Used] = []
        values = {name: self._copied(value, buffers) for name, value in feed.items()}
        nbytes = 0
        for _, pool in buffers:
            nbytes += pool.nbytes
        return Feed(values, buffers, nbytes)

    def _copied(self, value: Any, buffers: list[_Used]) -> Any:
        if isinstance(value, np.ndarray):
            return self._array(value, buffers)
        if isinstance(value, onnxruntime.OrtValue):
            return self._ort_value(value, buffers)
        try:
            return copy.deepcopy(value)
        except Exception:  # it cannot be copied; pass it on as is, in case it can be run
            return value

    def _array(self, value: np.ndarray[Any, Any], buffers: list[_Used]) -> np.ndarray[Any, Any]:
        if table:
            table.find(value.__array_interface__["data"][0], 1)  # raises if its memory is gone
        pool = self._pools.get((value.shape, value.dtype))
        if pool is None:
            if value.dtype.kind not in _PLAIN:
                return np.array(value)
            pool = self._pool(value.shape, value.dtype)
        try:
            buffer = pool.free.pop()
        except IndexError:
            buffer = _PooledArray(pool)
        array, view = buffer.array, buffer.view
        if view is not None and value.flags.c_contiguous:
            view[:] = memoryview(value).cast("B")  # type: ignore[arg-type]
        else:
            np.copyto(array, value)
        buffers.append((buffer, pool))
        return array

    def _pool(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _ArrayPool:
        if len(self._pools) >= _POOLS_KEPT:
            self._pools.pop(next(iter(self._pools)), None)
        return self._pools.setdefault((shape, dtype), _ArrayPool(shape, dtype, self._kept))

    def _ort_value(self, value: onnxruntime.OrtValue, buffers: list[_Used]) -> Any:
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
