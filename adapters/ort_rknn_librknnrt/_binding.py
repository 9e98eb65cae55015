"""The library's functions, and one context's handle."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from ort_rknn.adapter import AdapterError

log: Final = logging.getLogger("ort_rknn.librknnrt")

_U32 = ctypes.c_uint32
_U64 = ctypes.c_uint64
_POINTER = ctypes.c_void_p

#: Arguments of the functions called at load and at close. ctypes converts and checks them.
_CHECKED: Final[dict[str, tuple[Any, ...]]] = {
    "rknn_init": (_POINTER, ctypes.c_char_p, _U32, _U32, _POINTER),
    "rknn_dup_context": (_POINTER, _POINTER),
    "rknn_destroy": (_U64,),
    "rknn_query": (_U64, ctypes.c_int32, _POINTER, _U32),
    "rknn_set_core_mask": (_U64, ctypes.c_int32),
    "rknn_set_input_shapes": (_U64, _U32, _POINTER),
    "rknn_register_custom_ops": (_U64, _POINTER, _U32),
    "rknn_create_mem": (_U64, _U32),
    "rknn_create_mem_from_fd": (_U64, ctypes.c_int32, _POINTER, _U32, ctypes.c_int32),
    "rknn_destroy_mem": (_U64, _POINTER),
    "rknn_mem_sync": (_U64, _POINTER, ctypes.c_int32),
    "rknn_set_io_mem": (_U64, _POINTER, _POINTER),
}

#: The four functions of a run. They have no ``argtypes``: passing ready-made ctypes objects then costs half as much as
#: converting integers (0.27 us against 0.6 us per call on an x86_64 machine), so the caller must pass exactly those.
_UNCHECKED: Final = ("rknn_inputs_set", "rknn_run", "rknn_outputs_get", "rknn_outputs_release")


_MEMORY: Final = (
    *("rknn_create_mem", "rknn_create_mem_from_fd"),
    *("rknn_destroy_mem", "rknn_mem_sync", "rknn_set_io_mem"),
)
#: Those that return a ``rknn_tensor_mem*``, NULL on failure.
_MAKERS: Final = _MEMORY[:2]


class MemoryFunctions(NamedTuple):
    """The functions for memory shared with the NPU. The first two return an address, or None."""

    create: Callable[..., int | None]
    from_fd: Callable[..., int | None]
    destroy: Callable[..., int]
    sync: Callable[..., int]
    set_io: Callable[..., int]


class Binding:
    """An open runtime library. Every function releases the GIL, except those of :attr:`keeping_gil`."""

    def __init__(self, path: str) -> None:
        try:
            self.library = ctypes.CDLL(path)
        except (OSError, ValueError) as error:
            raise AdapterError(f"the NPU runtime {path} cannot be opened: {error}") from error
        self.path = path
        self.init: Callable[..., int] = self._function("rknn_init")
        self.destroy: Callable[..., int] = self._function("rknn_destroy")
        self.query: Callable[..., int] = self._function("rknn_query")
        self.set_core_mask: Callable[..., int] = self._function("rknn_set_core_mask")
        self.dup_context: Callable[..., int] = self._function("rknn_dup_context")
        self.inputs_set: Callable[..., int] = self._function("rknn_inputs_set")
        self.run: Callable[..., int] = self._function("rknn_run")
        self.outputs_get: Callable[..., int] = self._function("rknn_outputs_get")
        self.outputs_release: Callable[..., int] = self._function("rknn_outputs_release")

    @functools.cached_property
    def set_input_shapes(self) -> Callable[..., int]:
        """``rknn_set_input_shapes``, which old runtimes lack; only dynamic models need it."""
        return self._function("rknn_set_input_shapes")

    @functools.cached_property
    def register_custom_ops(self) -> Callable[..., int]:
        """``rknn_register_custom_ops``, which old runtimes lack; only models with custom operators need it."""
        return self._function("rknn_register_custom_ops")

    @functools.cached_property
    def memory(self) -> MemoryFunctions:
        """The functions for memory shared with the NPU, which old runtimes lack; only bound runs need them."""
        return MemoryFunctions(*map(self._function, _MEMORY))

    @functools.cached_property
    def keeping_gil(self) -> tuple[Callable[..., int], Callable[..., int], Callable[..., int]]:
        """``rknn_inputs_set``, ``rknn_outputs_get`` and ``rknn_outputs_release`` without releasing the GIL, for buffers
        so small that releasing it costs more than the call. The runtime calls no Python from them, so they cannot block
        on a thread that needs the GIL."""
        library = ctypes.PyDLL(self.path, handle=self.library._handle)
        set_, get, release = (
            self._function(name, library) for name in ("rknn_inputs_set", "rknn_outputs_get", "rknn_outputs_release")
        )
        return set_, get, release

    def _function(self, name: str, library: ctypes.CDLL | None = None) -> Callable[..., int]:
        try:
            function = (library or self.library)[name]
        except AttributeError as error:
            raise AdapterError(f"{self.path} is not a usable RKNN runtime: it has no function {name}") from error
        function.restype = ctypes.c_void_p if name in _MAKERS else ctypes.c_int
        if name in _CHECKED:
            function.argtypes = _CHECKED[name]
        else:
            assert name in _UNCHECKED
        return function


class Handle:
    """One ``rknn_context``, and its current shape set: None until one was set, or if setting one failed.

    It belongs to the process that created it: a forked child shares the driver's file handle, and would end the
    parent's context.
    """

    __slots__ = ("process", "shape_set", "value")

    def __init__(self, value: int) -> None:
        self.value = value
        self.process = os.getpid()
        self.shape_set: int | None = None


def destroy(binding: Binding, handles: list[Handle]) -> None:
    """Destroy every context of the list, last first: duplicates before the context that they share with."""
    while handles:
        destroy_one(binding, handles.pop())


def destroy_one(binding: Binding, handle: Handle) -> None:
    """Destroy one context, in the process that created it. A failure can only be logged."""
    if handle.process != os.getpid():
        return
    code = binding.destroy(handle.value)
    if code:
        log.warning("rknn_destroy failed with %d: the context's memory may stay in use until the process ends", code)
