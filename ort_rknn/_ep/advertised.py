"""The device query given at registration, and the devices advertised to onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence

from ..adapter.contract import Device, Query

_query: Query | None = None
_devices: tuple[Device, ...] = ()


def put(query: Query, devices: Sequence[Device]) -> None:
    """Set both. The caller holds the registration's lock."""
    global _query, _devices
    _query, _devices = query, tuple(devices)


def query() -> Query | None:
    """The device query given at registration."""
    return _query


def devices() -> tuple[Device, ...]:
    """The devices advertised to onnxruntime, one OrtEpDevice each."""
    return _devices
