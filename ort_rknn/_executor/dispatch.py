"""Dispatch: which core a run uses, according to ``schedule`` / ``threads_per_core`` / ``tp_mode``.

Data parallel: ``schedule=[0, 1, 2]`` sends run n to core ``schedule[n % 3]``; a core listed twice gets twice the share.
Tensor parallel: ``tp_mode`` gives every context one core mask, and a run occupies all its cores.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._errors import OptionError
from .._options import Options
from .._rknpu import CORE_MASK_AUTO, TP_MODES

#: The maximum number of calls that wait for a core on threads, ready to run.
MOST_READY = 3


@dataclass(frozen=True, slots=True)
class CoreSet:
    """Contexts for the same core or cores."""

    core_mask: int
    """The mask of each of its contexts."""
    label: str
    """"core 0", "cores 0,1,2", "one core of the runtime's choice": for messages."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Where runs go: run n takes a context of ``lanes[order[n % len(order)]]``.

    With ``first_idle`` the order does not matter: the first idle context of any lane takes the run.
    """

    lanes: tuple[CoreSet, ...]
    order: tuple[int, ...]
    contexts_per_lane: int
    first_idle: bool = False

    @property
    def contexts(self) -> int:
        """The total number of runtime contexts."""
        return len(self.lanes) * self.contexts_per_lane

    @property
    def ready(self) -> int:
        """The number of calls that deserve a thread of their own, besides those that have a context.

        A core with one context idles while its next call is fetched, unless that is already waiting. A core with
        several contexts already has its next run: more threads would only take turns.
        """
        if self.contexts_per_lane > 1 and all(lane.core_mask != CORE_MASK_AUTO for lane in self.lanes):
            return 0
        return min(self.contexts, MOST_READY)

    @property
    def workers(self) -> tuple[int, ...]:
        """The number of threads for asynchronous calls, per lane (one lane if the first idle context takes a run): one
        per context, plus those of :attr:`ready`."""
        if self.first_idle:
            return (self.contexts + self.ready,)
        return (self.contexts_per_lane + (self.ready > 0),) * len(self.lanes)

    def lane_of(self, number: int) -> int:
        """The lane of run ``number``; 0 if the first idle context takes it."""
        return 0 if self.first_idle else self.order[number % len(self.order)]

    def describe(self) -> str:
        """One line for ``explain()``."""
        per = f"{self.contexts_per_lane} context{'s' if self.contexts_per_lane > 1 else ''}"
        if self.first_idle:
            return f"the first idle core of {len(self.lanes)} takes the next run; {per} each"
        if len(self.lanes) == 1:
            return f"every run on {self.lanes[0].label}; {per}"
        turns = ", ".join(self.lanes[i].label.removeprefix("core ") for i in self.order)
        return f"runs go round the cores {turns}; {per} each"


def _name_cores(cores: int) -> str:
    return "core 0" if cores == 1 else f"cores {', '.join(map(str, range(cores)))}"


def resolve(options: Options, soc: str, cores: int) -> Dispatch:
    """The dispatch for a SoC with ``cores`` cores.

    On a one-core SoC tp_mode "auto", "all" and "0" mean its core. Raises OptionError for a core that the SoC lacks.
    """
    threads = options.threads_per_core
    if options.schedule is not None:
        first_idle = options.schedule == "auto"
        wanted = tuple(range(cores)) if options.schedule == "auto" else options.schedule
        for core in wanted:
            if core >= cores:
                text = ",".join(map(str, wanted))
                raise OptionError(
                    f"provider option schedule='{text}' names core {core}, but {soc} has {_name_cores(cores)} only; "
                    "schedule='auto' uses all of them"
                )
        used = tuple(sorted(set(wanted)))
        # A one-core runtime returns -13 from rknn_set_core_mask: its core needs no mask.
        lanes = tuple(CoreSet(1 << core if cores > 1 else CORE_MASK_AUTO, f"core {core}") for core in used)
        return Dispatch(lanes, tuple(used.index(core) for core in wanted), threads, first_idle)

    mode = options.tp_mode or "auto"
    mask = TP_MODES[mode]
    if mode not in ("auto", "all") and mask >> cores:
        raise OptionError(
            f"provider option tp_mode='{mode}' names a core that {soc} lacks: it has {_name_cores(cores)}"
        )
    if mode == "auto":
        label = "core 0" if cores == 1 else "one core of the runtime's choice"
    elif mode == "all":
        label = "core 0" if cores == 1 else f"all cores ({', '.join(map(str, range(cores)))}) together"
    else:
        label = f"core {mode}" if "," not in mode else f"cores {mode} together"
    return Dispatch((CoreSet(mask if cores > 1 else CORE_MASK_AUTO, label),), (0,), threads)
