"""Allocates memory shared with the NPU, through the adapter of a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from .._errors import FAIL, ort_error
from ..adapter.contract import AdapterError, Device
from ..adapter.optional import AllocatesBuffers
from .buffers import map_buffer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..adapter.plugins import Found

_PAGE = 4096


def allocate(found: Found, size: int, *, cached: bool = True) -> NDArray[np.uint8]:
    """At least ``size`` bytes of a device's memory, registered for runs. Raises Fail if it cannot be allocated."""
    adapter = found.adapter
    if not hasattr(adapter, "allocate"):
        raise ort_error(FAIL, f"the adapter {adapter.name} of device {found.device.name} does not provide NPU memory")
    room = -(-size // _PAGE) * _PAGE
    try:
        fd = cast(AllocatesBuffers, adapter).allocate(found.device, room, cached=cached)
    except AdapterError as error:
        raise ort_error(FAIL, f"no NPU memory of {size} bytes on device {found.device.name}: {error}") from error
    return map_buffer(fd, room)


def allocate_on(device: Device, size: int) -> NDArray[np.uint8]:
    """As :func:`allocate`, for a device whose adapter is not known yet."""
    from ..adapter.plugins import Found, adapters

    return allocate(Found(device, adapters()[device.adapter]), size)
