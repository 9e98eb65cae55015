"""How a session hands its executor to the provider: a random token in the wrapper, resolved in this process only. And
the way back, for the executors that a model's own EPContext nodes bring.

A 300 MB blob in the node would cost over a gigabyte while loading, and a path could be exchanged between check and use.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._concurrency.forks import renewed_in_child

if TYPE_CHECKING:
    from .._executor.executor import Executor
    from .._planning.parts_form import PartsForm

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


@dataclass(slots=True)
class Making:
    """What a session of ours tells the provider of the model with EPContext nodes that it makes just now."""

    executors: list[Executor]
    """Gets those that the provider opens."""
    original: str | None = None
    """The ONNX that the model was compiled from, where the session knows it: the nodes' own word is a stranger's."""
    cpu_session: Callable[..., Any] | None = None
    """Makes onnxruntime's CPU session on an ONNX, as the user's SessionOptions say."""
    form: PartsForm | None = None
    """The form that the options ask for, which the graph declares."""
    model_path: str = ""
    """The file of the model, where onnxruntime loads it from memory."""
    optimal_only: bool = False
    """A compiled model that had better be compiled again is an error."""


class _Here(threading.local):
    making: Making | None = None


_here = _Here()


@contextmanager
def collected(making: Making) -> Iterator[None]:
    """Executors that the provider opens on this thread meanwhile are added to ``making``; onnxruntime compiles on the
    thread that makes the session. None is added where that fails."""
    _here.making = making
    try:
        yield
    except BaseException:
        making.executors.clear()
        raise
    finally:
        _here.making = None


def making() -> Making | None:
    """What this thread makes inside :func:`collected`: a session of ours, else None."""
    return _here.making


def opened(executor: Executor) -> None:
    """The provider opened an executor."""
    if _here.making is not None:
        _here.making.executors.append(executor)
