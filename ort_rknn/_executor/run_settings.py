"""A call's own settings from its RunOptions; :mod:`ort_rknn._ep.run_options` reads them."""

from __future__ import annotations

import threading
from ctypes import c_bool

#: Active calls of ``run_async`` that were given RunOptions. Only these can be ended by their user: the others have
#: options that the user cannot reach, and that look the same from inside.
asynchronous: set[object] = set()


class RunSettings:
    """The settings of one call. ``flag`` is its ``terminate``, in onnxruntime's memory, which is valid until the call
    returns."""

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
        """The user may set ``terminate`` while it runs, so its caller must wait on a different thread."""
        self.timeout_ms = timeout_ms
        """``run_timeout_ms``; None: the session's."""
        self.priority = priority
        """Index into :data:`ort_rknn._options.PRIORITIES`; None: the session's."""
        self.bounds = self.leaves or bool(timeout_ms)
        """Its caller waits on a different thread, regardless of the session's settings."""

    @property
    def terminated(self) -> bool:
        """Whether ``terminate`` is set."""
        return self._flag is not None and self._flag.value


#: By thread: the settings of its current call.
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
    """This thread's call is over."""
    _settings.pop(threading.get_ident(), None)


def current() -> RunSettings | None:
    """The settings of this thread's current call; None if it has none."""
    return _settings.get(threading.get_ident()) if _settings else None


def forget() -> None:
    """In a forked child: drop the settings of the parent's other threads."""
    _settings.clear()
    asynchronous.clear()
