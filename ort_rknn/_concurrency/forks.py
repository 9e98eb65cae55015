"""How a forked child treats what it inherited.

The parent's threads do not exist in a child: those of onnxruntime's sessions, of the NPU's runtime and of this package.
The driver's file handle is the parent's, too. So a child never destroys anything it inherited: onnxruntime would wait
for its threads forever, and the runtime would end the parent's contexts.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from contextlib import suppress
from typing import Any

_natives: weakref.WeakSet[Any] = weakref.WeakSet()
_exit_is_short = False

#: Native sessions that this process inherited and keeps, by ``id``. Empty in a process that was not forked.
inherited: set[int] = set()

#: Modules that calls of a session, or reopening it in a child, import on demand. See :func:`_before`.
_USED_LATER = (
    "signal",
    "ort_rknn._concurrency.stream",
    "ort_rknn._session.direct",
    "ort_rknn._executor.numbered",
    "ort_rknn.files.operators",
    "ort_rknn._session.closed",
    "ort_rknn._session.explain",
    "ort_rknn._session.feeds",
    "ort_rknn._session.start",
    "ort_rknn._session.under_way",
)


def watch(native: Any) -> None:
    """Register onnxruntime's native session, so that a forked child keeps it."""
    # These modules register fork handlers themselves, and must not do so during a fork: the handler for the parent
    # would then run without its counterpart from before the fork.
    for name in ("concurrent.futures.thread", "logging"):
        with suppress(RuntimeError):  # during interpreter shutdown the pool's module can no longer be imported
            __import__(name)
    _natives.add(native)


def renewed_in_child(lock: Any) -> Any:
    """``lock``, reset in a forked child: the thread that held it does not exist there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)
    return lock


def keep(thing: Any) -> None:
    """Keep a reference that is never released."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def _before() -> None:
    """Import what a session may import later, or wait until another thread has.

    The import lock of a module that another thread is importing would stay locked in a child forever, and the child
    would block on it at its first call.
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
    """End this process without the C exit handlers that were registered before the fork.

    After Python has ended, they destroy objects of threads that do not exist here: with onnxruntime 1.32 alone, a
    forked child never ends. C output is flushed first. Handlers registered from now on run before.
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
