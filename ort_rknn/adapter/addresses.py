"""Arrays over the addresses that a run is given."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def array_at(address: int, shape: Sequence[int], dtype: str) -> NDArray[np.generic]:
    """The C-contiguous buffer at ``address`` as an array, without a copy: writing to the array writes to the buffer.

    ``dtype`` is numpy's name for it. The array is valid as long as the buffer is, which in a run is until
    :meth:`Context.run` returns. Never keep one.
    """
    kind = np.dtype(dtype)
    count = math.prod(shape)
    if count == 0:
        return np.empty(tuple(shape), kind)
    raw = (ctypes.c_char * (count * kind.itemsize)).from_address(address)
    array: NDArray[np.generic] = np.frombuffer(memoryview(raw), kind).reshape(tuple(shape))
    return array
