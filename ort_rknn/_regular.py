"""Opens files in places that other users can write: a pipe or a device in place of a file must not block a reader. And
creates files that will replace others.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from typing import BinaryIO


class NotRegularError(OSError):
    """A pipe, socket or device, or a file that is not the user's alone."""


def open_regular(
    path: str | os.PathLike[str], *, owner: int | None = None, closed_to: int = 0, follow: bool = True
) -> BinaryIO:
    """Open a regular file for reading, unbuffered.

    ``owner``: the uid that must own it. ``closed_to``: mode bits that must not be set. ``follow``: follow a symbolic
    link at the end of the path. Raises OSError.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags if follow else flags | getattr(os, "O_NOFOLLOW", 0))
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(f"{os.fspath(path)} is not a regular file")
        if (owner is not None and status.st_uid != owner) or status.st_mode & closed_to:
            raise NotRegularError(f"{os.fspath(path)} is another user's, or open to others")
        return open(descriptor, "rb", buffering=0)
    except BaseException:
        os.close(descriptor)
        raise


def new_beside(place: str | os.PathLike[str], prefix: str, suffix: str = "") -> tuple[int, str]:
    """A new file in the folder of ``place``, open for writing: its descriptor and path. Raises OSError, which names the
    folder, not the new file."""
    folder = os.path.dirname(os.path.abspath(place))
    try:
        return tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=folder)
    except OSError as error:
        text = error.strerror or str(error)
        if isinstance(error, PermissionError):
            text = "this user may not write into this folder; run as its owner, or use a folder of your own"
        raise type(error)(error.errno, text, folder) from None
