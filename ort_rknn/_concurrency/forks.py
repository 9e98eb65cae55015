"""What a forked child does with what it inherited.

The threads of the parent are missing in a child: those of onnxruntime's sessions, of the NPU's runtime and of this
package. And the driver's file handle is the parent's. So nothing that was inherited is ever destroyed in a child:
onnxruntime would wait for its threads for ever, and the runtime would end the parent's contexts.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from contextlib import suppress
from typing import Any

_natives: weakref.WeakSet[Any] = weakref.WeakSet()
_exit_is_short = False

#: By ``id``: native sessions that this process inherited, and keeps. Empty if it is no forked child.
inherited: set[int] = set()

#: Modules that calls of a session import when they need them, and opening it anew in a child. See :func:`_before`.
_USED_LATER = (
    "signal",
    "ort_rknn._concurrency.stream",
    "ort_rknn._executor.numbered",
    "ort_rknn.files.operators",
    "ort_rknn._session.closed",
    "ort_rknn._session.explain",
    "ort_rknn._session.feeds",
    "ort_rknn._session.start",
    "ort_rknn._session.under_way",
)


def watch(native: Any) -> None:
    """onnxruntime's native session: a forked child keeps it."""
    # These register handlers of forks themselves, and must not do so during one: the parent's would run without its
    # counterpart before the fork.
    for name in ("concurrent.futures.thread", "logging"):
        with suppress(RuntimeError):  # while the interpreter ends, the pool's module cannot be imported any more
            __import__(name)
    _natives.add(native)


def renewed_in_child(lock: Any) -> Any:
    """``lock``, which is free in a forked child, whoever had it in the parent: that thread is not there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)
    return lock


def keep(thing: Any) -> None:
    """A reference that nobody gives back."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _before() -> None:
    """Load what a session may import later, or wait until another thread has.

    The lock of a module that another thread is importing stays taken in a child for ever, and the child would wait for
    it at its own first call.
    """
    if _natives:
        for name in _USED_LATER:
            __import__(name)


def _in_child() -> None:
    natives = list(_natives)
    for native in natives:
        keep(native)
    inherited.update(map(id, natives))
    if natives:
        leave_out_exit_handlers()


def leave_out_exit_handlers() -> None:
    """End this process without the exit handlers in C that were there before the fork.

    When Python has ended, they destroy what belongs to threads that are not there: with onnxruntime 1.32 alone a forked
    child never ends. What is written by C is flushed first. Handlers that are registered from now on come before.
    """
    global _exit_is_short
    if _exit_is_short:
        return
    _exit_is_short = True
    libc = ctypes.CDLL(None)
    address = ctypes.c_void_p
    try:
        libc.on_exit(ctypes.cast(libc._exit, address), None)
        libc.__cxa_atexit(ctypes.cast(libc.fflush, address), None, None)
    except AttributeError:  # no glibc, and so no NPU
        pass


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
