"""The part of onnxruntime's C ABI for plugin providers that is needed here: slots, structures, calls.

Slot numbers and signatures are those of ABI 23 (onnxruntime 1.23). Tables only grow, so all later releases support
them.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import c_char_p, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

from .._errors import FAIL
from .support import is_development_build

ABI = 23
#: Declared in a session's table if onnxruntime is at least as new, which makes it look for a profiler.
ABI_WITH_PROFILER = 25
P = c_void_p


class OrtCallFailed(Exception):
    """An OrtApi function returned a status. ``code`` is onnxruntime's."""

    def __init__(self, message: str, code: int = FAIL) -> None:
        super().__init__(message)
        self.code = code


class _Symbol(ctypes.Structure):
    """Dl_info of ``dladdr``."""

    _fields_ = (("file", c_char_p), ("base", c_void_p), ("name", c_char_p), ("address", c_void_p))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _is_in_a_library(address: int) -> bool:
    """Whether the address is one of a loaded library, as those of functions and tables are."""
    return bool(_libc().dladdr(c_void_p(address), ctypes.byref(_Symbol())))


_SPARE = 64


def _table(*names: str) -> type[ctypes.Structure]:
    fields: list[tuple[str, Any]] = [("ort_version_supported", c_uint32)]
    fields += [(name, c_void_p) for name in names]
    # Later releases of onnxruntime read slots beyond those of ABI 23 without checking the version (1.26: slot 13 of the
    # factory). They must contain zero, which means "not implemented", or a function.
    fields.append(("spare", c_void_p * _SPARE))
    return type("Table", (ctypes.Structure,), {"_fields_": fields})


OrtEpFactory = _table(
    "GetName",
    "GetVendor",
    "GetSupportedDevices",
    "CreateEp",
    "ReleaseEp",
    "GetVendorId",
    "GetVersion",
    "ValidateCompiledModelCompatibilityInfo",
    "CreateAllocator",
    "ReleaseAllocator",
    "CreateDataTransfer",
    "IsStreamAware",
    "CreateSyncStreamForDevice",
    "GetHardwareDeviceIncompatibilityDetails",
)
OrtEp = _table(
    "GetName",
    "GetCapability",
    "Compile",
    "ReleaseNodeComputeInfos",
    "GetPreferredDataLayout",
    "ShouldConvertDataLayoutForOp",
    "SetDynamicOptions",
    "OnRunStart",
    "OnRunEnd",
    "CreateAllocator",
    "CreateSyncStreamForDevice",
    "GetCompiledModelCompatibilityInfo",
    "GetKernelRegistry",
    "IsConcurrentRunSupported",
    "Sync",
    "CreateProfiler",
)
OrtAllocator = _table("Alloc", "Free", "Info", "Reserve", "GetStats", "AllocOnStream", "Shrink")
OrtEpProfilerImpl = _table("Release", "StartProfiling", "StartEvent", "StopEvent", "EndProfiling")
OrtNodeComputeInfo = _table("CreateState", "Compute", "ReleaseState")


class OrtNodeFusionOptions(ctypes.Structure):
    """How a group of nodes is fused."""

    _fields_ = (
        ("ort_version_supported", c_uint32),
        ("drop_constant_initializers", ctypes.c_bool),
        ("spare", c_void_p * 8),
    )


#: Short getters keep the GIL (releasing it costs more than the call). It is released for calls in which onnxruntime may
#: wait for its allocator while the allocator's owner logs to Python.
_keep = ctypes.PYFUNCTYPE
_release = ctypes.CFUNCTYPE

