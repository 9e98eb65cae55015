"""Writes files atomically."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from .._regular import new_beside


def put(place: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file that appears complete or not at all. Removes what a process that was killed left. The OSError of a
    full disk names ``place``."""
    _clear(place)
    descriptor, fresh = new_beside(place, f".{place.name}.")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # while it is written, so that no process removes it
        with os.fdopen(descriptor, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(fresh, 0o644)
        os.replace(fresh, place)
    except BaseException as error:
        Path(fresh).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(place)
        raise


def _clear(place: Path) -> None:
    """Remove unfinished files of this name that no process writes any more."""
    for left in place.parent.glob(f".{glob.escape(place.name)}.*"):
        try:
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink(missing_ok=True)
        except OSError:
            continue  # it is being written, or is not ours
        finally:
            os.close(descriptor)


def put_copy(place: Path, source: str | os.PathLike[str]) -> None:
    """Write a copy of ``source`` in the same way."""
    with open(source, "rb") as opened:
        put(place, lambda file: shutil.copyfileobj(opened, file, 1 << 20))
