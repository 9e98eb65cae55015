"""Python functions called from C: the rules for every callback of the provider.

No exception leaves a callback: ctypes would return an undefined value, which onnxruntime would take for a status.
Callbacks are created once per process and never freed. Once the interpreter has started to shut down they do nothing,
except for a run that may still be active.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import logging
import operator
import types
from collections.abc import Callable
from typing import Any

from .._errors import EP_FAIL, RUNTIME_EXCEPTION, bare_message, status_code
from .._interrupts import END_OF_STACK, INTERRUPTED, covered, is_from_a_handler, raised_after
from .abi import Api, OrtCallFailed

log = logging.getLogger("ort_rknn")

_SPARES = 512
_running = True
#: A spare status was used. The next caller with enough stack creates new ones.
short = False
_api: Api | None = None


def _stop() -> None:
    global _running
    _running = False


atexit.register(_stop)


def use(api: Api) -> None:
    """Set the functions that create a status. Must be called before any guarded callback."""
    global _api
    _api = api
    make_spares()


def status_of(error: BaseException, of_ours: bool = False) -> int:
    """A status for an exception, to be returned at once.

    ``of_ours``: for the ``run`` of one of our sessions, which raises the exception itself if it is a RecursionError or
    came from a signal handler; see :func:`~ort_rknn._interrupts.raise_what_ended`. In other calls the status becomes
    onnxruntime's exception, and a signal handler's exception is raised again afterwards.

    Raises RecursionError if the stack has no room for this; :data:`spares` has a status for that case. Raises nothing
    else, although a signal handler may run even here.
    """
    global short
    for _ in range(8):
        try:
            if isinstance(error, RecursionError):
                return _new_status(*_end_of_stack(of_ours))
            if is_from_a_handler(error):
                code = EP_FAIL if of_ours else RUNTIME_EXCEPTION
                return raised_after(error, _new_status(code, f"{INTERRUPTED}{bare_message(error)}"))
            code = error.code if isinstance(error, OrtCallFailed) else status_code(error)
            # For EP_FAIL, onnxruntime's Python layer would rebuild the session on the CPU and lose the cause.
            return _new_status(RUNTIME_EXCEPTION if code == EP_FAIL else code, bare_message(error))
        except RecursionError:
            raise
        except BaseException as another:
            if not is_from_a_handler(another):
                another = RuntimeError(f"{type(another).__name__} while an error was reported")
            error = another
    short = True
    return next(spares_of_ours if of_ours else spares)


def _new_status(code: int, message: str) -> int:
    assert _api is not None
    try:
        return _api.status(code, message)
    except ctypes.ArgumentError as error:
        if "RecursionError" not in str(error):
            raise
        raise RecursionError("maximum recursion depth exceeded") from None


def _end_of_stack(of_ours: bool) -> tuple[int, str]:
    return EP_FAIL if of_ours else RUNTIME_EXCEPTION, END_OF_STACK


_made_before: tuple[list[int], list[int]] = ([], [])
#: Preallocated statuses for a callback at the very end of the stack, where Python can call no more functions: a ``for``
#: over this takes one. Each can be used once.
spares = iter(_made_before[0])
#: The same, for the ``run`` of our sessions.
spares_of_ours = iter(_made_before[1])
#: Addresses of the objects whose callbacks onnxruntime calls for our sessions: the first argument of such a callback.
ours: set[int] = set()


def make_spares() -> None:
    """Replenish the preallocated statuses. Raises RecursionError if the stack has no room for that."""
    global short
    for left, made, of_ours in ((spares, _made_before[0], False), (spares_of_ours, _made_before[1], True)):
        for _ in range(_SPARES - operator.length_hint(left)):
            made.append(_new_status(*_end_of_stack(of_ours)))
    short = False


def always(value: Any) -> Callable[..., Any]:
    """A function of one argument that returns ``value`` without running Python code, so that it can raise nothing."""
    return functools.partial(getattr, types.SimpleNamespace(value=value), "value")


def guarded(callback: Callable[..., None]) -> Callable[..., int]:
    """A callback that returns a status: 0, or the exception's."""

    def call(*args: int) -> int:
        global short
        try:
            try:
                if short:
                    make_spares()
                if _running:
                    callback(*args)
                return 0
            except BaseException as error:
                return status_of(error, args[0] in ours)
        except BaseException as error:
            try:
                return status_of(error, args[0] in ours)
            except BaseException:
                short = True
                for spare in spares_of_ours if args[0] in ours else spares:
                    return spare
                raise

    return covered(call)


def quiet(callback: Callable[..., None]) -> Callable[..., int | None]:
    """A callback that returns nothing: an exception is logged or, if it came from a signal handler, raised again
    afterwards."""

    def call(*args: int) -> int | None:
        try:
            if _running:
                callback(*args)
        except BaseException as error:
            try:
                if is_from_a_handler(error):
                    return raised_after(error, 0)
                log.exception("an error in %s", callback.__name__)
            except BaseException:  # noqa: S110 - logging itself failed: at interpreter exit, say
                pass
        return None

    return covered(call)


def keep_forever(thing: Any) -> None:
    """Keep a reference that is never released. Sessions in a reference cycle, or in an exception's traceback, are
    released while the interpreter clears its modules, and onnxruntime then still calls into objects of these
    modules."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
