"""Python functions that C calls: what every callback of the provider keeps to.

No exception leaves a callback: what ctypes would return instead is undefined, and onnxruntime would take it for a
status. Callbacks are made once per process and never freed. After interpreter exit has begun they do nothing, but for
a run, which may still be under way.
"""

from __future__ import annotations

import _thread
import atexit
import ctypes
import functools
import logging
import os
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

from .._errors import EP_FAIL, RUNTIME_EXCEPTION, bare_message, status_code
from .abi import Api, OrtCallFailed

log = logging.getLogger("ort_rknn")

_HERE = os.path.dirname(__file__)
_running = True
_api: Api | None = None


def _stop() -> None:
    global _running
    _running = False


atexit.register(_stop)


def use(api: Api) -> None:
    """The functions that make a status. Called before any guarded callback can be."""
    global _api
    _api = api


def status_of(error: BaseException) -> int:
    """A status for an exception. Never raises: a signal handler may fire even here."""
    assert _api is not None
    while True:
        try:
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                _thread.start_new_thread(_interrupt_later, (threading.get_ident(),))
            code = error.code if isinstance(error, OrtCallFailed) else status_code(error)
            # On EP_FAIL onnxruntime's Python layer would rebuild the session on the CPU, and the cause is lost.
            return _api.status(RUNTIME_EXCEPTION if code == EP_FAIL else code, bare_message(error))
        except BaseException as another:
            error = RuntimeError(f"{type(another).__name__} while an error was reported")


def _interrupt_later(thread: int) -> None:
    """Repeat a Ctrl-C that came during a callback, once the main thread has left it.

    The callback's status becomes the failed call's exception; the interrupt itself follows. Raised inside the callback,
    it would be caught there again.
    """
    for _ in range(2000):
        time.sleep(0.0005)
        frame = sys._current_frames().get(thread)
        while frame is not None and os.path.dirname(frame.f_code.co_filename) != _HERE:
            frame = frame.f_back
        if frame is None:
            break
    _thread.interrupt_main()


def covered(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A callback whose first ``try`` covers its entry too.

    Python runs signal handlers at a function's first instruction: a Ctrl-C from the time before the call (during a long
    node on the CPU, say) would be raised there, outside any ``try``, and leave the callback. Python 3.10 looks for
    signals only after a leading ``try`` is set up; 3.11 to 3.14 keep the ranges of ``try`` in a table, whose first row
    is made to begin at the first instruction. On a release whose table is not known the callback is left as it is.
    """
    code: Any = callback.__code__
    table: bytes = getattr(code, "co_exceptiontable", b"")
    if not table or sys.implementation.name != "cpython" or sys.version_info >= (3, 15):
        return callback
    start, size = 0, 0
    at = 0
    for k in range(2):
        value = table[at] & 63
        while table[at] & 64:
            at += 1
            value = value << 6 | table[at] & 63
        at += 1
        start, size = (value, 0) if k == 0 else (start, value)
    size += start
    groups = [size & 63]
    while size := size >> 6:
        groups.insert(0, size & 63 | 64)
    callback.__code__ = code.replace(co_exceptiontable=bytes((0x80, *groups)) + table[at:])
    return callback


def always(value: Any) -> Callable[..., Any]:
    """A function of one argument that gives ``value``, without Python code: nothing can be raised in it."""
    return functools.partial(getattr, types.SimpleNamespace(value=value), "value")


def guarded(callback: Callable[..., None]) -> Callable[..., int]:
    """A callback that returns a status: 0, or the exception's."""

    def call(*args: int) -> int:
        try:
            try:
                if _running:
                    callback(*args)
                return 0
            except BaseException as error:
                return status_of(error)
        except BaseException as error:
            return status_of(error)

    return covered(call)


def quiet(callback: Callable[..., None]) -> Callable[..., None]:
    """A callback that returns nothing: an exception is logged."""

    def call(*args: int) -> None:
        try:
            if _running:
                callback(*args)
        except BaseException:
            try:
                log.exception("an error in %s", callback.__name__)
            except BaseException:  # noqa: S110 - logging itself failed: at interpreter exit, say
                pass

    return covered(call)


def keep_for_ever(thing: Any) -> None:
    """A reference that nobody gives back. Sessions that live in a cycle, or in an exception's traceback, are released
    while the interpreter clears its modules, and onnxruntime then still calls into what these modules held."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
