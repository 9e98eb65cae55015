"""How a session passes its executor to the provider: by a random token in the wrapper, valid in this process only. Also
the reverse, for the executors of a model's own EPContext nodes.

A 300 MB blob in the node would take over a gigabyte while loading, and a path could be replaced between check and use.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._concurrency.forks import renewed_in_child
from .._locks import Lock

if TYPE_CHECKING:
    from .._executor.executor import Executor
    from .._planning.parts_form import PartsForm

PREFIX = b"ort_rknn-handoff:"

_lock = renewed_in_child(Lock())
_waiting: dict[bytes, Executor] = {}


def offer(executor: Executor) -> bytes:
    """A token for an executor, valid for one :func:`take`. Call :func:`withdraw` if creating the session failed."""
    token = PREFIX + secrets.token_hex(16).encode()
    with _lock:
        _waiting[token] = executor
    return token


def take(token: bytes) -> Executor | None:
    """The executor of a token, once; None for a token of another process, another session, or one already used."""
    with _lock:
        return _waiting.pop(token, None)


def withdraw(token: bytes) -> None:
    """Forget a token that may not have been taken."""
    with _lock:
        _waiting.pop(token, None)


@dataclass(slots=True)
class Making:
    """What our session tells the provider about the model with EPContext nodes that it is loading."""

    executors: list[Executor]
    """The provider adds the executors that it opens."""
    original: str | None = None
    """The ONNX that the model was compiled from, if the session knows it; the path stored in the nodes is untrusted."""
    cpu_session: Callable[..., Any] | None = None
    """Creates onnxruntime's CPU session on an ONNX, with the user's SessionOptions."""
    form: PartsForm | None = None
    """The form that the options ask for, which the graph declares."""
    model_path: str = ""
    """The model's file, if onnxruntime loads it from memory."""
    optimal_only: bool = False
    """A compiled model that should be recompiled is an error."""


class _MakingHere(threading.local):
    making: Making | None = None


_here = _MakingHere()


@contextmanager
def collected(making: Making) -> Iterator[None]:
    """Executors that the provider opens on this thread in the block are added to ``making``; onnxruntime compiles on
    the thread that creates the session. None are added if creating it fails."""
    _here.making = making
    try:
        yield
    except BaseException:
        making.executors.clear()
        raise
    finally:
        _here.making = None


def making() -> Making | None:
    """The session that this thread is creating inside :func:`collected`, if it is one of ours; else None."""
    return _here.making


def opened(executor: Executor) -> None:
    """Record that the provider opened an executor."""
    if _here.making is not None:
        _here.making.executors.append(executor)
