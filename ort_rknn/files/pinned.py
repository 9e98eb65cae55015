"""A file held open, so that what is read later is what was read first.

Another process may rewrite, replace or delete a model while a session lives. Reading goes through the descriptor and by
``pread``: nothing is mapped, because a mapped file that is cut short ends the process with SIGBUS, and no position is
shared with a forked child.
"""

from __future__ import annotations

import errno
import os
import stat

__all__ = ["Pinned"]

# O_NONBLOCK: opening a pipe must not wait for its writer. It changes nothing for a regular file.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class Pinned:
    """A regular file: its absolute path, an open descriptor, and what the file was when it was opened.

    A path that is deleted or leads to another file later makes no difference. A file that is changed in place cannot be
    read any more as it was: :meth:`change` tells. Closed by :meth:`close`, at the end of a ``with``, or when dropped.

    Raises OSError where the file cannot be opened (IsADirectoryError for a folder), ValueError where it is not a
    regular file (a pipe, a device).
    """

    __slots__ = ("__weakref__", "_device", "_inode", "_mtime_ns", "descriptor", "path", "size")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.descriptor = -1
        given = os.fspath(path)
        descriptor = os.open(given, _FLAGS)
        try:
            info = os.fstat(descriptor)
            if stat.S_ISDIR(info.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), given)
            if not stat.S_ISREG(info.st_mode):
                raise ValueError(f"{given}: not a regular file")
        except BaseException:
            os.close(descriptor)
            raise
        self.path = os.path.abspath(given)
        self.descriptor = descriptor
        self.size = info.st_size
        self._mtime_ns = info.st_mtime_ns
        self._device, self._inode = info.st_dev, info.st_ino

    def change(self) -> str | None:
        """What was done to the file since it was opened, for the text of an error; None where it is as it was."""
        info = os.fstat(self.descriptor)
        if info.st_size != self.size:
            return f"{self.path} was changed in place: it had {self.size} bytes, now it has {info.st_size}"
        if info.st_mtime_ns != self._mtime_ns:
            return f"{self.path} was changed in place: it was written to again"
        return None

    def is_at_its_path(self) -> bool:
        """Whether the path still leads to this file."""
        try:
            info = os.stat(self.path)
        except OSError:
            return False
        return (info.st_dev, info.st_ino) == (self._device, self._inode)

    def reopen_path(self) -> str:
        """A path at which code that wants one can open this very file as long as it is pinned.

        Linux has ``/proc/self/fd``. Where that is missing it is the file's own path. Raises FileNotFoundError where
        that leads to another file, or none.
        """
        path = f"/proc/self/fd/{self.descriptor}"
        if os.path.exists(path):
            return path
        if self.is_at_its_path():
            return self.path
        raise FileNotFoundError(errno.ENOENT, "the file was deleted or replaced, and there is no /proc", self.path)

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on. Raises EOFError where the file has become shorter."""
        part = os.pread(self.descriptor, size, start)
        if len(part) == size:
            return part
        parts = [part]
        while part and (size := size - len(part)):
            start += len(part)
            part = os.pread(self.descriptor, size, start)
            parts.append(part)
        if size:
            raise EOFError(f"{self.path} ends at byte {start}, it had {self.size} when it was opened")
        return b"".join(parts)

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Pinned:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
