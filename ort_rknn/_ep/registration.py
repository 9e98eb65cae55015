"""Registers the provider with onnxruntime, and unregisters it."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import onnxruntime

from .._concurrency.forks import renewed_in_child
from .._errors import FAIL, ort_error
from .._locks import RLock
from .._options import PROVIDER, Options, read_options
from .._planning.discovery import query_for, survey
from ..adapter.contract import Device
from . import advertised
from .stub import StubFile, StubUnavailable, stub_image, this_machine
from .support import why_unavailable

_lock = renewed_in_child(RLock())
_registered_as: str | None = None
_being_made = 0  # sessions between registration and the end of onnxruntime's constructor


def _in_child() -> None:
    global _being_made
    _being_made = 0  # by threads that do not exist here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def may_open_a_library() -> bool:
    """Whether this system lets ``dlopen`` open the image; found by trying."""
    if _registered_as is not None:
        return True
    try:
        StubFile(b"").close()
    except StubUnavailable:
        return False
    return True


def is_registered() -> bool:
    """Whether onnxruntime knows the provider now.

    Asks onnxruntime too, because its own ``unregister_execution_provider_library`` does not notify us.
    """
    return _registered_as is not None and any(d.ep_name == PROVIDER for d in onnxruntime.get_ep_devices())


@contextmanager
def held(device: Device | None = None) -> Iterator[None]:
    """A context for creating a session. :func:`unregister` refuses meanwhile, because it frees what onnxruntime's
    constructor reads.

    With ``device``, registers the provider first, and raises as :func:`register` does.
    """
    global _being_made
    with _lock:
        if device is not None:
            _register(PROVIDER, Options(), device)
        _being_made += 1
    try:
        yield
    finally:
        with _lock:
            _being_made -= 1


def register(
    name: str = PROVIDER,
    *,
    device: str | None = None,
    runtime_library: str | None = None,
) -> None:
    """Register the provider with onnxruntime in this process, under the registration name ``name``.

    Our sessions do this themselves. Call it for sessions of the unmodified ``onnxruntime``, which then find
    :data:`~ort_rknn._options.PROVIDER` by name (onnxruntime 1.25.1 and later) or among ``get_ep_devices()``. ``device``
    and ``runtime_library`` are as the provider options of these names. Does nothing if the provider is already
    registered.

    Raises Fail, with the reason, if no device is found (onnxruntime requires one) or if the provider cannot exist in
    this process.
    """
    given: dict[str, object] = {"device": device, "runtime_library": runtime_library}
    _register(name, read_options({k: v for k, v in given.items() if v is not None}), None)


def _register(name: str, options: Options, advertise: Device | None) -> None:
    """As :func:`register`; ``advertise``: a device to advertise to onnxruntime although it was not found."""
    global _registered_as
    from . import provider

    with _lock:
        if is_registered():
            return
        reason = why_unavailable()
        if reason is not None:
            raise ort_error(FAIL, f"the RKNN execution provider is not available: {reason}")
        query = query_for(options)
        report = survey(query)
        found = [f.device for f in report.found]
        if advertise is not None and all(d.name != advertise.name for d in found):
            found.append(advertise)
        if not found:
            why = report.why_none()
            raise ort_error(FAIL, f"no NPU to register: {why.reason}. {why.remedy}".rstrip(" ."))
        advertised.put(query, found)
        try:
            stub = _stub_file()
        except StubUnavailable as error:
            raise ort_error(FAIL, f"the RKNN execution provider is not available: {error}") from error
        try:
            onnxruntime.register_execution_provider_library(name, stub.path)
        finally:
            stub.close()
        if provider.refusal:
            onnxruntime.unregister_execution_provider_library(name)
            raise ort_error(FAIL, f"the RKNN execution provider is not available: {provider.refusal}")
        _registered_as = name


def unregister() -> None:
    """Unregister the provider. Does nothing if it is not registered.

    Raises Fail while sessions use it or are being created with it: onnxruntime would call into freed objects.
    """
    global _registered_as
    from .provider import live_providers

    with _lock:
        if not is_registered():
            _registered_as = None
            return
        if _being_made:
            raise ort_error(FAIL, f"{_being_made} sessions are being made with the RKNN execution provider; try later")
        alive = live_providers()
        if alive:
            raise ort_error(FAIL, f"{alive} sessions still have the RKNN execution provider; drop them first")
        onnxruntime.unregister_execution_provider_library(_registered_as)
        _registered_as = None


def _stub_file() -> StubFile:
    from .provider import entry_points

    return StubFile(stub_image(entry_points(), "libort_rknn.so", this_machine()))


@functools.cache
def _kept_stub() -> StubFile:
    return _stub_file()


def get_library_path() -> str:
    """A path for ``onnxruntime.register_execution_provider_library(name, path)``, as other plugin packages provide.

    It refers to an image created for this process and valid only in it. Devices are those that ``ORT_RKNN_DEVICE`` and
    the machine offer at this call. Raises Fail if the provider cannot exist here.
    """
    reason = why_unavailable()
    if reason is not None:
        raise ort_error(FAIL, f"the RKNN execution provider is not available: {reason}")
    with _lock:
        if _registered_as is None:
            query = query_for(Options())
            advertised.put(query, [f.device for f in survey(query).found])
        try:
            return _kept_stub().path
        except StubUnavailable as error:
            raise ort_error(FAIL, f"the RKNN execution provider is not available: {error}") from error


def get_ep_names() -> list[str]:
    """The names of the execution providers in :func:`get_library_path`'s library."""
    return [PROVIDER]
