"""The nodes that onnxruntime runs on the CPU, for a trace: meanwhile sessions write onnxruntime's own profile."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import onnxruntime

from .trace import Span

_Session = TypeVar("_Session", bound=Any)


class NodeProfiles:
    """The profiles of sessions, in a private folder. A session whose own options ask for a profile is left alone."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="ort_rknn_trace")
        self._sessions: list[tuple[weakref.ref[Any], str, int]] = []
        self._numbers = itertools.count()  # threads may create sessions concurrently

    def create(self, so: Any, start: Callable[[Any], _Session]) -> _Session:
        """The session that ``start`` creates with SessionOptions: ``so``, or new ones for None, which ask for a profile
        meanwhile."""
        options = so or onnxruntime.SessionOptions()
        if options.enable_profiling:
            return start(options)
        before, prefix = options.profile_file_prefix, os.path.join(self._folder, f"session{next(self._numbers)}")
        options.enable_profiling, options.profile_file_prefix = True, prefix
        try:
            session = start(options)
        finally:
            options.enable_profiling, options.profile_file_prefix = False, before
        self._sessions.append((weakref.ref(session), prefix, _as_perf_counter(session.get_profiling_start_time_ns())))
        return session

    def collect(self) -> list[Span]:
        """End the profiles, delete their files, and return the nodes in them. [] if called again."""
        spans: list[Span] = []
        try:
            for of, prefix, began in self._sessions:
                session = of()
                if session is not None:
                    _end_profiling(session)
                del session
                for name in os.listdir(self._folder):
                    if name.startswith(os.path.basename(prefix) + "_"):
                        spans += _read(os.path.join(self._folder, name), began)
        finally:
            self.discard()
        return spans

    def discard(self) -> None:
        """Delete the files. Sessions that continue no longer write to them."""
        self._sessions.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


def _end_profiling(session: Any) -> None:
    try:
        session.end_profiling()
    except Exception:  # closed: its profile ended with it
        return


def _read(path: str, began: int) -> list[Span]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return _cpu_nodes(json.load(file), began)
    except ValueError:  # a session that continues has not written the end of its file
        return []


def _as_perf_counter(ns: int) -> int:
    """A time of onnxruntime's clock, which is the system's, as ``time.perf_counter_ns()``."""
    return ns - time.time_ns() + time.perf_counter_ns()


def _cpu_nodes(events: Any, began: int) -> list[Span]:
    """The kernels of onnxruntime's CPU provider in a profile that began at ``began``. Its times are rounded down to
    whole microseconds; the start is taken as late as possible, so that nothing overlaps."""
    out = []
    for event in events:
        args = event.get("args", {})
        if event.get("cat") == "Node" and args.get("provider") == "CPUExecutionProvider" and event["dur"] > 0:
            begin, end = began + 1000 * event["ts"] + 999, began + 1000 * (event["ts"] + event["dur"])
            name = f"{args['op_name']} {event['name'].removesuffix('_kernel_time')}"
            out.append(Span(event["tid"], name, begin, end))
    return out
