"""How a session hands its executor to the provider: a random token in the wrapper, resolved in this process only.

A 300 MB blob in the node would cost over a gigabyte while loading, and a path could be exchanged between check and use.
"""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..executor import Executor

PREFIX = b"ort_rknn-handoff:"

_lock = threading.Lock()
_waiting: dict[bytes, Executor] = {}


def offer(executor: Executor) -> bytes:
    """A token for an executor. Good for one :func:`take`; :func:`withdraw` it when no session came of it."""
    token = PREFIX + secrets.token_hex(16).encode()
    with _lock:
        _waiting[token] = executor
    return token


def take(token: bytes) -> Executor | None:
    """The executor of a token, once; None for a token of another process, session or time."""
    with _lock:
        return _waiting.pop(token, None)


def withdraw(token: bytes) -> None:
    """Forget a token that may not have been taken."""
    with _lock:
        _waiting.pop(token, None)
