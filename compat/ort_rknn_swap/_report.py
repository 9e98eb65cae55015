"""A summary of what each session of a program got, printed at the end of the process."""

from __future__ import annotations

import atexit
import functools
import json
import os
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ort_rknn._options import PROVIDER
from ort_rknn._session import session
from ort_rknn.adapter.json_output import Schema, array, integer, number, table, text
from ort_rknn.adapter.json_output import record as an_object

if TYPE_CHECKING:
    from ort_rknn._executor.executor import Executor

_KEPT = 1000
"""The number of sessions listed; the rest is counted."""

#: The session's attribute for its record: sessions of subclasses may be unhashable.
_MINE = "_ort_rknn_record"

_RUNS = ("run", "run_async", "run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector")
#: The original attributes of our class by these names, before counting; None if inherited.
_before: dict[str, Any] = {}


@dataclass(slots=True, eq=False)
class _Record:
    """One session. Does not keep it alive."""

    model: str
    provider: str
    device: str
    reason: str
    counters: Callable[[], dict[str, dict[str, int]]]
    runs: int = 0
    errors: int = 0
    seconds: float = 0.0
    last: dict[str, dict[str, int]] | None = None
    """The counters when the session was destroyed."""


_records: list[_Record] = []
_more = 0
_lock = threading.Lock()
_pid = 0
_json = False


def start(*, as_json: bool = False) -> None:
    """Record every session created from now on, and print the summary at the end of the process: text, or one JSON
    object."""
    global _pid, _json
    _json = _json or as_json
    if not _pid:
        atexit.register(_print)
    _pid = os.getpid()
    session._watch = _note
    for name in _RUNS:
        if hasattr(session.InferenceSession, name) and name not in _before:
            _before[name] = vars(session.InferenceSession).get(name)
            setattr(session.InferenceSession, name, _counting(getattr(session.InferenceSession, name)))


def stop() -> None:
    """Stop recording; what was recorded is still printed at the end."""
    session._watch = None
    while _before:
        name, own = _before.popitem()
        if own is None:
            delattr(session.InferenceSession, name)
        else:
            setattr(session.InferenceSession, name, own)


def _counting(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def counted(self: Any, *given: Any, **named: Any) -> Any:
        record = vars(self).get(_MINE)
        began = time.perf_counter()
        try:
            out = method(self, *given, **named)
        except BaseException:
            if record is not None:
                with _lock:
                    record.errors += 1
            raise
        if record is not None:
            with _lock:
                record.runs += 1
                record.seconds += time.perf_counter() - began
        return out

    return counted


def _note(session: Any) -> None:
    """Called with every session that was created or planned again."""
    global _more
    state = session._npu
    provider = session._providers[0]  # a subclass may have its own get_providers
    plan = state.plan if state is not None else None
    executors = [weakref.ref(executor) for executor in state.executors] if state is not None else []
    path = session._model_path
    record = _Record(
        model=os.path.basename(path) if path else f"model in memory ({len(session._model_bytes or b''):,} bytes)",
        provider=provider,
        device=plan.found.device.name if plan is not None and plan.found is not None and provider == PROVIDER else "",
        reason=_reason(state, plan),
        counters=functools.partial(_counters, executors),
    )
    with _lock:
        vars(session)[_MINE] = record
        if len(_records) < _KEPT:
            _records.append(record)
        else:
            _more += 1
    weakref.finalize(session, _ended, record).atexit = False


def _reason(state: Any, plan: Any) -> str:
    if plan is None:
        return "the SessionOptions chose providers themselves" if state is not None else "ORT_RKNN_DISABLE=1"
    if plan.fallback is not None:
        return str(plan.fallback)
    if plan.candidate is not None:
        return f"compiled model {plan.candidate.name}"
    return plan.story[-1] if plan.story else ""


def _counters(executors: Sequence[weakref.ref[Executor]]) -> dict[str, dict[str, int]]:
    """Summed by core, for a model with several EPContext nodes."""
    out: dict[str, Counter[str]] = {}
    for executor in filter(None, (reference() for reference in executors)):
        missing = executor.missing_shapes()
        served = {"padded": missing["padded"], "on the CPU": missing["cpu"]}
        of_this = {**executor.counters(), "shapes that were not compiled": served}
        if fed := executor.fed_runs():
            of_this["calls that fed an initializer"] = {"on the CPU": fed}
        for what, counts in of_this.items():
            out.setdefault(what, Counter()).update(counts)
    return {what: dict(counts) for what, counts in out.items()}


def _ended(record: _Record) -> None:
    record.last = record.counters()


def report() -> str:
    """What each session has got so far: text, one or more lines per session. Sessions are recorded with
    ``report=True``."""
    with _lock:
        records, more = list(_records), _more
    if not records:
        return "ort_rknn: no session was made"
    total = len(records) + more
    lines = [f"ort_rknn: {total} session{'s' if total != 1 else ''}"]
    for record in records:
        where = record.provider + (f" on {record.device}" if record.device else "")
        ran = f"{record.runs} runs in {record.seconds:.2f} s" if record.runs else "no runs"
        if record.errors:
            ran += f", {record.errors} failed"
        lines.append(f"  {record.model}: {where}, {ran}")
        if record.reason:
            lines.append(f"    because: {record.reason}")
        counts = record.last or record.counters()
        if counts:
            rows = [(k, ", ".join(f"{n} {what}" for what, n in v.items() if n)) for k, v in counts.items()]
            lines += [f"    {k}: {counted}" for k, counted in rows if counted]
    if more:
        lines.append(f"  and {more} more")
    return "\n".join(lines)


def _print() -> None:
    # Not in a forked child, which has the parent's records.
    if os.getpid() == _pid and sys.stderr is not None:
        print(json.dumps(_as_json()) if _json else report(), file=sys.stderr, flush=True)


#: What ``ort-rknn run --json`` prints.
JSON_OUTPUT: Mapping[str, Schema] = {
    "sessions": array(
        an_object(
            {
                "model": text("file name"),
                "provider": text(),
                "device": text("empty on the CPU"),
                "reason": text("why it runs there"),
                "runs": integer(),
                "errors": integer("runs that raised"),
                "seconds": number("time in runs, as seen by the program"),
                "counters": table(table(integer()), "by core"),
            }
        )
    ),
    "more": integer("sessions that are not listed"),
}


def _as_json() -> dict[str, Any]:
    with _lock:
        records, more = list(_records), _more
    sessions = [
        {
            "model": one.model,
            "provider": one.provider,
            "device": one.device,
            "reason": one.reason,
            "runs": one.runs,
            "errors": one.errors,
            "seconds": one.seconds,
            "counters": one.last or one.counters(),
        }
        for one in records
    ]
    return {"schema": "ort-rknn/run/1", "sessions": sessions, "more": more}
