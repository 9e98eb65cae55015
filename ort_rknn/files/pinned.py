"""A file held open, so that later reads see the same content as the first.

Another process may rewrite, replace or delete a model while a session lives. Files are read through the descriptor with
``pread``. Nothing is mapped, because truncating a mapped file kills the process with SIGBUS, and no file position is
shared with a forked child.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator

from .._locks import Lock

__all__ = ["FileChangedError", "Pinned", "PinnedModel"]

#: The number of files held open per model. Some exporters create more (one per weight); of the others only the state is
#: recorded, and a deleted or replaced file is an error.
_MOST_OPEN = 16

# O_NONBLOCK: opening a pipe must not wait for its writer. It has no effect on a regular file.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class Pinned:
    """A regular file: its absolute path, an open descriptor, and its state when it was opened.

    It does not matter if the path is later deleted or leads to another file. The original content of a file that is
    modified in place can no longer be read: :meth:`change` reports that. Closed by :meth:`close`, at the end of a
    ``with`` block, or when garbage-collected; the recorded state remains available.

    Raises OSError if the file cannot be opened (IsADirectoryError for a folder), ValueError if it is not a regular file
    (a pipe, a device).
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
        """How the file was changed since it was opened, for error messages; None if it is unchanged."""
        if self.descriptor >= 0:
            info = os.fstat(self.descriptor)
        elif self.is_at_its_path():
            info = os.stat(self.path)
        else:
            return f"{self.path} was deleted or replaced"
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
        """A path at which code that needs a path can open this very file as long as it is pinned.

        Linux has ``/proc/self/fd``. Without it, this is the file's own path. Raises FileNotFoundError if that leads to
        another file, or none.
        """
        path = f"/proc/self/fd/{self.descriptor}"
        if os.path.exists(path):
            return path
        if self.is_at_its_path():
            return self.path
        raise FileNotFoundError(errno.ENOENT, "the file was deleted or replaced, and there is no /proc", self.path)

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes at offset ``start``. Raises EOFError if the file has become shorter."""
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


class FileChangedError(OSError):
    """A file is no longer what it was when it was pinned. The message names it."""


class PinnedModel:
    """A model and the files that belong to it, held open: enough to load the same model again later.

    ``parts``: files without which it is not the same model (external data, the compiled models of EPContext nodes).
    ``beside``: other files that are looked for beside it (its twin). Names that leave the model's folder, and missing
    files, are skipped. Raises OSError or ValueError if the model itself cannot be pinned.
    """

    def __init__(self, path: str | os.PathLike[str], parts: Iterable[str] = (), beside: Iterable[str] = (), /) -> None:
        self._lock = Lock()
        self._users = 0
        self._closed = False
        self.model = Pinned(path)
        folder = os.path.dirname(self.model.path)
        self._parts: dict[str, Pinned] = {}
        self._beside: dict[str, Pinned] = {}
        own = os.path.basename(self.model.path)
        try:
            for files, names in ((self._parts, parts), (self._beside, beside)):
                for name in dict.fromkeys(names):
                    if name != own and name not in self._parts and stays_inside(name):
                        with contextlib.suppress(OSError, ValueError):
                            files[name] = Pinned(os.path.join(folder, name))
                        if len(self._parts) > _MOST_OPEN and name in self._parts:
                            self._parts[name].close()
        except BaseException:
            self._close()
            raise

    @property
    def path(self) -> str:
        """The model's absolute path."""
        return self.model.path

    @contextlib.contextmanager
    def at_a_path(self, *, with_all: bool = False) -> Iterator[str]:
        """A path at which the pinned model and its parts can be opened inside the ``with`` block.

        ``with_all``: also the files beside it, all under their own names. It is the model's own path as long as that
        leads to the same files, otherwise a path in a private folder that is removed after the block. Raises
        FileChangedError if a file was modified in place, even during the block, and OSError if there is no space for
        copies.
        """
        with self._lock:
            self._users += 1
        try:
            self._check()
            if not self._parts and not with_all:
                yield self.model.reopen_path()
            elif self._is_in_place():
                yield self.model.path
                if not self._is_in_place():
                    raise FileChangedError(f"{self.path}, or a file that belongs to it, was replaced just now")
            else:
                with tempfile.TemporaryDirectory(prefix="ort_rknn-") as folder:
                    self._lay_out(folder)
                    yield os.path.join(folder, os.path.basename(self.path))
            self._check()
        finally:
            with self._lock:
                self._users -= 1
                if self._closed and not self._users:
                    self._close()

    def _check(self) -> None:
        for file in (self.model, *self._parts.values()):
            if (change := file.change()) is not None:
                raise FileChangedError(f"{change}; make the session again")

    def _is_in_place(self) -> bool:
        files = (self.model, *self._parts.values())
        return all(file.is_at_its_path() for file in files) and all(
            os.path.exists(file.path) for file in self._beside.values()
        )

    def _lay_out(self, folder: str) -> None:
        """Fill the private folder. Uses copies if onnxruntime would refuse external data behind a link out of the
        folder."""
        own = {os.path.basename(self.path): self.model}
        copied = {**own, **self._parts} if self._parts else {}
        for name, file in {**own, **self._parts, **self._beside}.items():
            target = os.path.join(folder, name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if name in copied:
                shutil.copyfile(file.reopen_path(), target)
            else:
                os.symlink(file.reopen_path(), target)

    def close(self) -> None:
        """Close the descriptors as soon as :meth:`at_a_path` is no longer in use. Idempotent; does not wait."""
        with self._lock:
            self._closed = True
            if not self._users:
                self._close()

    def _close(self) -> None:
        for file in (self.model, *self._parts.values(), *self._beside.values()):
            file.close()


def stays_inside(name: str) -> bool:
    """Whether ``name`` is a relative path that stays in its folder, judging by its spelling."""
    parts = name.replace("\\", "/").split("/")
    return bool(name) and "\0" not in name and not os.path.isabs(name) and parts[0] != "" and ".." not in parts
