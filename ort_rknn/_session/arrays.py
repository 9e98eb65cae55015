"""Arrays in memory that the NPU reads and writes directly."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np

from .._errors import NpuUnavailable
from .._executor.allocation import allocate
from .._executor.buffers import Strided, map_buffer, size_of
from .._tensors import DTYPE_OF_TYPE, DTYPES

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from .._executor.ports import Port
    from .._executor.signature import Signature
    from ..adapter.plugins import Found
    from .state import State


def empty(
    shape: int | Sequence[int], dtype: DTypeLike = np.float32, *, device: str | None = None, cached: bool = True
) -> NDArray[Any]:
    """A new array in memory that the NPU reads and writes directly. Otherwise an ordinary numpy array, initially zero.

    Feed it or bind it as an output like any array; views of it work too. ``device`` is as the provider option
    ``device``; None: the device that a session would use. ``cached``: the CPU caches the memory, and runs keep the
    cache coherent. Uncached, every CPU access goes to memory, which suits buffers that only other hardware touches. The
    memory lives as long as the array or a view of it.

    Raises NpuUnavailable if there is no such device, Fail if it cannot allocate the memory (the message says what was
    tried), ValueError for a negative shape or one without elements.
    """
    kind = np.dtype(dtype)
    dims = _dims(shape)
    size = _bytes(dims, kind)
    array: NDArray[Any] = allocate(_device(device), size, cached=cached)[:size].view(kind).reshape(dims)
    return array


def _dims(shape: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, ...]:
    """As numpy takes it: TypeError for 1.5."""
    return (index(shape),) if isinstance(shape, SupportsIndex) else tuple(map(index, shape))


def from_dmabuf(
    fd: int,
    shape: int | Sequence[int],
    dtype: DTypeLike,
    offset: int = 0,
    strides: Sequence[int] | None = None,
) -> NDArray[Any]:
    """An array over an existing dma-buf, for example from a camera, a decoder or RGA.

    ``offset``: bytes from the start of the buffer. ``strides``: bytes per axis as in numpy, for rows or planes with
    padding (pitch, vertical stride); None: contiguous. ``fd`` is duplicated, so the caller may close it at once. The
    array is read-only if the descriptor is. The mapping lives as long as the array or a view of it.

    onnxruntime copies a non-contiguous array before a run. ``io_binding.bind_input(name, "cpu", 0, array.dtype,
    array.shape, array.ctypes.data)`` passes its address instead, and the strides are honored.

    Raises OSError for a descriptor that is closed or cannot be mapped, ValueError for a tensor that does not lie within
    the buffer, for negative strides, and for a shape without elements.
    """
    kind = np.dtype(dtype)
    dims = _dims(shape)
    size = _bytes(dims, kind)
    steps = None if strides is None else tuple(map(index, strides))
    if steps is not None:
        if len(steps) != len(dims) or any(step < 0 for step in steps):
            raise ValueError(f"strides must be one number of bytes >= 0 for each of {len(dims)} axes; got {steps}")
        size = sum((n - 1) * step for n, step in zip(dims, steps)) + kind.itemsize
    if offset < 0:
        raise ValueError(f"offset must be >= 0; got {offset}")
    there = size_of(fd)
    if offset + size > there:
        raise ValueError(
            f"the buffer has {there} bytes, but shape {list(dims)} of {kind.name} at offset {offset}"
            f"{'' if steps is None else f' with strides {steps}'} ends at byte {offset + size}"
        )
    lies = None
    if steps is not None and steps != _packed(dims, kind.itemsize):
        lies = Strided(offset, dims, kind.name, steps)
    whole = map_buffer(os.dup(fd), there, lies)
    array: NDArray[Any] = np.ndarray(dims, kind, cast(Any, whole), offset, steps)
    return array


def session_buffers(inputs: Sequence[Any], state: State | None, n: int) -> list[dict[str, NDArray[Any]]]:
    """See :meth:`ort_rknn.InferenceSession.buffers`. ``inputs``: the session's ``get_inputs()``."""
    if n < 1:
        raise ValueError(f"the number of sets must be at least 1; got {n}")
    executor = state.executor if state is not None else None
    found = state.plan.found if state is not None and state.plan is not None and state.executors else None
    compiled = {} if executor is None else dict(zip(_names(executor.signature), executor.signature.sets[0]))
    stored = {} if executor is None else {port.name: port for port in executor.signature.inputs}
    sets: list[dict[str, NDArray[Any]]] = []
    for _ in range(n):
        one: dict[str, NDArray[Any]] = {}
        for value in inputs:
            kind = DTYPE_OF_TYPE.get(value.type)
            if kind is None:
                raise ValueError(f"input {value.name!r} is {value.type}: buffers hold tensors of numbers")
            shape = compiled.get(value.name) or tuple(d if isinstance(d, int) else 1 for d in value.shape)
            if found is None:
                one[value.name] = np.zeros(shape, kind)
                continue
            size = _bytes(shape, np.dtype(kind))
            memory = allocate(found, max(size, _room(stored.get(value.name))), cached=True)
            one[value.name] = memory[:size].view(kind).reshape(shape)
        sets.append(one)
    return sets


def _room(port: Port | None) -> int:
    """The bytes that a runtime may ask for: the size of the compiled type, with padding of blocks and rows."""
    if port is None:
        return 0
    native = port.native.nbytes if port.native is not None else 0
    return max(native, math.prod(port.info.shape) * DTYPES.get(port.info.dtype, (0, 4))[1])


def _names(signature: Signature) -> list[str]:
    return [port.name for port in signature.inputs]


def _device(name: str | None) -> Found:
    from .._options import Options
    from .._planning.discovery import query_for, survey

    report = survey(query_for(Options(device=name)))
    if not report.found:
        absence = report.why_none()
        raise NpuUnavailable(f"no NPU memory, because there is no NPU: {absence}".rstrip(".") + ".")
    return report.found[0]


def _bytes(dims: Sequence[int], kind: np.dtype[Any]) -> int:
    if any(n < 0 for n in dims) or kind.hasobject or kind.kind in "USmM":
        raise ValueError(f"NPU memory holds numbers, in a shape of lengths >= 1; got {list(dims)} of {kind}")
    size = kind.itemsize
    for n in dims:
        size *= n
    if not size:
        raise ValueError(f"shape {list(dims)} of {kind} has no elements")
    return size


def _packed(dims: Sequence[int], itemsize: int) -> tuple[int, ...]:
    steps: list[int] = []
    step = itemsize
    for n in reversed(dims):
        steps.insert(0, step)
        step *= n
    return tuple(steps)
