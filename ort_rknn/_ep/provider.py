"""The execution provider: onnxruntime's tables, filled with Python callbacks.

The rules for all callbacks are in ``callbacks``. ``ReleaseEpFactory`` runs after Python has ended, so it is a function
of libc.
"""

from __future__ import annotations

import ctypes
import logging
import operator
from ctypes import CFUNCTYPE, c_size_t, c_uint32, c_void_p
from typing import Any

from .._concurrency.forks import renewed_in_child
from .._errors import OptionError, bare_message
from .._executor.call_order import run_in_one_order
from .._executor.executor import Executor
from .._executor.opening import seen_versions
from .._interrupts import covered
from .._locks import Lock
from .._options import PROVIDER
from .._version import package_version
from ..adapter.contract import Device
from ..files import RknnFile
from ..files.compatibility import NOT_APPLICABLE, UNSUPPORTED, compatibility, parse_info
from . import abi, advertised, callbacks, host_memory, profiler, run_options
from .abi import Api
from .callbacks import (
    always,
    guarded,
    keep_forever,
    ours,
    quiet,
    spares,
    spares_of_ours,
    status_of,
    use,
)
from .claims import Claims
from .kernel import Kernel

log = logging.getLogger("ort_rknn")

VENDOR = b"Rockchip"
#: Rockchip's PCI vendor id.
VENDOR_ID = 0x1D87
_NPU, _CPU = 2, 0

P = c_void_p


class _Factory:
    """All state between CreateEpFactories and interpreter exit. One per process: onnxruntime has one registry."""

    def __init__(self, api_base: int) -> None:
        self.api = Api(api_base)
        self.table = abi.OrtEpFactory()
        self.hardware: dict[str, int] = {}


_factory: _Factory | None = None
#: Why the last :func:`_create_factories` created no factory. Without onnxruntime's functions there is no status to
#: return.
refusal = ""
_lock = renewed_in_child(Lock())
#: Live structures by address; onnxruntime holds the addresses.
_eps: dict[int, tuple[ctypes.Structure, Claims]] = {}
#: The executors of each session, until the session ends.
_executors: dict[int, list[Executor]] = {}
_infos: dict[int, ctypes.Structure] = {}
_kernels: dict[int, Kernel] = {}


def live_providers() -> int:
    """The number of sessions that have the provider now."""
    return len(_eps)


# The factory ------------------------------------------------------------------------------------------------------


def _get_supported_devices(this: int, hardware: int, count: int, out: int, room: int, number: int) -> None:
    assert _factory is not None
    api = _factory.api
    given = list((c_void_p * count).from_address(hardware)) if count else []
    cpu = next((h for h in given if h and api.HardwareDevice_Type(h) == _CPU), None)
    target = (c_void_p * room).from_address(out)
    made = 0
    for device in advertised.devices()[:room]:
        details = {
            "device": device.name,
            "soc": device.soc,
            "cores": str(device.cores),
            "adapter": device.adapter,
            "virtual": str(int(device.virtual)),
            "runtime": device.runtime,
        }
        hw = _hardware(api, device.name, details) if api.minor() >= (1, 24) else cpu
        if hw is None:
            continue
        metadata = api.key_values(details)
        options = api.key_values({})
        try:
            ep_device = target[made] = api.pointer("CreateEpDevice", this, hw, metadata, options)
        finally:
            api.ReleaseKeyValuePairs(metadata)
            api.ReleaseKeyValuePairs(options)
        made += 1
        if ep_device:
            host_memory.offer(api, ep_device, device, VENDOR_ID)
    c_size_t.from_address(number).value = made


def _create_allocator(this: int, info: int, options: int, out: int) -> None:
    assert _factory is not None
    host_memory.create_allocator(_factory.api, info, out)


