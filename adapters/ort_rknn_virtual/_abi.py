"""The virtual NPU's control functions, declared for ctypes. They are documented in ``c/rknn_virtual.h``."""

from __future__ import annotations

import ctypes
import os

from ort_rknn.adapter import AdapterError

_U32 = ctypes.c_uint32
_U64 = ctypes.c_uint64
_I32 = ctypes.c_int32


class TensorStruct(ctypes.Structure):
    """``rknn_virtual_tensor``: what a compute callback reads or fills."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", _I32),
        ("n_dims", _U32),
        ("dims", _U32 * 16),
        ("data", ctypes.c_void_p),
        ("nbytes", _U64),
    )


class RawEvent(ctypes.Structure):
    """``rknn_virtual_event``."""

    _fields_ = (
        ("sequence", _U64),
        ("called", _U64),
        ("start", _U64),
        ("end", _U64),
        ("context", _U64),
        ("address", _U64),
        ("nbytes", _U64),
        ("kind", _I32),
        ("code", _I32),
        ("core_mask", _U32),
        ("index", _U32),
        ("thread", _U32),
        ("reserved", _U32),
    )


class RawCounters(ctypes.Structure):
    """``rknn_virtual_counters``."""

    _fields_ = (
        ("contexts", _U64),
        ("models", _U64),
        ("weight_bytes", _U64),
        ("mems", _U64),
        ("outputs", _U64),
        ("input_bytes", _U64),
        ("misuses", _U64),
        ("events", _U64),
        ("runs", _U64 * 8),
    )


#: ``rknn_virtual_compute``
COMPUTE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, _U32, ctypes.POINTER(TensorStruct), _U32, ctypes.POINTER(TensorStruct)
)
#: ``RKNN_VIRTUAL_TICKET``
TICKET = ctypes.c_void_p(-1)

_FUNCTIONS = {
    "rknn_virtual_set_compute": (ctypes.c_int, (_U64, COMPUTE, ctypes.c_void_p)),
    "rknn_virtual_soc": (ctypes.c_char_p, ()),
    "rknn_virtual_cores": (_U32, ()),
    "rknn_virtual_set_run_time_us": (ctypes.c_int, (ctypes.c_double,)),
    "rknn_virtual_run_time_us": (ctypes.c_double, ()),
    "rknn_virtual_set_core_factor": (ctypes.c_int, (_U32, ctypes.c_double)),
    "rknn_virtual_set_tp_efficiency": (ctypes.c_int, (ctypes.c_double,)),
    "rknn_virtual_set_attr_follows": (ctypes.c_int, (ctypes.c_int,)),
    "rknn_virtual_dmabuf": (_I32, (_U64,)),
    "rknn_virtual_fault": (ctypes.c_int, (ctypes.c_char_p, ctypes.c_int, _U32, _U32, ctypes.c_int64, _U64)),
    "rknn_virtual_clear_faults": (None, ()),
    "rknn_virtual_events": (_U32, (_U64, ctypes.POINTER(RawEvent), _U32)),
    "rknn_virtual_kind": (ctypes.c_char_p, (_I32,)),
    "rknn_virtual_message": (ctypes.c_char_p, ()),
    "rknn_virtual_get_counters": (None, (ctypes.POINTER(RawCounters),)),
    "rknn_virtual_reset": (None, ()),
}


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the types of an open library's control functions. AdapterError if it is not a virtual NPU."""
    for name, (result, arguments) in _FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise AdapterError(f"{library._name} is not a virtual NPU: it has no function {name}") from error
        function.restype = result
        function.argtypes = arguments
    return library


class _OpenLibrary:
    """A library that this process has opened. It stays open."""

    __slots__ = ("identity", "library", "requests")

    def __init__(self, identity: tuple[int, ...], library: ctypes.CDLL) -> None:
        self.identity, self.library = identity, library
        self.requests: set[Request] = set()
        """The requests that :func:`remember` recorded for it."""

    def is_at(self, path: str) -> bool:
        """Whether the file at ``path`` is still the one that was opened."""
        try:
            return self.identity == _identity(path)
        except OSError:
            return False


#: What a library was chosen by: the SoC, the cache folder, and the environment that selects the compiler.
Request = tuple[str | None, ...]
#: By path.
_open: dict[str, _OpenLibrary] = {}


def open_library(path: str) -> ctypes.CDLL:
    """Open a virtual NPU. Opening the same file twice in a process gives the same NPU. AdapterError if it does not
    open."""
    try:
        identity = _identity(path)
        known = _open.get(path)
        if known is None or known.identity != identity:
            known = _open[path] = _OpenLibrary(identity, declare(ctypes.CDLL(path)))
    except OSError as error:
        raise AdapterError(
            f"the virtual NPU {path} cannot be opened: {error}. Delete this file: it is compiled again"
        ) from error
    return known.library


def is_open(path: str) -> bool:
    """Whether this process has opened the file that is at ``path`` now."""
    known = _open.get(path)
    return known is not None and known.is_at(path)


def remember(path: str, request: Request) -> None:
    """Record that the library at ``path`` was chosen for ``request``, if it is open."""
    for one in list(_open.values()):
        one.requests.discard(request)
    if is_open(path):
        _open[path].requests.add(request)


def open_for(request: Request) -> str | None:
    """The path of the open library that was recorded for ``request``, if its file is unchanged; else None."""
    return next((path for path, one in list(_open.items()) if request in one.requests and one.is_at(path)), None)


def _identity(path: str) -> tuple[int, ...]:
    """Changes if the file is replaced, written, or gets another owner or mode."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def set_compute(library: ctypes.CDLL, context: int, callback: object) -> int:
    """``rknn_virtual_set_compute`` of a library that was opened elsewhere."""
    function = library["rknn_virtual_set_compute"]
    function.restype, function.argtypes = _FUNCTIONS["rknn_virtual_set_compute"]
    code: int = function(context, callback, TICKET)
    return code
