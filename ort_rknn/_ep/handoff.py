"""How a session hands its executor to the provider: a random token in the wrapper, resolved in this process only. And
the way back, for the executors that a model's own EPContext nodes bring.

A 300 MB blob in the node would cost over a gigabyte while loading, and a path could be exchanged between check and use.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._concurrency.forks import renewed_in_child

if TYPE_CHECKING:
    from .._executor.executor import Executor

PREFIX = b"ort_rknn-handoff:"

_lock = renewed_in_child(threading.Lock())
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


class _Here(threading.local):
    into: list[Executor] | None = None


_here = _Here()


@contextmanager
def collected(into: list[Executor]) -> Iterator[None]:
    """Executors that the provider opens on this thread meanwhile are added to ``into``; onnxruntime compiles on the
    thread that makes the session. None is added where that fails."""
    _here.into = into
    try:
        yield
    except BaseException:
        into.clear()
        raise
    finally:
        _here.into = None


def are_collected() -> bool:
    """Whether this thread is in :func:`collected`: it makes a session of ours."""
    return _here.into is not None


def opened(executor: Executor) -> None:
    """The provider opened an executor."""
    if _here.into is not None:
        _here.into.append(executor)