_API = {
    "CreateStatus": (0, _keep(P, c_int32, c_char_p)),
    "GetErrorMessage": (2, _keep(c_char_p, P)),
    "GetErrorCode": (1, _keep(c_int32, P)),
    "CreateRunOptions": (39, _keep(P, P)),
    "RunOptionsSetTerminate": (46, _keep(P, P)),
    "RunOptionsUnsetTerminate": (47, _keep(P, P)),
    "GetTensorMutableData": (51, _keep(P, P, P)),
    "MemoryInfoGetId": (72, _keep(P, P, P)),
    "CastTypeInfoToTensorInfo": (55, _keep(P, P, P)),
    "GetTensorElementType": (60, _keep(P, P, P)),
    "GetDimensionsCount": (61, _keep(P, P, P)),
    "GetDimensions": (62, _keep(P, P, P, c_size_t)),
    "GetTensorTypeAndShape": (65, _keep(P, P, P)),
    "KernelContext_GetInput": (90, _keep(P, P, c_size_t, P)),
    "KernelContext_GetOutput": (91, _release(P, P, c_size_t, P, c_size_t, P)),
    "ReleaseStatus": (93, _keep(None, P)),
    "ReleaseRunOptions": (97, _keep(None, P)),
    "ReleaseTensorTypeAndShapeInfo": (99, _keep(None, P)),
    "AddRunConfigEntry": (165, _keep(P, P, c_char_p, c_char_p)),
    "CreateOpAttr": (211, _keep(P, c_char_p, P, c_int32, c_int32, P)),
    "ReleaseOpAttr": (212, _keep(None, P)),
    "ReadOpAttr": (272, _keep(P, P, c_int32, P, c_size_t, P)),
    "GetValueInfoName": (289, _keep(P, P, P)),
    "GetValueInfoTypeInfo": (290, _keep(P, P, P)),
    "GetModelEditorApi": (291, _keep(P)),
    "CreateKeyValuePairs": (295, _keep(None, P)),
    "AddKeyValuePair": (296, _keep(None, P, c_char_p, c_char_p)),
    "GetKeyValuePairs": (298, _keep(None, P, P, P, P)),
    "ReleaseKeyValuePairs": (300, _keep(None, P)),
    "HardwareDevice_Type": (307, _keep(c_int32, P)),
    "GetEpApi": (317, _keep(P)),
    "GetTensorSizeInBytes": (318, _keep(P, P, P)),
    "CreateMemoryInfo_V2": (320, _keep(P, c_char_p, c_int32, c_uint32, c_int32, c_int32, c_size_t, c_int32, P)),
    "Graph_GetModelPath": (334, _keep(P, P, P)),
    "Graph_GetNumInputs": (338, _keep(P, P, P)),
    "Graph_GetNumNodes": (344, _keep(P, P, P)),
    "Graph_GetNodes": (345, _keep(P, P, P, c_size_t)),
    "Graph_GetParentNode": (346, _keep(P, P, P)),
    "Node_GetName": (349, _keep(P, P, P)),
    "Node_GetOperatorType": (350, _keep(P, P, P)),
    "Node_GetDomain": (351, _keep(P, P, P)),
    "Node_GetNumInputs": (353, _keep(P, P, P)),
    "Node_GetInputs": (354, _keep(P, P, P, c_size_t)),
    "Node_GetNumOutputs": (355, _keep(P, P, P)),
    "Node_GetOutputs": (356, _keep(P, P, P, c_size_t)),
    "Node_GetAttributeByName": (361, _keep(P, P, c_char_p, P)),
    "GetRunConfigEntry": (373, _keep(c_char_p, P, c_char_p)),
    "GetSessionOptionsConfigEntries": (379, _keep(P, P, P)),
}
_EP_API = {
    "CreateEpDevice": (0, _keep(P, P, P, P, P, P)),
    "EpDevice_AddAllocatorInfo": (5, _keep(P, P, P)),
    "EpGraphSupportInfo_AddNodesToFuse": (2, _keep(P, P, P, c_size_t, P)),
}
_EDITOR_API = {"CreateNode": (6, _keep(P, c_char_p, c_char_p, c_char_p, P, c_size_t, P, c_size_t, P, c_size_t, P))}
_CREATE_HARDWARE_DEVICE = (16, _keep(P, c_int32, c_uint32, c_uint32, c_char_p, P, P))
_SET_INCOMPATIBILITY = (44, _keep(P, P, c_uint32, c_int32, c_char_p))
_PROFILING_API = {
    "CreateProfilingEvent": (65, _keep(P, c_int32, c_int32, c_int32, c_char_p, c_int64, c_int64, P, P, c_size_t, P)),
    "ReleaseProfilingEvent": (66, _keep(None, P)),
    "ProfilingEventsContainer_AddEvents": (72, _keep(P, P, P, c_size_t)),
}
_NO_STATUS = {
    "CreateStatus",
    "GetErrorMessage",
    "GetErrorCode",
    "ReleaseStatus",
    "ReleaseRunOptions",
    "ReleaseTensorTypeAndShapeInfo",
    "CreateKeyValuePairs",
    "AddKeyValuePair",
    "GetKeyValuePairs",
    "ReleaseKeyValuePairs",
    "HardwareDevice_Type",
    "GetEpApi",
    "GetModelEditorApi",
    "GetRunConfigEntry",
    "ReleaseOpAttr",
}

#: OrtOpAttrType
ATTR_INT, ATTR_STRING = 1, 5


