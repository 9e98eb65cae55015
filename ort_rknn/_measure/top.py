"""``ort_rknn.top()``: which processes use the NPU.

Each process that uses this package publishes its load (:mod:`ort_rknn._executor.published`). These files are untrusted:
a file of another user, one that is too large, or one with unexpected content is ignored.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .._executor.published import MOST_BYTES, MOST_MODELS, VERSION, folder, is_private, start_of
from .._json import JsonError, array, members, number, read_json, text
from . import board
from .board import Clock, User

_MOST_FILES, _MOST_CORES = 256, 32
_LONGEST = 255
#: Seconds after which a file is stale: its process is stopped, or hangs.
_STALE = 10.0
_CORE_NUMBERS = re.compile(r"cores? (\d{1,2}(?:,\d{1,2})*)(?: together)?")

#: Makes the driver's own load readable for everyone until the next boot: by default only root can read debugfs.
READ_LOAD = "sudo mount -o remount,mode=755 /sys/kernel/debug"


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """One compiled model of a process."""

    session: int
    """The process's number for the model; counts up."""
    model: str
    """The compiled model's file name, as reported by that process: not to be trusted."""
    device: str
    cores: Mapping[str, float]
    """Share of the last second in which a run was active, from 0 to 1, by "core 0", "cores 0,1 together" ..."""
    contexts: int
    runs_per_second: float
    runs: int
    errors: int
    queued: int
    """Runs waiting for a context."""
    cpu_calls: int
    """Calls that ran on the CPU because their shape was not compiled."""


@dataclass(frozen=True, slots=True)
class ProcessLoad:
    """One process that uses the NPU through this package."""

    pid: int
    name: str
    """As reported by the kernel."""
    user: int
    models: tuple[ModelLoad, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """The result of :func:`top`."""

    processes: tuple[ProcessLoad, ...]
    """By load, highest first."""
    cores: Mapping[str, float]
    """The load of all our processes together, by core number, or "any" if the runtime chooses; by device: "rk3588 core
    0"."""
    driver: tuple[int, ...] | None
    """The driver's own load by core in percent, including all programs; None if it cannot be read."""
    clock: Clock | None
    temperature: tuple[str, float] | None
    """The thermal zone's name and degrees Celsius."""
    others: tuple[User, ...]
    """Processes that have the NPU open and publish nothing."""
    hint: str
    """A command that makes more of this readable; "" if everything is."""

    def as_json(self) -> dict[str, Any]:
        """The members of ``ort-rknn top --json``."""
        zone = self.temperature
        return {
            "processes": [
                {**asdict(process), "models": [asdict(model) for model in process.models]} for process in self.processes
            ],
            "cores": dict(self.cores),
            "driver": None if self.driver is None else list(self.driver),
            "clock": None if self.clock is None else asdict(self.clock),
            "temperature": None if zone is None else {"zone": zone[0], "celsius": zone[1]},
            "others": [asdict(user) for user in self.others],
            "hint": self.hint,
        }


def top(*, root: str | os.PathLike[str] = "/") -> Usage:
    """Who uses the NPU now: the processes of this user that run models through this package (of all users, for root),
    with the load of the last second by core, model and session; and the clock, the temperature and the driver's own
    load, as far as this user may read them. Takes some milliseconds. ``root``: of the kernel's files, for tests.

    Includes this process. Processes with ``ORT_RKNN_NO_TOP=1`` are listed among the others.
    """
    place = Path(root)
    processes = sorted(published(), key=lambda process: -_load_of(process))
    node = board.node_of(place)
    ours = {process.pid for process in processes}
    others = tuple(user for user in (board.users(place, node) if node else ()) if user.pid not in ours)
    driver = board.load(place)
    hint = READ_LOAD if node is not None and driver is None else ""
    return Usage(
        tuple(processes), _by_core(processes), driver, board.clock(place), board.temperature(place), others, hint
    )


def _load_of(process: ProcessLoad) -> float:
    return sum(sum(model.cores.values()) for model in process.models)


def _by_core(processes: Iterable[ProcessLoad]) -> dict[str, float]:
    total: dict[str, float] = {}
    for process in processes:
        for model in process.models:
            for label, load in model.cores.items():
                numbers = _CORE_NUMBERS.fullmatch(label)
                for core in numbers[1].split(",") if numbers else ("any",):
                    key = f"{model.device} core {core}"
                    total[key] = min(total.get(key, 0.0) + load, 1.0)
    return dict(sorted(total.items()))


# Reading other processes' files ------------------------------------------------------------------------------------


def published() -> Iterator[ProcessLoad]:
    """Every live process that publishes its load."""
    for place, owner in _folders():
        try:
            names = sorted(os.listdir(place))
        except OSError:
            continue
        for name in [name for name in names if re.fullmatch(r"[1-9][0-9]{0,9}\.json", name)][:_MOST_FILES]:
            try:
                found = _process(place / name, int(name[:-5]), owner)
            except (OSError, ValueError):
                continue
            if found is not None:
                yield found


def _folders() -> Iterator[tuple[Path, int]]:
    """Folders with such files, and their owners: this user's, and for root everyone's."""
    own, uid = folder(), os.geteuid()
    if own is not None and is_private(own):
        yield own, uid
    if uid == 0:
        yield from ((place, owner) for place, owner in _of_all_users(Path("/")) if place != own)


def _of_all_users(root: Path) -> Iterator[tuple[Path, int]]:
    for pattern, user in (("run/user/*/ort_rknn", r"/(\d+)/ort_rknn"), ("tmp/ort_rknn-*", r"ort_rknn-(\d+)")):
        for place in root.glob(pattern):
            number = re.search(rf"{user}$", str(place))
            if number is not None and is_private(place, int(number[1])):
                yield place, int(number[1])


def _process(path: Path, pid: int, owner: int) -> ProcessLoad | None:
    """The content of one file; None if its process has ended. Raises OSError or ValueError for unexpected content."""
    data = members(read_json(path, most_bytes=MOST_BYTES, owner=owner, follow=False), "the whole")
    if data.get("version") != VERSION or data.get("pid") != pid:
        raise JsonError("of another version, or of another process")
    start = start_of(pid)
    if start is None or data.get("start") != start:
        if owner == os.geteuid():
            path.unlink(missing_ok=True)  # its process was killed
        return None
    if not abs(time.monotonic() - _number(data.get("at"))) < _STALE:
        return None
    models = array(data.get("models"), "models", most=MOST_MODELS)
    name = board.read_text(Path(f"/proc/{pid}/comm")) or "?"
    return ProcessLoad(pid, name[:_LONGEST], owner, tuple(map(_model, models)))


def _model(value: object) -> ModelLoad:
    data = members(value, "a model")
    listed = members(data.get("cores"), "cores", most=_MOST_CORES)
    cores = {text(label, "a core")[:_LONGEST]: members(core, "a core") for label, core in listed.items()}
    return ModelLoad(
        session=_count(data.get("session")),
        model=text(data.get("model"), "model")[:_LONGEST],
        device=text(data.get("device"), "device")[:_LONGEST],
        cores={label: min(_number(core.get("load")), 1.0) for label, core in cores.items()},
        contexts=sum(_count(core.get("contexts")) for core in cores.values()),
        runs_per_second=_number(data.get("runs_per_second")),
        runs=_count(data.get("runs")),
        errors=_count(data.get("errors")),
        queued=_count(data.get("queued")),
        cpu_calls=_count(data.get("cpu_calls")),
    )


def _number(value: object) -> float:
    return number(value, "a number", least=0, most=2.0**62)


def _count(value: object) -> int:
    return int(_number(value))
