"""The data for ``ort-rknn top``: each process with a model on the NPU writes its load to a small file once a second.

The file is ``PID.json`` in a folder that only this user can access: ``$XDG_RUNTIME_DIR/ort_rknn``, else
``/run/user/UID/ort_rknn``, else ``/tmp/ort_rknn-UID``. One thread writes it while there are executors; runs cost
nothing extra, because contexts count anyway. A forked child starts with its own first executor. ``ORT_RKNN_NO_TOP=1``
disables it.
"""

from __future__ import annotations

import atexit
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._concurrency.forks import renewed_in_child
from .._environment import switched_on
from .._interrupts import start_thread
from .._locks import Lock

if TYPE_CHECKING:
    from .counters import ModelStats

#: Seconds between writes.
INTERVAL = 1.0
#: Seconds before the first write: a session that ends sooner costs a thread, but no file.
_FIRST = 0.05
VERSION = 1
#: The maximum number of models and bytes in a file.
MOST_MODELS, MOST_BYTES = 64, 1 << 16

#: Returns for each executor: its number, its device and its counters.
Reader = Callable[[], "Sequence[tuple[int, str, ModelStats]]"]


def folder() -> Path | None:
    """The folder of this user's files; None if there is none that only this user can write."""
    uid = os.geteuid()
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    for base in (given, f"/run/user/{uid}"):
        if os.path.isabs(base) and is_private(Path(base)):
            return Path(base) / "ort_rknn"
    return Path(f"/tmp/ort_rknn-{uid}")  # noqa: S108  # checked by is_private before use


def is_private(place: Path, uid: int | None = None) -> bool:
    """Whether ``place`` is a folder, not a link to one, that belongs to this user (or ``uid``) and that no other user
    can write."""
    try:
        status = place.lstat()
    except OSError:
        return False
    owner = os.geteuid() if uid is None else uid
    return stat.S_ISDIR(status.st_mode) and status.st_uid == owner and not status.st_mode & 0o022


def start_of(pid: int) -> int | None:
    """The start time of a process, in the kernel's ticks since boot: together with the pid it identifies a process.
    None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read(4096).rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


class Publisher:
    """The file of this process, and the thread that writes it."""

    def __init__(self, read: Reader, interval: float = INTERVAL) -> None:
        self._read = read
        self._interval = interval
        self._wake = threading.Event()
        self._stops = False
        self._path: Path | None = None
        self._pid = os.getpid()
        self._before: dict[tuple[int, str], tuple[float, int]] = {}
        self._at = time.monotonic()
        self.thread = threading.Thread(target=self._go, name="ort_rknn top", daemon=True)

    def stop(self) -> None:
        """Ask the thread to remove the file and end."""
        self._stops = True
        self._wake.set()

    def look(self) -> None:
        """Something has changed: have the thread check now, and wait briefly for it."""
        self._wake.set()
        if threading.current_thread() is not self.thread:
            self.thread.join(0.5)

    def _go(self) -> None:
        try:
            self._wake.wait(_FIRST)
            while not self._stops:
                self._wake.clear()
                found = self._read()
                if not found and _ends(self):
                    break
                self._write(self._snapshot(found))
                del found
                self._wake.wait(self._interval)
        except OSError:
            pass  # a full or read-only disk: `top` does not show this process, and nothing else is lost
        finally:
            _forget(self)
            self.remove()

    def _snapshot(self, found: Sequence[tuple[int, str, ModelStats]]) -> dict[str, Any]:
        now = time.monotonic()
        passed, self._at = max(now - self._at, 1e-3), now
        before, self._before = self._before, {}
        models = []
        for number, device, stats in found[:MOST_MODELS]:
            cores: dict[str, dict[str, float]] = {}
            rate = 0.0
            for label, core in stats.cores.items():
                key = (number, label)
                seconds, runs = before.get(key, (0.0, 0))
                self._before[key] = (core.run_seconds, core.runs)
                load = min(max(core.run_seconds - seconds, 0.0) / passed, float(core.contexts or 1))
                cores[label] = {"load": round(min(load, 1.0), 4), "contexts": core.contexts, "in_use": core.in_use}
                rate += max(core.runs - runs, 0) / passed
            total = stats.total
            models.append(
                {
                    "session": number,
                    "model": stats.model[:255],
                    "device": device[:255],
                    "cores": cores,
                    "runs_per_second": round(rate, 2),
                    "runs": total.runs,
                    "errors": total.errors,
                    "queued": stats.queued,
                    "cpu_calls": stats.cpu_calls,
                }
            )
        return {"version": VERSION, "pid": self._pid, "start": start_of(self._pid), "at": now, "models": models}

    def _write(self, data: dict[str, Any]) -> None:
        if self._path is None:
            place = folder()
            if place is None:
                return
            place.mkdir(mode=0o700, exist_ok=True)
            if not is_private(place):
                raise PermissionError(f"{place} can be written by others")
            self._path = place / f"{self._pid}.json"
        content = json.dumps(data, ensure_ascii=True).encode()
        if len(content) > MOST_BYTES:
            content = json.dumps({**data, "models": data["models"][:8]}, ensure_ascii=True).encode()
        fresh = self._path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with open(fresh, "xb", opener=_private) as file:
            file.write(content)
        os.replace(fresh, self._path)

    def remove(self) -> None:
        """Remove the file. Does nothing in a forked child: the file is the parent's."""
        if self._path is not None and os.getpid() == self._pid:
            for place in (self._path.with_suffix(".new"), self._path):
                try:
                    place.unlink(missing_ok=True)
                except OSError:
                    pass


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


_publisher: Publisher | None = None
_lock = renewed_in_child(Lock())


def enabled() -> bool:
    """Whether the environment lets this process publish. Raises OptionError for an invalid value."""
    return not switched_on("ORT_RKNN_NO_TOP")


def begin(read: Reader) -> None:
    """An executor was opened, and ``read`` returns its load: start publishing, unless that has started already."""
    global _publisher
    with _lock:
        if _publisher is not None:
            return
        made = Publisher(read)
        try:
            start_thread(made.thread)
        except RuntimeError:  # interpreter shutdown, or too many threads
            return
        _publisher = made


def last_closed() -> None:
    """The last executor was closed: remove the file and end the thread, before this returns if they are quick."""
    publisher = _publisher
    if publisher is not None:
        publisher.look()


def _ends(publisher: Publisher) -> bool:
    """Whether no executors are left, so that the next one starts with a new publisher. Checked again under the lock,
    because one may have come meanwhile that saw this publisher running."""
    with _lock:
        if publisher._read():
            return False
        _forget_locked(publisher)
    return True


def _forget(publisher: Publisher) -> None:
    with _lock:
        _forget_locked(publisher)


def _forget_locked(publisher: Publisher) -> None:
    global _publisher
    if _publisher is publisher:
        _publisher = None


def _at_exit() -> None:
    publisher = _publisher
    if publisher is not None:
        publisher.stop()
        publisher.thread.join(1.0)
        publisher.remove()


def _in_child() -> None:
    global _publisher
    _publisher = None


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