class Api:
    """The OrtApi and OrtEpApi functions of the onnxruntime that opened us.

    The methods of this class raise OrtCallFailed. The bare functions, for the hot path, return a status or NULL.

    The constructor raises OrtCallFailed if the tables look wrong. Until then it calls only the functions that create,
    read and release a status, and those that return a table.
    """

    def __init__(self, api_base: int) -> None:
        get_api_address, version_address = (c_void_p * 2).from_address(api_base)
        assert get_api_address and version_address
        get_api = _keep(P, c_uint32)(get_api_address)
        self.version: str = (_keep(c_char_p)(version_address)() or b"").decode()
        table = get_api(ABI)
        if not table:
            raise OrtCallFailed(f"onnxruntime {self.version} does not serve ABI {ABI}")
        for name, (slot, prototype) in _API.items():
            self._add(name, table, slot, prototype)
        self._try_statuses()
        ep_table = self._table("GetEpApi")
        for name, (slot, prototype) in _EP_API.items():
            self._add(name, ep_table, slot, prototype)
        editor_table = self._table("GetModelEditorApi")
        for name, (slot, prototype) in _EDITOR_API.items():
            self._add(name, editor_table, slot, prototype)
        if self.minor() >= (1, 24):
            self._add("CreateHardwareDevice", ep_table, *_CREATE_HARDWARE_DEVICE)
            self._add("DeviceEpIncompatibilityDetails_SetDetails", ep_table, *_SET_INCOMPATIBILITY)
        if self.minor() >= (1, 25):
            for name, (slot, prototype) in _PROFILING_API.items():
                self._add(name, ep_table, slot, prototype)

    def _add(self, name: str, table: int, slot: int, prototype: Any) -> None:
        address = (c_void_p * (slot + 1)).from_address(table)[slot]
        if not address or not _is_in_a_library(address):
            raise self._unlike(f"no function {name} in slot {slot}")
        setattr(self, name, prototype(address))

    def _table(self, name: str) -> int:
        table: int | None = getattr(self, name)()
        if not table or not _is_in_a_library(table):
            raise self._unlike(f"{name} gives no table")
        return table

    def _try_statuses(self) -> None:
        """Detect a table whose slots have moved while that is still harmless."""
        text = b"a trial of the tables"
        status = self.CreateStatus(FAIL, text)
        if not status or self.GetErrorCode(status) != FAIL or self.GetErrorMessage(status) != text:
            raise self._unlike("a status does not return what it was created with")
        self.ReleaseStatus(status)

    def _unlike(self, what: str) -> OrtCallFailed:
        return OrtCallFailed(
            f"the C API of onnxruntime {self.version} is not as its public headers say: {what}. "
            "Install a release of onnxruntime from 1.23.1 on"
        )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"onnxruntime {self.version} has no {name}")

    def minor(self) -> tuple[int, int]:
        """(major, minor) of the release whose functions the running onnxruntime has, at least.

        A development build may lack functions of the release to come, so it counts as the release before: 1.24.0.dev
        builds have other functions in the slots that 1.24.0 added.
        """
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor) - is_development_build()

    # Status ---------------------------------------------------------------------------------------------------

    def check(self, status: int | None) -> None:
        """Raise OrtCallFailed for a status, and release it."""
        if status:
            message = (self.GetErrorMessage(status) or b"").decode(errors="replace")
            code = self.GetErrorCode(status)
            self.ReleaseStatus(status)
            raise OrtCallFailed(message, code)

    def status(self, code: int, message: str) -> int:
        """A new status, which onnxruntime releases."""
        status: int = self.CreateStatus(code, message.replace("\0", "?").encode(errors="replace"))
        return status

    # Getters --------------------------------------------------------------------------------------------------

    def pointer(self, name: str, *args: Any) -> int | None:
        """Call a function whose last argument receives a pointer."""
        out = c_void_p()
        self.check(getattr(self, name)(*args, ctypes.byref(out)))
        return out.value

    def text(self, name: str, handle: int) -> str:
        """Call a getter whose last argument receives a C string that onnxruntime owns."""
        out = c_char_p()
        self.check(getattr(self, name)(handle, ctypes.byref(out)))
        return (out.value or b"").decode(errors="replace")

    def path(self, graph: int) -> str:
        """The file that the graph's model was loaded from; "" if it came from memory."""
        out = c_char_p()
        self.check(self.Graph_GetModelPath(graph, ctypes.byref(out)))
        return os.fsdecode(out.value or b"")

    def pointers(self, count: str, get: str, handle: int) -> list[int | None]:
        """Call a pair of functions that return a count and an array of pointers."""
        n = c_size_t()
        self.check(getattr(self, count)(handle, ctypes.byref(n)))
        array = (c_void_p * n.value)()
        if n.value:
            self.check(getattr(self, get)(handle, array, n.value))
        return list(array)

    def is_subgraph(self, graph: int) -> bool:
        """Whether the graph is the body of a node (If, Loop, Scan)."""
        if self.minor() >= (1, 24):
            return self.pointer("Graph_GetParentNode", graph) is not None
        # 1.23 has no getter for this. The branches of an If have no inputs; a whole model always has some.
        count = c_size_t()
        self.check(self.Graph_GetNumInputs(graph, ctypes.byref(count)))
        return count.value == 0

    def nodes(self, graph: int) -> list[int]:
        """The graph's nodes."""
        return [n for n in self.pointers("Graph_GetNumNodes", "Graph_GetNodes", graph) if n]

    def value_names(self, count: str, get: str, node: int) -> list[str]:
        """Names of a node's inputs or outputs; "" for an omitted one."""
        return [self.text("GetValueInfoName", v) if v else "" for v in self.pointers(count, get, node)]

    def input_names(self, node: int) -> list[str]:
        """Names of a node's inputs; "" for an omitted one."""
        return self.value_names("Node_GetNumInputs", "Node_GetInputs", node)

    def output_names(self, node: int) -> list[str]:
        """Names of a node's outputs; "" for an omitted one."""
        return self.value_names("Node_GetNumOutputs", "Node_GetOutputs", node)

    def tensor_types(self, count: str, get: str, node: int) -> dict[str, tuple[int, tuple[int, ...] | None]]:
        """Element type and dims (negative: free; None: unknown) by value name."""
        out: dict[str, tuple[int, tuple[int, ...] | None]] = {}
        for value in self.pointers(count, get, node):
            if not value:
                continue
            name = self.text("GetValueInfoName", value)
            info = self.pointer("GetValueInfoTypeInfo", value)
            tensor = self.pointer("CastTypeInfoToTensorInfo", info) if info else None
            if not tensor:
                out[name] = (0, None)
                continue
            element = c_int32()
            self.check(self.GetTensorElementType(tensor, ctypes.byref(element)))
            out[name] = (element.value, self.dims(tensor))
        return out

    def dims(self, tensor_info: int) -> tuple[int, ...]:
        """The dims of an OrtTensorTypeAndShapeInfo."""
        n = c_size_t()
        self.check(self.GetDimensionsCount(tensor_info, ctypes.byref(n)))
        dims = (c_int64 * n.value)()
        if n.value:
            self.check(self.GetDimensions(tensor_info, dims, n.value))
        return tuple(dims)

    def attribute(self, node: int, name: str, kind: int) -> bytes | int | None:
        """A node's attribute: ATTR_STRING as bytes (its exact size, NULs kept) or ATTR_INT; None if it is absent."""
        out = c_void_p()
        status = self.Node_GetAttributeByName(node, name.encode(), ctypes.byref(out))
        if status:
            self.ReleaseStatus(status)
            return None
        if not out.value:
            return None
        size = c_size_t()
        if kind == ATTR_INT:
            number = c_int64()
            self.check(self.ReadOpAttr(out.value, kind, ctypes.byref(number), 8, ctypes.byref(size)))
            return number.value
        status = self.ReadOpAttr(out.value, kind, None, 0, ctypes.byref(size))
        if status:
            self.ReleaseStatus(status)
        if not size.value:
            return b""
        buffer = ctypes.create_string_buffer(size.value)
        self.check(self.ReadOpAttr(out.value, kind, buffer, size.value, ctypes.byref(size)))
        return buffer.raw

    def config_entries(self, options: int) -> dict[str, str]:
        """The config entries of an OrtSessionOptions."""
        pairs = self.pointer("GetSessionOptionsConfigEntries", options)
        assert pairs
        try:
            return self.entries(pairs)
        finally:
            self.ReleaseKeyValuePairs(pairs)

    def entries(self, pairs: int) -> dict[str, str]:
        """The content of an OrtKeyValuePairs."""
        keys, values, n = c_void_p(), c_void_p(), c_size_t()
        self.GetKeyValuePairs(pairs, ctypes.byref(keys), ctypes.byref(values), ctypes.byref(n))
        if not n.value or not keys.value or not values.value:
            return {}
        key_array = (c_char_p * n.value).from_address(keys.value)
        value_array = (c_char_p * n.value).from_address(values.value)
        return {
            (k or b"").decode(errors="replace"): (v or b"").decode(errors="replace")
            for k, v in zip(key_array, value_array)
        }

    def key_values(self, pairs: dict[str, str]) -> int:
        """A new OrtKeyValuePairs; the caller releases it."""
        out = c_void_p()
        self.CreateKeyValuePairs(ctypes.byref(out))
        assert out.value
        for key, value in pairs.items():
            self.AddKeyValuePair(out.value, key.encode(), value.encode(errors="replace"))
        return out.value
