"""The virtual NPU's controls, for tests of programs that use an NPU.

    from ort_rknn_virtual.control import virtual_npu

    npu = virtual_npu("rk3588")
    npu.reset()
    npu.run_time_us = 20_000                       # every run keeps its core busy for 20 ms
    npu.fault("rknn_run", -2, after=3, times=1)    # the fourth run times out
    ...                                            # sessions with device="virtual:rk3588" use this NPU
    runs = [event for event in npu.events() if event.kind == "run"]
    assert {event.core_mask for event in runs} == {1, 2, 4}
    assert npu.counters().contexts == 0            # everything was closed

There is one virtual NPU per SoC and process: two :class:`VirtualNpu` objects for one SoC control the same NPU.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from ort_rknn.adapter import AdapterError, soc_family

from . import _build
from ._abi import RawCounters, RawEvent, open_library

#: Capacity of the event log.
EVENTS_KEPT = 16384


@dataclass(frozen=True, slots=True)
class Event:
    """One call of the runtime. Times are ``time.monotonic_ns()``."""

    sequence: int
    """From 1, ordered by the end of the calls."""
    kind: str
    """The function without "rknn_": "init", "dup_context", "run", "inputs_set" (one event per input) ...; "misuse" for
    a call on a context that is destroyed or in use by another thread."""
    code: int
    """The return value."""
    context: int
    core_mask: int
    """For a run: the cores that it really used. Otherwise the context's setting."""
    called_ns: int
    start_ns: int
    """For a run: when it got its cores. Otherwise equal to ``called_ns``."""
    end_ns: int
    """For a run: when it released its cores."""
    address: int
    """For inputs_set: the caller's buffer. For dup_context: the new context."""
    nbytes: int
    """For inputs_set: the buffer's size as given. For init: the model's."""
    index: int
    """For inputs_set: the input. For query: the command. For init: the flags."""
    thread: int
    """The native id of the calling thread (``threading.get_native_id()``)."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What exists now, and sums since the library was loaded or reset."""

    contexts: int
    models: int
    """Loaded models; duplicated contexts share one."""
    weight_bytes: int
    """Bytes of the loaded models' flatbuffer parts, which contain the weights. Counted once per rknn_init."""
    mems: int
    outputs: int
    """Outputs that were taken and not released."""
    input_bytes: int
    """Sum: bytes of callers' buffers that rknn_inputs_set converted."""
    misuses: int
    """Sum: events of kind "misuse"."""
    events: int
    runs: tuple[int, ...]
    """Sum per core: successful runs. A run on several cores counts for each."""


class VirtualNpu:
    """The virtual NPU of one SoC in this process. Compiled if necessary; raises AdapterError if that fails."""

    def __init__(self, soc: str = "rk3588", *, library: str | Path | None = None) -> None:
        soc = soc_family(soc)
        self.library = Path(library) if library is not None else _build.library(soc)
        self._c = open_library(str(self.library))
        self.soc: str = self._c.rknn_virtual_soc().decode()
        self.cores: int = self._c.rknn_virtual_cores()
        if self.soc != soc:
            raise AdapterError(
                f"the virtual NPU is an {self.soc or 'unknown SoC'}, not an {soc}: RKNN_VIRTUAL_SOC overrides it. "
                "Unset it."
            )

    @property
    def run_time_us(self) -> float:
        """Simulated time of one run on one core in microseconds; initially 0, or ``RKNN_VIRTUAL_RUN_US``."""
        return float(self._c.rknn_virtual_run_time_us())

    @run_time_us.setter
    def run_time_us(self, us: float) -> None:
        self._check(self._c.rknn_virtual_set_run_time_us(us))

    def core_factor(self, core: int, factor: float) -> None:
        """Runs on ``core`` take ``factor`` times the run time. ValueError for a core that does not exist."""
        self._check(self._c.rknn_virtual_set_core_factor(core, factor))

    def tp_efficiency(self, efficiency: float) -> None:
        """A run on n > 1 cores is n x ``efficiency`` times as fast as on one. Initially 0.8."""
        self._check(self._c.rknn_virtual_set_tp_efficiency(efficiency))

    def attributes_follow(self, follow: bool) -> None:
        """Whether the plain attributes of a dynamic model follow the shape set (what a board does is unknown)."""
        self._check(self._c.rknn_virtual_set_attr_follows(follow))

    def fault(
        self,
        function: str,
        code: int,
        *,
        after: int = 0,
        times: int = 0,
        core_mask: int | None = None,
        context: int = 0,
    ) -> None:
        """Make calls of ``function`` ("rknn_run") return ``code`` (negative) and do nothing else.

        The first ``after`` calls pass, the next ``times`` fail (0: all). If ``core_mask`` is given, only calls on
        contexts set to it count; if ``context`` is not 0, only calls on that context. ValueError for an unknown
        function, a code that is not negative, or more than 64 faults.
        """
        mask = -1 if core_mask is None else core_mask
        self._check(self._c.rknn_virtual_fault(function.encode(), code, after, times, mask, context))

    def clear_faults(self) -> None:
        """Remove all faults."""
        self._c.rknn_virtual_clear_faults()

    def events(self, since: int = 0) -> list[Event]:
        """The events after the sequence number ``since``, oldest first. The last 16,384 are kept."""
        raw = (RawEvent * EVENTS_KEPT)()
        count = self._c.rknn_virtual_events(since, raw, EVENTS_KEPT)
        return [self._event(raw[i]) for i in range(count)]

    def counters(self) -> Counters:
        """What is alive now, and the sums."""
        raw = RawCounters()
        self._c.rknn_virtual_get_counters(ctypes.byref(raw))
        return Counters(
            contexts=raw.contexts,
            models=raw.models,
            weight_bytes=raw.weight_bytes,
            mems=raw.mems,
            outputs=raw.outputs,
            input_bytes=raw.input_bytes,
            misuses=raw.misuses,
            events=raw.events,
            runs=tuple(raw.runs[: self.cores]),
        )

    def reset(self) -> None:
        """Remove faults and events, and reset sums, times, factors and switches to their initial values. Open contexts
        stay."""
        self._c.rknn_virtual_reset()

    def message(self) -> str:
        """Why the last failed call on this thread failed, as text."""
        return str(self._c.rknn_virtual_message().decode(errors="replace"))

    def _event(self, raw: RawEvent) -> Event:
        return Event(
            sequence=raw.sequence,
            kind=self._c.rknn_virtual_kind(raw.kind).decode(),
            code=raw.code,
            context=raw.context,
            core_mask=raw.core_mask,
            called_ns=raw.called,
            start_ns=raw.start,
            end_ns=raw.end,
            address=raw.address,
            nbytes=raw.nbytes,
            index=raw.index,
            thread=raw.thread,
        )

    def _check(self, code: int) -> None:
        if code == -4:
            raise ValueError("64 faults are set already")
        if code:
            raise ValueError(self.message())


def virtual_npu(soc: str = "rk3588") -> VirtualNpu:
    """The virtual NPU that sessions with ``device="virtual:<soc>"`` use in this process."""
    return VirtualNpu(soc)
