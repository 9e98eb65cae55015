"""What a call was given for itself, with its RunOptions: see :mod:`ort_rknn._ep.run_options`, which reads them."""

from __future__ import annotations

import threading
from ctypes import c_bool

#: Calls of ``run_async`` under way that were given RunOptions. Only these can be ended by their user: the others have
#: options that nobody knows of, which look the same from inside.
asynchronous: set[object] = set()


class RunSettings:
    """Of one call. ``flag`` is its ``terminate``, in onnxruntime's memory, which stays until the call returns."""

    __slots__ = ("_flag", "bounds", "leaves", "priority", "timeout_ms")

    def __init__(
        self,
        flag: c_bool | None = None,
        *,
        leaves: bool = False,
        timeout_ms: int | None = None,
        priority: int | None = None,
    ) -> None:
        self._flag = flag
        self.leaves = leaves and flag is not None
        """The user may set ``terminate`` while it runs: its caller must wait apart from it."""
        self.timeout_ms = timeout_ms
        """``run_timeout_ms``; None: the session's."""
        self.priority = priority
        """Place in :data:`ort_rknn._options.PRIORITIES`; None: the session's."""
        self.bounds = self.leaves or bool(timeout_ms)
        """Its caller waits apart from it, whatever the session says."""

    @property
    def terminated(self) -> bool:
        """Whether ``terminate`` is set by now."""
        return self._flag is not None and self._flag.value


#: By thread: of the call that it is in.
_settings: dict[int, RunSettings] = {}


def begin(settings: RunSettings) -> None:
    """This thread begins a call with these settings."""
    _settings[threading.get_ident()] = settings


def lend(settings: RunSettings | None) -> bool:
    """This thread works for a call with these settings. True: :func:`end` must follow."""
    if settings is None or threading.get_ident() in _settings:
        return False
    begin(settings)
    return True


def end() -> None:
    """The call of this thread is over."""
    _settings.pop(threading.get_ident(), None)


def current() -> RunSettings | None:
    """Those of the call that this thread is in; None if it has none."""
    return _settings.get(threading.get_ident()) if _settings else None


def forget() -> None:
    """In a forked child: those of other threads are the parent's."""
    _settings.clear()
    asynchronous.clear()
