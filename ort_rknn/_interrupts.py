"""Exceptions of signal handlers that are raised while C code is calling Python.

No exception can leave a callback from C. The callback returns an error instead, and the handler's exception (a
KeyboardInterrupt, the SystemExit of a web server's worker, a timeout class of the user) is raised again in the main
thread as soon as it runs Python code outside the callback. The handler is not called twice.

This uses an otherwise unused signal, whose handler raises the pending exception. The signal is sent first when the
callback has returned, so that nothing runs in between. It is then repeated a few times, because a main thread that has
started to wait meanwhile (``time.sleep``, ``Event.wait``) handles signals only when one wakes it up.
"""

from __future__ import annotations

import _thread
import ctypes
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

#: Exceptions to raise again, each with a weak reference to its callback's result, which is dead once C has taken it.
_pending: deque[tuple[BaseException, weakref.ref[_ResultToken]]] = deque()
_number: int | None = None
#: ``raise`` of the C library, used as the callback of a weak reference; the second argument is the weak reference.
_raise: Any = None
_references: deque[Any] = deque(maxlen=8)
#: Seconds between the signals that wake up a waiting main thread.
_PAUSES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0)


_MOST_CAUSES = 16
#: Prefix of the status messages for exceptions that :func:`raise_what_ended` raises itself.
INTERRUPTED = "interrupted: "
END_OF_STACK = "RecursionError: maximum recursion depth exceeded in the RKNN execution provider"


def raise_what_ended(error: BaseException | None) -> None:
    """Raise the exception that ended a run, if ``error``, as reported by onnxruntime, came from a callback of ours.

    A pending signal exception is raised in any case, when Python enters this function.
    """
    if error is None:
        return
    text = str(error)
    if END_OF_STACK in text:
        raise RecursionError("maximum recursion depth exceeded in the RKNN execution provider") from None
    if f"Status Message: {INTERRUPTED}" in text and _pending and threading.current_thread() is threading.main_thread():
        raise _pending.popleft()[0]


#: Whether calls of C functions count toward the recursion limit. If so, a callback may have no room for its first
#: frame, and what ctypes then returns to C is undefined.
C_CALLS_COUNT = sys.version_info < (3, 12)


def need_stack(frames: int) -> None:
    """Raise RecursionError if the stack has no room for this many calls."""
    if frames:
        need_stack(frames - 1)


class _SignalResult(int):
    """A callback's return value that shows when C has taken it: ``word`` is freed with it."""

    word: _ResultToken


class _ResultToken:
    __slots__ = ("__weakref__",)


def is_from_a_handler(error: BaseException) -> bool:
    """Whether a signal handler raised the exception on this thread. Only the main thread runs signal handlers."""
    import signal

    if threading.get_ident() != threading.main_thread().ident:
        return False
    if isinstance(error, KeyboardInterrupt):
        return True  # Python's own handler has no frame
    codes = {_deliver.__code__}
    for number in signal.valid_signals():
        codes.add(_code(signal.getsignal(number)))
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def from_a_handler(error: BaseException) -> BaseException | None:
    """The exception of a signal handler that ``error`` is, or that caused it; None if there is none."""
    cause: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if cause is None or is_from_a_handler(cause):
            return cause
        cause = cause.__cause__
    return None


def _code(handler: Any) -> Any:
    while isinstance(handler, partial):
        handler = handler.func
    while hasattr(handler, "__wrapped__"):
        handler = handler.__wrapped__
    handler = getattr(handler, "__func__", handler)
    if callable(handler) and not hasattr(handler, "__code__"):
        handler = type(handler).__call__
    return getattr(handler, "__code__", None)


