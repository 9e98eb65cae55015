"""Runs on the NPU in the profile of ``session.end_profiling()``, since onnxruntime 1.25.

onnxruntime creates one profiler per session and starts it only if the session profiles. Runs are recorded meanwhile
(:mod:`~ort_rknn._executor.recording`) and passed on at the end, in onnxruntime's clock: microseconds since the start of
the profile.
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from ctypes import CFUNCTYPE, c_char_p, c_int64, c_void_p
from typing import Any

from .._executor.executor import Executor
from .._executor.recording import Recorder, Slice, on_cores
from . import abi
from .abi import Api, OrtCallFailed
from .callbacks import guarded, keep_forever, quiet

log = logging.getLogger("ort_rknn")

#: OrtProfilingEventCategory: what runs inside a node.
_KERNEL = 2
#: A viewer shows the threads of a profile as rows. Cores get rows of their own, with numbers above those of threads.
CORE_ROW = 900_000
#: Events passed on at a time.
_AT_ONCE = 4096


class _Profiler:
    """The profiler of one session."""

    def __init__(self, api: Api, executors: Callable[[], list[Executor]]) -> None:
        self.table = abi.OrtEpProfilerImpl()
        self.table.ort_version_supported = abi.ABI_WITH_PROFILER
        for name, callback in _callbacks.items():
            setattr(self.table, name, ctypes.cast(callback, c_void_p).value)
        self.recorder = Recorder()
        self.base = 0
        """The start of the profile, as ``time.perf_counter_ns()``."""
        self._api = api
        self._executors = executors

    def hand_over(self, container: int) -> None:
        """Stop, and pass the session's runs to onnxruntime."""
        slices = self.recorder.stop()
        owners = {id(executor.signature) for executor in self._executors()}
        events: list[int] = []
        try:
            for one in slices:
                if id(one.owner) in owners:
                    events += self._events(one)
                if len(events) >= _AT_ONCE:
                    self._add(container, events)
            for core, one, begin in on_cores(one for one in slices if id(one.owner) in owners):
                events.append(self._event(CORE_ROW + core, "npu:run", begin, one.over, _args(one)))
                if len(events) >= _AT_ONCE:
                    self._add(container, events)
            self._add(container, events)
        finally:
            self._release(events)
        if self.recorder.lost:
            log.warning("%d runs are missing in the profile: it became too long", self.recorder.lost)

    def _add(self, container: int, events: list[int]) -> None:
        if events:
            array = (c_void_p * len(events))(*events)
            self._api.check(self._api.ProfilingEventsContainer_AddEvents(container, array, len(events)))
            self._release(events)

    def _release(self, events: list[int]) -> None:
        while events:
            self._api.ReleaseProfilingEvent(events.pop())

    def _events(self, one: Slice) -> Iterator[int]:
        args = _args(one)
        # A run that waited executes on another thread. Its caller sleeps meanwhile, or continues without waiting.
        row = one.caller if one.blocks else one.thread
        for name, begin, end in one.parts():
            if name != "wait" or one.blocks:
                yield self._event(row, f"npu:{name}", begin, end, args)

    def _event(self, row: int, name: str, begin: int, end: int, args: Mapping[str, str]) -> int:
        keys = (c_char_p * len(args))(*(key.encode() for key in args))
        values = (c_char_p * len(args))(*(value.encode(errors="replace") for value in args.values()))
        # Both are rounded down, so that nested events stay nested.
        at, until = (begin - self.base) // 1000, (end - self.base) // 1000
        out = c_void_p()
        self._api.check(
            self._api.CreateProfilingEvent(
                _KERNEL, os.getpid(), row, name.encode(), at, until - at, keys, values, len(args), ctypes.byref(out)
            )
        )
        assert out.value
        return out.value


def _args(one: Slice) -> Mapping[str, str]:
    args = {"model": one.model, "core": ",".join(map(str, one.cores())) or "auto"}
    return {**args, "error": one.error} if one.error else args


#: Live profilers by the address of their table.
_profilers: dict[int, _Profiler] = {}


def create(api: Api, executors: Callable[[], list[Executor]], out: int) -> None:
    """Create the profiler of a session; ``executors`` returns its executors when the profile ends."""
    if not hasattr(api, "CreateProfilingEvent"):
        raise OrtCallFailed(f"onnxruntime {api.version} takes no events of providers")
    profiler = _Profiler(api, executors)
    address = ctypes.addressof(profiler.table)
    _profilers[address] = profiler
    c_void_p.from_address(out).value = address


def _start(this: int, offset: int) -> None:
    """The profile started ``offset`` nanoseconds ago."""
    profiler = _profilers[this]
    profiler.base = time.perf_counter_ns() - offset
    profiler.recorder.start()


def _end(this: int, container: int) -> None:
    _profilers[this].hand_over(container)


def _release(this: int) -> None:
    profiler = _profilers.pop(this, None)
    if profiler is not None:
        profiler.recorder.stop()  # a session that ends without end_profiling()


P = c_void_p
_callbacks: dict[str, Any] = {
    "Release": CFUNCTYPE(None, P)(quiet(_release)),
    "StartProfiling": CFUNCTYPE(P, P, c_int64)(guarded(_start)),
    "EndProfiling": CFUNCTYPE(P, P, P)(guarded(_end)),
}
keep_forever(_callbacks)
keep_forever(_profilers)
