"""Which cores the sessions of this process are using. ``schedule="auto"`` considers it besides its own contexts."""

from __future__ import annotations

import os
from typing import Any

_users: dict[tuple[str, int], set[Any]] = {}


def users_of(device: str, core_mask: int) -> set[Any] | None:
    """The contexts running on a device's core now: a running context adds itself and discards itself afterwards. None
    for a mask of several cores or none. Adding and discarding are atomic and idempotent, so a signal cannot corrupt the
    count."""
    if core_mask <= 0 or core_mask & (core_mask - 1):
        return None
    return _users.setdefault((device, core_mask), set())


def _in_child() -> None:
    for users in _users.values():
        users.clear()  # the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
