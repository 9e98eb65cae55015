"""What a test examines in its own process: open descriptors, and a forked child."""

from __future__ import annotations

import gc
import os
import select
import signal
import traceback
import warnings
from collections.abc import Callable

#: Seconds after which a child counts as hanging.
_PATIENCE = 120.0


def open_descriptors() -> int:
    """The number of open descriptors in this process, after garbage collection."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def in_forked_child(work: Callable[[], None]) -> str:
    """Call ``work`` in a forked child: "" if it returned, else what went wrong."""
    gc.collect()  # garbage of earlier tests belongs to this process, and must not be destroyed in the child
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: this process may have threads
        child = os.fork()
    if not child:
        os.close(reader)
        _work_and_exit(work, writer)
    os.close(writer)
    try:
        return _answer(reader)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _work_and_exit(work: Callable[[], None], writer: int) -> None:
    gc.disable()
    said = "the child ended before its end"
    try:
        work()
        said = ""
    except BaseException:
        said = traceback.format_exc()
    finally:
        os.write(writer, b"\0" + said.encode()[-60_000:])
        os._exit(0)


def _answer(reader: int) -> str:
    ready, _, _ = select.select([reader], [], [], _PATIENCE)
    if not ready:
        return f"the child did not end in {_PATIENCE:.0f} seconds"
    answer = os.read(reader, 65_536)
    return answer[1:].decode(errors="replace") if answer else "the child crashed"
