"""The user's cache folder, and which files are safe to load or run: those that only root and this user can change.

A file is only as safe as the folders that lead to it: whoever can write to a folder can replace its content. The owner
of "/" counts as root, because in a user namespace root may have another uid.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_WRITABLE_BY_OTHERS = 0o002
_WRITABLE_BY_GROUP = 0o020


def cache_folder() -> Path | None:
    """``$XDG_CACHE_HOME/ort_rknn``, else ``~/.cache/ort_rknn``; None if there is no home folder. Creates nothing."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "ort_rknn"


def why_unsafe(path: str | os.PathLike[str]) -> str | None:
    """Why another user could change what ``path`` leads to; None if only root and this user can.

    Checks the file, or folder, and every folder on its path, including those of links. A folder like /tmp, whose sticky
    bit keeps users from renaming files of others, is safe as part of the path. Raises OSError if something on the path
    cannot be examined.
    """
    given = os.path.abspath(path)
    root = os.lstat("/")
    owners = {0, os.geteuid(), root.st_uid}
    seen: set[str] = set()
    for whole in (given, os.path.realpath(given)):
        for part in _ways(whole):
            if part in seen:
                continue
            seen.add(part)
            problem = _why_unsafe_itself(part, os.lstat(part), owners)
            if problem is not None:
                return problem
    return None


def _ways(path: str) -> Iterator[str]:
    """The folders that lead to an absolute, normalized path, from "/" down, and the path itself. As text, because each
    NPU session checks some dozens."""
    yield "/"
    end = path.find("/", 1)
    while end != -1:
        yield path[:end]
        end = path.find("/", end + 1)
    yield path


def _why_unsafe_itself(path: str, status: os.stat_result, owners: set[int]) -> str | None:
    if status.st_uid not in owners:
        return f"{path} belongs to user {status.st_uid}"
    if stat.S_ISLNK(status.st_mode) or (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
        return None
    if status.st_mode & _WRITABLE_BY_OTHERS or (
        status.st_mode & _WRITABLE_BY_GROUP and not _is_private_group(status.st_gid, status.st_uid)
    ):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "file"
        return f"the {kind} {path} is writable for others (mode {stat.S_IMODE(status.st_mode):04o})"
    return None


def _is_private_group(gid: int, uid: int) -> bool:
    """Root's own group, or one with the owner's name and no other members, as many systems create for each user."""
    import grp
    import pwd

    if gid == 0:
        return True
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(uid)
    except KeyError:
        return False
    return group.gr_gid == user.pw_gid and group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}
