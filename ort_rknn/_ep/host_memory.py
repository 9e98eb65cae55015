"""NPU memory in onnxruntime's own terms: an allocator of host-accessible memory for OrtValues.

    ep_device.memory_info(onnxruntime.OrtDeviceMemoryType.HOST_ACCESSIBLE)

It is declared as CPU memory with our vendor id, so that ``numpy()`` is a view, and ``update_inplace`` and DLPack work.
There is no DEFAULT allocator, because onnxruntime would copy every ordinary input into it.
"""

from __future__ import annotations

import ctypes
import logging
from ctypes import CFUNCTYPE, c_int32, c_size_t, c_void_p
from typing import Any

import numpy as np

from .._executor.allocation import allocate_on
from .._interrupts import covered, is_from_a_handler, raised_after
from ..adapter.contract import Device
from . import abi
from .abi import Api
from .callbacks import keep_forever, quiet

log = logging.getLogger("ort_rknn")

P = c_void_p
_NAME = b"RknnHostAccessible"
_CPU, _HOST_ACCESSIBLE, _DEVICE_ALLOCATOR = 0, 5, 0
_ALIGNMENT = 4096
#: Python's onnxruntime creates OrtValues in such memory since this release.
SINCE = (1, 28)


class _Allocator:
    """The allocator of one device. Never freed, nor is its memory info: onnxruntime refers to them until it ends."""

    def __init__(self, device: Device, info: int) -> None:
        self.device = device
        self.info = info
        self.table = abi.OrtAllocator()
        self.table.ort_version_supported = abi.ABI
        for slot, callback in _callbacks.items():
            setattr(self.table, slot, ctypes.cast(callback, c_void_p).value)


#: By device number, and also by the table's address.
_by_number: dict[int, _Allocator] = {}
_by_address: dict[int, _Allocator] = {}
#: Arrays in use, by address.
_arrays: dict[int, np.ndarray[Any, Any]] = {}


def offer(api: Api, ep_device: int, device: Device, vendor: int) -> None:
    """Advertise such memory for the OrtEpDevice, if this onnxruntime can use it and the adapter has it."""
    from ..adapter.plugins import adapters

    adapter = adapters().get(device.adapter)
    if api.minor() < SINCE or adapter is None or not hasattr(adapter, "allocate"):
        return
    number = next((k for k, known in _by_number.items() if known.device == device), len(_by_number))
    known = _by_number.get(number)
    if known is None:
        info = api.pointer(
            "CreateMemoryInfo_V2", _NAME, _CPU, vendor, number, _HOST_ACCESSIBLE, _ALIGNMENT, _DEVICE_ALLOCATOR
        )
        assert info
        known = _by_number[number] = _Allocator(device, info)
        keep_forever(known)
        _by_address[ctypes.addressof(known.table)] = known
    api.check(api.EpDevice_AddAllocatorInfo(ep_device, known.info))


def create_allocator(api: Api, info: int, out: int) -> None:
    """The factory's CreateAllocator."""
    number = c_int32()
    api.check(api.MemoryInfoGetId(info, ctypes.byref(number)))
    c_void_p.from_address(out).value = ctypes.addressof(_by_number[number.value].table)


def _array(this: int, size: int) -> np.ndarray[Any, Any]:
    """NPU memory, or ordinary memory if it cannot be allocated: onnxruntime does not check whether it got any."""
    try:
        return allocate_on(_by_address[this].device, max(size, 1))
    except Exception as error:
        log.error("an OrtValue is made in ordinary memory, which every run copies: %s", error)
        return np.zeros(max(size, 1), np.uint8)


def _kept(array: np.ndarray[Any, Any]) -> int:
    address = array.ctypes.data
    _arrays[address] = array
    return address


@covered
def _alloc(this: int, size: int) -> int:
    try:
        return _kept(_array(this, size))
    except BaseException as error:
        address = _kept(np.zeros(max(size, 1), np.uint8))
        return raised_after(error, address) if is_from_a_handler(error) else address


def _free(this: int, address: int | None) -> None:
    _arrays.pop(address or 0, None)


@covered
def _info(this: int) -> int:
    try:
        return _by_address[this].info
    except BaseException as error:
        info = _by_address[this].info
        return raised_after(error, info) if is_from_a_handler(error) else info


_callbacks: dict[str, Any] = {
    "Alloc": CFUNCTYPE(P, P, c_size_t)(_alloc),
    "Free": CFUNCTYPE(None, P, P)(quiet(_free)),
    "Info": CFUNCTYPE(P, P)(_info),
}
#: Allocators are never freed: there is nothing to release.
release_allocator = CFUNCTYPE(None, P, P)(quiet(lambda this, allocator: None))

for _thing in (_callbacks, release_allocator, _by_number, _by_address, _arrays):
    keep_forever(_thing)