def raised_after(error: BaseException, result: int) -> int:
    """The value that a callback must return for ``error`` to be raised again once ``result`` has been returned.

    For the main thread. Nothing else may hold a reference to the value.
    """
    number = _claimed()
    if number is None:
        if isinstance(error, KeyboardInterrupt):
            _thread.interrupt_main()
        else:
            import logging

            logging.getLogger("ort_rknn").error(
                "no signal is free to raise again what a signal's handler raised", exc_info=error
            )
        return result
    marked = _SignalResult(result)
    marked.word = _ResultToken()
    reference = weakref.ref(marked.word, _raise)
    _references.append(reference)
    _pending.append((error, reference))
    with suppress(RuntimeError):  # cannot start new thread
        _thread.start_new_thread(_wake, (threading.get_ident(), number))
    return marked


def covered(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A callback whose first ``try`` covers its entry too.

    Python runs signal handlers at a function's first instruction: a Ctrl-C from before the call (for example during a
    long node on the CPU) would be raised there, outside any ``try``, and leave the callback. Python 3.10 checks for
    signals only after a leading ``try`` is set up; 3.11 to 3.14 keep the ranges of ``try`` in a table, whose first row
    is made to begin at the first instruction. On a release with an unknown table the callback is left unchanged, and a
    test fails.

    Raises TypeError if the callback does not begin with a ``try``, or with one that Python removed because nothing in
    it can fail.
    """
    code: Any = callback.__code__
    table: bytes = getattr(code, "co_exceptiontable", b"")
    if sys.implementation.name != "cpython" or not (3, 11) <= sys.version_info < (3, 15):
        return callback
    row, ends = [], []
    at = 0
    for _ in range(4 if table else 0):
        value = table[at] & 63
        while table[at] & 64:
            at += 1
            value = value << 6 | table[at] & 63
        at += 1
        row.append(value)
        ends.append(at)
    if not row or row[3]:  # the depth of its stack, of which a first try has none
        raise TypeError(f"{callback.__name__} does not begin with a try in which something can fail")
    size = row[0] + row[1]
    groups = [size & 63]
    while size := size >> 6:
        groups.insert(0, size & 63 | 64)
    callback.__code__ = code.replace(co_exceptiontable=bytes((0x80, *groups)) + table[ends[1] :])
    return callback


def _deliver(number: int, frame: FrameType | None) -> None:
    # On a busy machine a signal of _wake() may come while the callback has not returned yet.
    if _pending and _pending[0][1]() is None:
        raise _pending.popleft()[0]


def _wake(thread: int, number: int) -> None:
    import signal

    for pause in _PAUSES:
        time.sleep(pause)
        if not _pending:
            return
        with suppress(ProcessLookupError, OSError):
            signal.pthread_kill(thread, number)


def _claimed() -> int | None:
    """A real-time signal that is not handled, ignored or blocked in this process. It is ours from now on."""
    import signal

    global _number, _raise
    if _number is not None and signal.getsignal(_number) is _deliver:
        return _number
    used = _used_signals()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for number in range(signal.SIGRTMAX, signal.SIGRTMIN, -1):
        if number in blocked or used >> (number - 1) & 1 or signal.getsignal(number) is not signal.SIG_DFL:
            continue
        signal.signal(number, _deliver)
        function = ctypes.PyDLL(None)["raise"]
        function.argtypes = (ctypes.c_int, ctypes.py_object)
        _number, _raise = number, partial(function, number)
        return number
    return None


def _used_signals() -> int:
    """A bit mask of the signals that are caught or ignored, including by C code."""
    used = 0
    with suppress(OSError, ValueError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(("SigCgt:", "SigIgn:")):
                used |= int(line.split()[1], 16)
    return used


def start_thread(thread: threading.Thread) -> None:
    """``thread.start()`` that lets exceptions of signal handlers through unchanged.

    Python 3.13 raises a KeyError instead if the thread was already running: ``start()`` then cleans up what the thread
    cleans up itself. Raises RuntimeError if no thread can be started.
    """
    try:
        thread.start()
    except KeyError as error:
        if error.__context__ is None:
            raise
        raise error.__context__ from None
