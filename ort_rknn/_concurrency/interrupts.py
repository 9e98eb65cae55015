"""What a signal's handler raises while C code is calling Python.

No exception leaves a callback from C. The callback returns an error instead, and what the handler raised (a
KeyboardInterrupt, the SystemExit of a web server's worker, a time limit's own class) is raised again in the main thread
as soon as that one runs Python code outside the callback. The handler is not called twice.

It is done with a signal that nobody uses, whose handler raises what is pending. It is sent for the first time when the
callback has returned, so that nothing runs in between; then a few times more, because a main thread that has begun to
wait by then (``time.sleep``, ``Event.wait``) looks at signals only when one wakes it.
"""

from __future__ import annotations

import _thread
import ctypes
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

_pending: deque[BaseException] = deque()
_number: int | None = None
#: ``raise`` of the C library, as the callback of a weak reference, which is its second argument.
_raise: Any = None
_references: deque[Any] = deque(maxlen=8)
#: Seconds between the signals that wake a main thread that waits.
_PAUSES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0)


#: With these begin the texts of statuses for what :func:`raise_what_ended` raises itself.
INTERRUPTED = "interrupted: "
END_OF_STACK = "RecursionError: maximum recursion depth exceeded in the RKNN execution provider"


def raise_what_ended(error: BaseException | None) -> None:
    """Raise what ended a run, where ``error`` is how onnxruntime reported it and a callback of ours said so.

    A signal's exception that is pending is raised in any case, as Python enters this function.
    """
    if error is None:
        return
    text = str(error)
    if END_OF_STACK in text:
        raise RecursionError("maximum recursion depth exceeded in the RKNN execution provider") from None
    if f"Status Message: {INTERRUPTED}" in text and _pending and threading.current_thread() is threading.main_thread():
        raise _pending.popleft()


#: Whether calls of functions in C count towards the recursion limit: then a callback may have no room for its first
#: frame, and what ctypes returns to C for it is not defined.
C_CALLS_COUNT = sys.version_info < (3, 12)


def need_stack(frames: int) -> None:
    """Raise RecursionError if the stack has no room for so many calls."""
    if frames:
        need_stack(frames - 1)


class _Result(int):
    """A callback's result that tells when C has taken it: ``word`` goes with it."""

    word: _Word


class _Word:
    __slots__ = ("__weakref__",)


def is_from_a_handler(error: BaseException) -> bool:
    """Whether the handler of a signal raised it, on this thread. Others than the main thread run no handlers."""
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
    """What a callback has to return, so that ``error`` is raised again when it has returned ``result``.

    On the main thread. Nothing else may refer to the result.
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
    _pending.append(error)
    with suppress(RuntimeError):  # no more threads can be had
        _thread.start_new_thread(_wake, (threading.get_ident(), number))
    return _with_word(result)


def _with_word(result: int) -> int:
    word = _Word()
    _references.append(weakref.ref(word, _raise))
    told = _Result(result)
    told.word = word
    return told


def _deliver(number: int, frame: FrameType | None) -> None:
    if _pending:
        raise _pending.popleft()


def _wake(thread: int, number: int) -> None:
    import signal

    for pause in _PAUSES:
        time.sleep(pause)
        if not _pending:
            return
        with suppress(ProcessLookupError, OSError):
            signal.pthread_kill(thread, number)


def _claimed() -> int | None:
    """A real-time signal that nobody handles, ignores or blocks in this process; it is ours from now on."""
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
    """A bit for every signal that is caught or ignored, by code in C too."""
    used = 0
    with suppress(OSError, ValueError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith(("SigCgt:", "SigIgn:")):
                used |= int(line.split()[1], 16)
    return used


def start_thread(thread: threading.Thread) -> None:
    """``thread.start()``, from which what a signal's handler raises comes out as it is.

    Python 3.13 raises a KeyError in its place where the thread had begun already: ``start()`` then tidies up what the
    thread itself has. Raises RuntimeError if no thread can be had.
    """
    try:
        thread.start()
    except KeyError as error:
        if error.__context__ is None:
            raise
        raise error.__context__ from None
