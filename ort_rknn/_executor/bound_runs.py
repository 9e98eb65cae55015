"""Runs with an input or output in memory shared with the NPU.

Tensors that fit are bound, and nothing is copied for them. Others take the usual path; these are counted by reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from .._errors import RUNTIME_EXCEPTION, ort_error
from .._tensors import DTYPES
from ..adapter.contract import NotBindable, Region
from ..adapter.optional import BindsBuffers
from .buffers import Entry, Strided, table
from .ports import Port
from .signature import Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .._tensors import Shape
    from .calls import Call
    from .lanes import Lease

_Uses = list[tuple[Entry, int, int, bool]]
Usual = Callable[["Lease", "Call", Sequence[int], Sequence[int]], None]


def serve(
    signature: Signature, lease: Lease, call: Call, inputs: Sequence[int], outputs: Sequence[int], usual: Usual
) -> None:
    """Run ``call`` on ``lease``, as ``usual`` would.

    Raises RuntimeException if another run is writing memory that this one uses, or reading memory that this one writes.
    """
    uses: _Uses = []
    odd: list[str] = []
    reads, writes = call.input_dtypes(signature), call.output_dtypes(signature)
    sources = _places(signature.inputs, reads, call.inputs, inputs, uses, odd, writes=False)
    targets = _places(signature.outputs, writes, call.outputs, outputs, uses, odd, writes=True)
    if not uses:
        usual(lease, call, inputs, outputs)
        return
    if not table.begin(uses):
        raise ort_error(
            RUNTIME_EXCEPTION,
            "an input or output lies in NPU memory that another run is using at the moment: wait for its result, or "
            "use another buffer",
        )
    try:
        reason = odd[0] if odd else _why_not(signature, lease, call) or _overlap(uses)
        if not reason:
            try:
                binds = cast(BindsBuffers, lease.context)
                lease.buffer_runs.copied += binds.run_bound(call.form, sources, targets)
                lease.buffer_runs.bound += 1
                return
            except NotBindable as error:
                reason = str(error)
        lease.buffer_runs.count_usual(reason)
        gathered = [_gathered(dtype, shape, at) for dtype, shape, at in zip(reads, call.inputs, inputs)]
        addresses = [at if array is None else array.ctypes.data for array, at in zip(gathered, inputs)]
        usual(lease, call, addresses, outputs)
    finally:
        table.end(uses)


def _places(
    ports: Sequence[Port],
    dtypes: Sequence[str],
    shapes: Sequence[Shape],
    addresses: Sequence[int],
    uses: _Uses,
    odd: list[str],
    *,
    writes: bool,
) -> list[int | Region]:
    places: list[int | Region] = []
    for port, dtype, shape, address in zip(ports, dtypes, shapes, addresses):
        size = math.prod(shape) * DTYPES[dtype][1]
        entry = table.find(address, size)
        if entry is None or not size:
            places.append(address)
            continue
        offset = address - entry.buffer.address
        pitch = 0
        if _is_strided(entry, dtype, shape, offset):
            assert entry.strided is not None
            pitch = _row_pitch(entry.strided)
            if not pitch or writes:
                odd.append(f"{'output' if writes else 'input'} {port.name!r} has strides {entry.strided.strides}")
            size = entry.buffer.nbytes - offset
        uses.append((entry, offset, offset + size, writes))
        places.append(Region(entry.buffer, offset, pitch))
    return places


def _is_strided(entry: Entry, dtype: str, shape: Shape, offset: int) -> bool:
    """Whether this is the tensor for which ``from_dmabuf`` was given strides."""
    lies = entry.strided
    return lies is not None and (lies.offset, lies.shape, lies.dtype) == (offset, shape, dtype)


def _row_pitch(lies: Strided) -> int:
    """Bytes between rows, if nothing else is padded or there is only one image; 0 otherwise."""
    if len(lies.shape) != 4:
        return 0
    (n, h, w, c), (image, row, pixel, value) = lies.shape, lies.strides
    itemsize = DTYPES[lies.dtype][1]
    packed = value == itemsize and pixel == c * itemsize and row >= w * pixel
    return row if packed and (n == 1 or image == h * row) else 0


def _overlap(uses: _Uses) -> str:
    """The NPU writes outputs while it may still read inputs; the usual way has copies of both."""
    for k, (entry, first, end, writes) in enumerate(uses):
        for other, f, e, w in uses[:k]:
            if entry is other and first < e and f < end and (writes or w):
                return "an output lies in the memory of an input or of another output"
    return ""


def _why_not(signature: Signature, lease: Lease, call: Call) -> str:
    if not hasattr(lease.context, "run_bound"):
        return "the adapter does not bind memory"
    if call.direct:
        return ""
    for what, ports in (("input", signature.inputs), ("output", signature.outputs)):
        for port in ports:
            if not port.on_npu:
                return f"{what} {port.name!r} is not in the compiled model"
            if port.converts:
                return f"{what} {port.name!r} is converted above the runtime"
    return "the shape is not the compiled one, or inputs and outputs have another order in the compiled model"


def _gathered(dtype: str, shape: Shape, address: int) -> NDArray[np.generic] | None:
    """A contiguous copy of an input with its own strides, which the usual path does not support; None for others."""
    entry = table.find(address, 1)
    if entry is None or not _is_strided(entry, dtype, shape, address - entry.buffer.address):
        return None
    from ..adapter.addresses import array_at

    assert entry.strided is not None
    whole = array_at(entry.buffer.address, (entry.buffer.nbytes,), "uint8")
    array: NDArray[np.generic] = np.ndarray(shape, dtype, whole.data, entry.strided.offset, entry.strided.strides)
    return np.ascontiguousarray(array)
