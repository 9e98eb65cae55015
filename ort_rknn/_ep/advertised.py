"""What was said about devices at registration, and what onnxruntime was told of."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapter.contract import Device, Query

_query: Query | None = None
_devices: tuple[Device, ...] = ()


def put(query: Query, devices: Sequence[Device]) -> None:
    """What holds from now on. Under the lock of the registration."""
    global _query, _devices
    _query, _devices = query, tuple(devices)


def query() -> Query | None:
    """What was said about devices at registration."""
    return _query


def devices() -> tuple[Device, ...]:
    """The devices that onnxruntime is told of, one OrtEpDevice each."""
    return _devices
