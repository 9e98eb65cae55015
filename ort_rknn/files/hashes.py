"""A cache of sha256 sums: a large model is read once, not again by every session after it was copied.

The cache is a private file in the user's cache folder that others can neither read nor write; otherwise it is not used.
An entry is valid for a path with the recorded size, mtime, ctime and inode; programs that copy can set an mtime, but
not a ctime. If the cache cannot be read or written, files are hashed again.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from .._cache import cache_folder
from .._locks import Lock
from .._regular import open_regular

__all__ = ["hashes_file", "sha256_of"]

log = logging.getLogger("ort_rknn")

#: The number of entries kept; the oldest are dropped first.
_MOST = 512
_LARGEST_FILE = 1 << 20
#: A file written this recently may be written again without a visible change of its mtime.
_SETTLED_NS = 2 * 10**9
_BLOCK = 1 << 20
_lock = Lock()


def hashes_file() -> Path | None:
    """``$XDG_CACHE_HOME/ort_rknn/hashes.json``, else below ``~/.cache``; None if there is no home folder."""
    folder = cache_folder()
    return folder / "hashes.json" if folder is not None else None


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's contents, in hex. Raises OSError if it cannot be read or is not a regular file."""
    with open_regular(path) as file:
        info = os.fstat(file.fileno())
        name = os.path.realpath(path)
        key = _identity(info)
        with _lock:
            known = _remembered().get(name)
        if known is not None and known[:-1] == key:
            return str(known[-1])
        digest = _digest(file.fileno())
        after = os.fstat(file.fileno())
    settled = 0 <= after.st_mtime_ns < time.time_ns() - _SETTLED_NS
    if settled and _identity(after) == key:
        with _lock:
            _remember(name, [*key, digest])
    return digest


def _identity(info: os.stat_result) -> list[int]:
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_dev]


def _digest(descriptor: int) -> str:
    from hashlib import sha256

    digest = sha256()
    while block := os.read(descriptor, _BLOCK):
        digest.update(block)
    return digest.hexdigest()


Entries = dict[str, Any]


def _remembered() -> Entries:
    """The entries of the cache file; {} if there is none that can be trusted."""
    from .._json import JsonError, members, read_json

    path = hashes_file()
    if path is None:
        return {}
    try:
        content = read_json(path, most_bytes=_LARGEST_FILE, owner=_user(), closed_to=0o077, follow=False)
        return {name: entry for name, entry in members(content, "the whole").items() if _is_entry(entry)}
    except FileNotFoundError:
        return {}
    except (OSError, JsonError) as error:
        log.debug("%s is not used: %s", path, error)
        return {}


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 6 or not all(type(number) is int for number in entry[:-1]):
        return False
    digest = entry[-1]
    return isinstance(digest, str) and len(digest) == 64 and not digest.strip("0123456789abcdef")


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _remember(name: str, entry: list[int | str]) -> None:
    """Rewrite the cache file with this entry as the last one. A reader sees either the old file or the new one."""
    import json

    path = hashes_file()
    if path is None:
        return
    entries = _remembered()
    entries.pop(name, None)
    entries[name] = entry
    for oldest in list(entries)[: max(0, len(entries) - _MOST)]:
        del entries[oldest]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".hashes-")  # mode 0600
        try:
            with open(descriptor, "w", encoding="ascii") as file:
                json.dump(entries, file)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        log.debug("the hash of %s cannot be remembered: %s", name, error)