def _hardware(api: Api, name: str, details: dict[str, str]) -> int | None:
    """An NPU device of our own, because onnxruntime does not discover a SoC's NPU. Kept for the life of the process,
    because ABI 23 has no slot to release it."""
    assert _factory is not None
    if name not in _factory.hardware:
        metadata = api.key_values(details)
        try:
            handle = api.pointer("CreateHardwareDevice", _NPU, VENDOR_ID, len(_factory.hardware), VENDOR, metadata)
        finally:
            api.ReleaseKeyValuePairs(metadata)
        assert handle
        _factory.hardware[name] = handle
    return _factory.hardware[name]


def _incompatibility(this: int, hardware: int, details: int) -> None:
    """Why a device cannot be used; called by onnxruntime 1.26 and later. See :mod:`.incompatibility`."""
    from .advertised import query
    from .incompatibility import reasons

    assert _factory is not None
    bits, notes = reasons(query(), is_npu=hardware in _factory.hardware.values())
    if bits:
        api = _factory.api
        text = notes.replace("\0", "?").encode(errors="replace")
        api.check(api.DeviceEpIncompatibilityDetails_SetDetails(details, bits, 0, text))


def _create_ep(this: int, devices: int, metadata: int, count: int, options: int, logger: int, out: int) -> None:
    assert _factory is not None
    api = _factory.api
    device = None
    if count and metadata:
        first = (c_void_p * count).from_address(metadata)[0]
        if first:
            device = api.entries(first).get("device")
    prefix = f"ep.{PROVIDER.lower()}."
    entries = api.config_entries(options)
    given = {key[len(prefix) :]: value for key, value in entries.items() if key.startswith(prefix)}
    claims = Claims(api, given, device, entries)
    table = abi.OrtEp()
    table.ort_version_supported = abi.ABI_WITH_PROFILER if api.minor() >= (1, 25) else abi.ABI
    for name, callback in _ep_callbacks.items():
        setattr(table, name, ctypes.cast(callback, c_void_p).value)
    address = ctypes.addressof(table)
    _eps[address] = (table, claims)
    _executors[address] = []
    c_void_p.from_address(out).value = address


def _release_ep(this: int, ep: int) -> None:
    ours.discard(ep)
    row = _eps.pop(ep, None)
    _executors.pop(ep, None)
    if row is not None:
        row[1].close()


def _create_profiler(this: int, out: int) -> None:
    assert _factory is not None
    profiler.create(_factory.api, lambda: _executors.get(this, []), out)


# The provider of one session --------------------------------------------------------------------------------------


def _get_capability(this: int, graph: int, support: int) -> None:
    assert _factory is not None
    _, claims = _eps[this]
    for group in claims.capability(graph):
        nodes = (c_void_p * len(group))(*group)
        options = ctypes.byref(_without_weights) if claims.whole_graph else None
        _factory.api.check(_factory.api.EpGraphSupportInfo_AddNodesToFuse(support, nodes, len(group), options))


def _set_dynamic_options(this: int, keys: int, values: int, count: int) -> None:
    given = [(key or b"").decode(errors="replace") for key in (ctypes.c_char_p * count).from_address(keys)]
    names = ", ".join(map(repr, given))
    raise OptionError(
        f"{PROVIDER} has no option that can be changed once a session is made; got {names}. Provider options are "
        "given when the session is made, or to set_providers()"
    )


def _compile(this: int, graphs: int, fused: int, count: int, infos: int, contexts: int) -> None:
    provider, claims = _eps[this]
    graph_array = (c_void_p * count).from_address(graphs)
    fused_array = (c_void_p * count).from_address(fused)
    out = (c_void_p * count).from_address(infos)
    made: list[int] = []
    nodes: list[int] = []
    try:
        for i in range(count):
            kernel = claims.compile(graph_array[i] or 0, fused_array[i] or 0)
            table = abi.OrtNodeComputeInfo()
            table.ort_version_supported = abi.ABI
            for name, callback in _info_callbacks.items():
                setattr(table, name, ctypes.cast(callback, c_void_p).value)
            address = ctypes.addressof(table)
            _infos[address] = table
            _kernels[address] = kernel
            if kernel.ours:
                ours.update((address, this))
            made.append(address)
            if claims.exports:
                nodes.append(claims.context_node(graph_array[i] or 0, fused_array[i] or 0, kernel))
    except BaseException:
        for address in made:
            _release_info(address)
        raise
    finally:
        claims.compiled()
    executors = [_kernels[address].executor for address in made]
    run_in_one_order(executors)
    _executors[this] += executors
    assert _factory is not None
    run_options.watch(_factory.api, provider)
    for i, address in enumerate(made):
        out[i] = address
    for i, node in enumerate(nodes):
        (c_void_p * count).from_address(contexts)[i] = node


