"""``RunOptions.terminate``, seen while a run is under way. For runs whose caller waits apart from them."""

from __future__ import annotations

import threading
from ctypes import c_bool

#: By thread: the flag of the call that it is in, in onnxruntime's memory, which stays until the call returns.
_flags: dict[int, c_bool] = {}


def begin(flag: c_bool) -> None:
    """This thread begins a call with this flag."""
    _flags[threading.get_ident()] = flag


def lend(flag: c_bool | None) -> bool:
    """This thread works for a call with this flag. True: :meth:`end` must follow."""
    if flag is None or threading.get_ident() in _flags:
        return False
    begin(flag)
    return True


def end() -> None:
    """The call of this thread is over."""
    _flags.pop(threading.get_ident(), None)


def flag() -> c_bool | None:
    """That of the call that this thread is in; None where nobody can see it."""
    return _flags.get(threading.get_ident()) if _flags else None
