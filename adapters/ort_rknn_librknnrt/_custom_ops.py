"""Custom operators: the user's own libraries, which the runtime calls for operators that the NPU lacks.

A library exports ``get_rknn_custom_op``, which returns a pointer to its description. The description is only passed to
the runtime, never read here.
"""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path
from typing import Any, Final

from ort_rknn.adapter import LoadSettings, SettingError

from ._binding import log

#: The runtime's own folder and the names in it, as in the vendor's documentation for Linux boards.
DEFAULT_FOLDER: Final = Path("/usr/lib/rknpu/op_plugins")
_PATTERN: Final = "librkcst_*.so"
_SYMBOL: Final = "get_rknn_custom_op"


class CustomOps:
    """Opened operator libraries. They stay open as long as this object, which must outlive every context."""

    def __init__(self, settings: LoadSettings, folder: Path = DEFAULT_FOLDER) -> None:
        paths = [Path(path) for path in settings.custom_op_paths]
        if settings.custom_op_default_path:
            found = sorted(folder.glob(_PATTERN)) if folder.is_dir() else []
            if not found:
                log.warning("custom_op_default_path: there is no %s in %s", _PATTERN, folder)
            paths += found
        self._libraries: list[Any] = []
        self.descriptions: list[int] = []
        for path in paths:
            self._open(path)

    def _open(self, path: Path) -> None:
        _check_safe(path)
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise SettingError(f"the custom operator library {path} cannot be opened: {error}") from error
        try:
            get = library[_SYMBOL]
        except AttributeError:
            raise SettingError(f"{path} is not a custom operator library: it has no function {_SYMBOL}") from None
        get.restype = ctypes.c_void_p
        description = get()
        if not description:
            raise SettingError(f"{path}: {_SYMBOL} returned no operator")
        if description in self.descriptions:
            raise SettingError(f"{path}: its operator was given already; name each library once")
        self._libraries.append(library)
        self.descriptions.append(description)


def _check_safe(path: Path) -> None:
    """Check that other users cannot write the file or its folder: a library is code that this process will run."""
    if not path.is_absolute():
        raise SettingError(f"the custom operator library {path} must be named by its absolute path")
    try:
        real = path.resolve(strict=True)
        file, folder = real.stat(), real.parent.stat()
    except OSError as error:
        raise SettingError(f"the custom operator library {path} cannot be used: {error}") from error
    if not stat.S_ISREG(file.st_mode):
        raise SettingError(f"the custom operator library {path} is not a file")
    for what, status in ((real, file), (real.parent, folder)):
        sticky = bool(status.st_mode & stat.S_ISVTX) and what is not real
        if status.st_mode & stat.S_IWOTH and not sticky:
            raise SettingError(f"{path} is not loaded: {what} can be written by anybody (chmod o-w)")
        if status.st_uid not in (0, os.getuid()):
            raise SettingError(f"{path} is not loaded: {what} belongs to another user")
