"""``ort-rknn run --trace FILE``: traces a program's sessions; the file is written when the program ends."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from ort_rknn._measure.cpu_nodes import NodeProfiles
from ort_rknn._measure.trace import trace
from ort_rknn._session import session

_RUNS = ("run", "run_async", "run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector")


def start(path: str) -> None:
    """Record from now on. Raises OSError if ``path`` cannot be written."""
    recorder = trace(path)
    recorder.__enter__()
    profiles = NodeProfiles()
    session.InferenceSession._start = _profiled(session.InferenceSession._start, profiles)  # type: ignore[method-assign]
    for name in _RUNS:
        if hasattr(session.InferenceSession, name):
            setattr(session.InferenceSession, name, _recorded(getattr(session.InferenceSession, name), recorder, name))
    atexit.register(_finish, recorder, profiles, os.getpid())


def _profiled(method: Callable[..., None], profiles: NodeProfiles) -> Callable[..., None]:
    """Let sessions record the nodes that they run on the CPU, until the end."""

    @functools.wraps(method)
    def start(self: Any, model: Any, so: Any, *given: Any, **named: Any) -> None:
        def begin(options: Any) -> Any:
            method(self, model, options, *given, **named)
            return self

        profiles.create(so, begin)
        self._sess_options_initial = so

    return start


def _recorded(method: Callable[..., Any], recorder: trace, name: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(self: Any, *given: Any, **named: Any) -> Any:
        begin = time.perf_counter_ns()
        try:
            return method(self, *given, **named)
        finally:
            path = self._model_path
            model = os.path.basename(path) if path else "model in memory"
            recorder.call(f"{name} {model}", begin, time.perf_counter_ns())

    return run


def _finish(recorder: trace, profiles: NodeProfiles, pid: int) -> None:
    recorder.stop()
    if os.getpid() != pid:
        return  # a forked child: the files are its parent's
    recorder.nodes(profiles.collect())
    try:
        summary = recorder.write()
    except OSError as error:
        print(f"ort-rknn: {recorder.summary.path}: {error.strerror or error}", file=sys.stderr)
        return
    text = f"ort-rknn: {summary.runs} runs on the NPU; written: {recorder.file} (https://ui.perfetto.dev)"
    print(text, file=sys.stderr)