def _release_info(address: int) -> None:
    _infos.pop(address, None)
    ours.discard(address)
    kernel = _kernels.pop(address, None)
    if kernel is not None:
        kernel.close()


def _release_infos(this: int, infos: int, count: int) -> None:
    for address in (c_void_p * count).from_address(infos):
        if address:
            _release_info(address)


def _create_state(this: int, compute_context: int, out: int) -> None:
    c_void_p.from_address(out).value = this


@covered
def _compute(this: int, state: int, context: int) -> int:
    # The hot path: `guarded`, inlined.
    try:
        try:
            _kernels[this].compute(context)
            return 0
        except BaseException as error:
            return status_of(error, this in ours)
    except BaseException as error:
        try:
            return status_of(error, this in ours)
        except BaseException:
            callbacks.short = True
            for spare in spares_of_ours if this in ours else spares:
                return spare
            raise


# Is a compiled model still usable? ----------------------------------------------------------------------------------


def _validate(this: int, hardware: int, count: int, info: int, out: int) -> None:
    """Whether a compiled model is still usable. ``info``: written by :func:`_compatibility_info` when the model was
    compiled. The result is one of onnxruntime's numbers."""
    text = (ctypes.c_char_p(info).value or b"").decode(errors="replace") if info else ""
    file = parse_info(text)
    level = NOT_APPLICABLE
    if file is not None:
        assert _factory is not None
        given = set((c_void_p * count).from_address(hardware)) if count and hardware else set()
        names = {name for name, handle in _factory.hardware.items() if handle in given}
        devices = [d for d in advertised.devices() if not names or d.name in names]
        verdicts = [_level(file, d) for d in devices]
        level = min(verdicts, default=UNSUPPORTED)
    ctypes.c_int32.from_address(out).value = level


def _level(file: RknnFile, device: Device) -> int:
    seen = seen_versions.get(device.name, {})
    return compatibility(file, soc=device.soc, runtime=seen.get("runtime"), driver=seen.get("driver")).level


@covered
def _compatibility_info(this: int, graph: int) -> int:
    """The compatibility text for a model being written. It lives as long as the provider."""
    try:
        row = _eps.get(this)
        text = row[1].compatibility_info() if row is not None else ""
        return ctypes.addressof(row[1].kept_text(text)) if row is not None and text else 0
    except BaseException:
        log.exception("cannot determine a compiled model's compatibility")
        return 0


# Callbacks: made once, never freed --------------------------------------------------------------------------------


_text = CFUNCTYPE(P, P)
_VERSION = package_version.encode()
_NAME = PROVIDER.encode()
_strings = {text: ctypes.create_string_buffer(text) for text in (_NAME, VENDOR, _VERSION)}
_get_name = _text(always(ctypes.addressof(_strings[_NAME])))
_get_vendor = _text(always(ctypes.addressof(_strings[VENDOR])))
_get_version = _text(always(ctypes.addressof(_strings[_VERSION])))

_factory_callbacks: dict[str, Any] = {
    "GetName": _get_name,
    "GetVendor": _get_vendor,
    "GetSupportedDevices": CFUNCTYPE(P, P, P, c_size_t, P, c_size_t, P)(guarded(_get_supported_devices)),
    "CreateEp": CFUNCTYPE(P, P, P, P, c_size_t, P, P, P)(guarded(_create_ep)),
    "ReleaseEp": CFUNCTYPE(None, P, P)(quiet(_release_ep)),
    "GetVendorId": CFUNCTYPE(c_uint32, P)(always(VENDOR_ID)),
    "GetVersion": _get_version,
    # onnxruntime calls this one without a check for NULL.
    "CreateDataTransfer": CFUNCTYPE(P, P, P)(guarded(lambda this, out: _set_null(out))),
    "CreateAllocator": CFUNCTYPE(P, P, P, P, P)(guarded(_create_allocator)),
    "ReleaseAllocator": host_memory.release_allocator,
    "ValidateCompiledModelCompatibilityInfo": CFUNCTYPE(P, P, P, c_size_t, P, P)(guarded(_validate)),
    "IsStreamAware": CFUNCTYPE(ctypes.c_bool, P)(always(False)),
    "GetHardwareDeviceIncompatibilityDetails": CFUNCTYPE(P, P, P, P)(guarded(_incompatibility)),
}
_ep_callbacks: dict[str, Any] = {
    "GetName": _get_name,
    "GetCapability": CFUNCTYPE(P, P, P, P)(guarded(_get_capability)),
    "Compile": CFUNCTYPE(P, P, P, P, c_size_t, P, P)(guarded(_compile)),
    "SetDynamicOptions": CFUNCTYPE(P, P, P, P, c_size_t)(guarded(_set_dynamic_options)),
    "GetCompiledModelCompatibilityInfo": CFUNCTYPE(P, P, P)(_compatibility_info),
    "CreateProfiler": CFUNCTYPE(P, P, P)(guarded(_create_profiler)),
    "ReleaseNodeComputeInfos": CFUNCTYPE(None, P, P, c_size_t)(quiet(_release_infos)),
}
#: A compiled model has its weights built in: onnxruntime may free the graph's.
_without_weights = abi.OrtNodeFusionOptions(abi.ABI, True)
_info_callbacks: dict[str, Any] = {
    "CreateState": CFUNCTYPE(P, P, P, P)(guarded(_create_state)),
    "Compute": CFUNCTYPE(P, P, P, P)(_compute),
    # Nothing to release. Not Python code, so no signal handler can raise in it.
    "ReleaseState": CFUNCTYPE(None, P, P)(operator.is_),
}


def _set_null(out: int) -> None:
    c_void_p.from_address(out).value = None


@covered
def _create_factories(name: int, api_base: int, logger: int, factories: int, room: int, number: int) -> int:
    global _factory, refusal
    try:
        refusal = ""
        with _lock:
            if _factory is None:
                made = _Factory(api_base)
                use(made.api)
                _factory = made
                _factory.table.ort_version_supported = abi.ABI
                for slot, callback in _factory_callbacks.items():
                    setattr(_factory.table, slot, ctypes.cast(callback, c_void_p).value)
                keep_forever(_factory)
        (c_void_p * 1).from_address(factories)[0] = ctypes.addressof(_factory.table)
        c_size_t.from_address(number).value = 1
        return 0
    except BaseException as error:
        if _factory is not None:
            return status_of(error)
        refusal = bare_message(error)
        log.error("the execution provider cannot be set up: %s", refusal)
        c_size_t.from_address(number).value = 0
        return 0


_create = CFUNCTYPE(P, P, P, P, P, c_size_t, P)(_create_factories)


for _thing in (
    _create,
    _factory_callbacks,
    _ep_callbacks,
    _info_callbacks,
    _strings,
    _eps,
    _executors,
    _infos,
    _kernels,
    ours,
):
    keep_forever(_thing)


def entry_points() -> dict[str, int]:
    """The two symbols of the plugin library and their addresses."""
    libc = ctypes.CDLL(None)
    # Called after Python has ended. This function of libc does nothing and returns 0: success.
    release = ctypes.cast(libc.pthread_mutexattr_destroy, c_void_p).value
    create = ctypes.cast(_create, c_void_p).value
    assert create and release
    return {"CreateEpFactories": create, "ReleaseEpFactory": release}
