"""The checks of the self-test. Each takes a device and returns its result; an exception is a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from .._measure.board import resident_bytes
from .._rknpu import CORE_MASK_ALL, core_masks
from ..adapter.contract import AdapterError, SettingError
from .subject import Line, Subject

_MOST_CONTEXTS: Final = 9
#: Numbers of parts of two models, whose difference is the cost of a part.
_FEW, _MANY = 1, 5


def numbers(subject: Subject) -> Line:
    """Whether a compiled model loads, reports its signature, and computes the ONNX's numbers."""
    with subject.model() as model:
        told = ", ".join(f"{name} {text}" for name, text in model.versions.items() if text)
        wrong = subject.wrong(subject.run_bare(model, 0))
    return Line("numbers", "failure" if wrong else "ok", wrong or f"right; {told or 'no versions reported'}")


def masks(subject: Subject) -> Line:
    """Which core masks are accepted. Those of the SoC must be; for the others the result is only reported."""
    possible = core_masks(subject.found.device.cores)
    told, bad = [], []
    with subject.model() as model:
        for mask in (*range(8), CORE_MASK_ALL):
            try:
                wrong = subject.wrong(subject.run_bare(model, mask))
                answer = wrong or "runs"
            except AdapterError as error:
                answer = f"code {getattr(error, 'code', '?')}"
            told.append(f"{mask:#x} {answer}")
            if answer != "runs" and (mask in possible or mask == CORE_MASK_ALL):
                bad.append(f"{mask:#x}")
    return Line("masks", "failure" if bad else "info", "; ".join(told) + (f"; wrong: {', '.join(bad)}" if bad else ""))


def contexts(subject: Subject) -> Line:
    """1 to 9 contexts of one model: whether all compute the right numbers, and what they cost to create, and in
    memory."""
    opened, told, wrong = [], [], ""
    before = resident_bytes()
    with subject.model() as model:
        try:
            for count in range(1, _MOST_CONTEXTS + 1):
                began = time.perf_counter()
                opened.append(model.context(0))
                made = (time.perf_counter() - began) * 1e3
                out = np.zeros_like(subject.wanted)
                opened[-1].run(subject.form(), [subject.feed.ctypes.data], [out.ctypes.data])
                wrong = wrong or subject.wrong(out)
                if count in (1, 2, 3, 6, 9):
                    told.append(f"{count}: {made:.1f} ms, {(resident_bytes() - before) / 1024:.0f} kB")
        finally:
            for context in reversed(opened):
                context.close()
    return Line(
        "contexts", "failure" if wrong else "info", wrong or f"time to make the last, memory so far: {'; '.join(told)}"
    )


def shapes(subject: Subject) -> Line:
    """A dynamic model: whether every shape set is right, also when they alternate, and what a change costs."""
    if subject.compiled("dynamic") is None:
        return Line("shapes", "left out", f"no dynamic model for {subject.found.device.soc} comes with the package")
    import onnxruntime

    cpu = onnxruntime.InferenceSession(subject.onnx("dynamic"), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(5)
    feeds = [{"x": random.standard_normal((1, 3, *size), dtype=np.float32)} for size in ((32, 32), (16, 24), (16, 16))]
    wanted = [cpu.run(None, feed)[0] for feed in feeds]
    with subject.session("dynamic") as session:
        for _ in range(3):
            for number, (feed, want) in enumerate(zip(feeds, wanted)):
                got = session.run(None, feed)[0]
                if got.shape != want.shape or np.abs(got - want).max() > 1e-2 * np.abs(want).max():
                    return Line("shapes", "failure", f"set {number}: not the ONNX's numbers")
        same = subject.run_ms(session, feeds[0])
        turns = subject.median_ms(lambda: [session.run(None, feed) for feed in feeds[:2]]) / 2
        other = subject.run_ms(session, feeds[1])
    return Line("shapes", "info", f"right; a change of the shape costs {turns - (same + other) / 2:.3f} ms")


def layouts(subject: Subject) -> Line:
    """The cost of each form of the input."""
    frame = np.ascontiguousarray(subject.feed.transpose(0, 2, 3, 1))
    forms = {
        "float32 NCHW": ({}, subject.feed),
        "float32 NHWC": ({"layout": "nhwc"}, frame),
        "float32 NCHW, transposed above the runtime": ({"layout": "nchw_software"}, subject.feed),
        "float16 NHWC, as compiled": ({"layout": "nhwc", "input_dtype": "native"}, frame.astype(np.float16)),
        "uint8 NHWC": ({"layout": "nhwc", "input_dtype": "uint8"}, frame.astype(np.uint8)),
    }
    told = []
    for name, (options, array) in forms.items():
        with subject.session(schedule="0", **options) as session:
            wrong = "" if "uint8" in name else subject.wrong(session.run(None, {"x": array})[0])
            if wrong:
                return Line("layouts", "failure", f"{name}: {wrong}")
            told.append(f"{name} {subject.run_ms(session, {'x': array}):.3f} ms")
    return Line("layouts", "info", "; ".join(told))


def callers(subject: Subject) -> Line:
    """Contexts per core: whether a second one overlaps conversion and run."""
    told = []
    for count in (1, 2, 3):
        with subject.session(schedule="0", threads_per_core=count) as session:
            told.append(f"{count}: {subject.per_second(session, count):.0f} runs/s")
    return Line("callers", "info", f"contexts of core 0, each with a caller: {'; '.join(told)}")


def cores(subject: Subject) -> Line:
    """``schedule`` compared with ``tp_mode``: how runs are distributed, and what splitting one gains."""
    count = subject.found.device.cores
    if count == 1:
        return Line("cores", "left out", "this NPU has one core")
    told = []
    everything = ",".join(map(str, range(count)))
    with subject.session(schedule="0") as session:
        alone = subject.run_ms(session)
        told.append(f"one core {alone:.3f} ms, {subject.per_second(session, 1):.0f} runs/s")
    with subject.session(schedule=everything) as session:
        told.append(f"schedule {everything} {subject.per_second(session, count):.0f} runs/s")
    modes = ["all", "0,1", *(["0,1,2"] if count == 3 else [])]
    for mode in modes:
        with subject.session(tp_mode=mode) as session:
            wrong = subject.wrong(session.run(None, {"x": subject.feed})[0])
            if wrong:
                return Line("cores", "failure", f"tp_mode {mode}: {wrong}")
            told.append(f"tp_mode {mode} {subject.run_ms(session):.3f} ms")
    return Line("cores", "info", "; ".join(told))


def crossing(subject: Subject) -> Line:
    """The cost of one more part of a model, and how much of it is not the runtime's own run."""
    out = np.zeros_like(subject.wanted)
    with (
        subject.parts(_FEW) as few,
        subject.parts(_MANY) as many,
        subject.model(twin=None) as model,
        closing(model.context(int(subject.found.device.cores > 1))) as context,  # core 0, as the parts
    ):
        form = subject.form()
        calls: list[Callable[[], Any]] = [
            *(partial(session.run, None, {"x": subject.feed}) for session in (few, many)),
            partial(context.run, form, [subject.feed.ctypes.data], [out.ctypes.data]),
        ]
        few_ms, many_ms, bare = np.median(subject.rounds_ms(calls), axis=0)
        sides = np.median([_sides(many, calls[1]) for _ in range(20)], axis=0)
    part = (many_ms - few_ms) / (_MANY - _FEW)
    return Line(
        "crossing",
        "info",
        f"one more part {part:.3f} ms, {(part - bare) * 1e3:.0f} us above the runtime's own {bare:.3f} ms; "
        f"setting inputs takes {sides[0]:.0f} us of it, getting outputs {sides[1]:.0f} us",
    )


def _sides(session: Any, call: Callable[[], Any]) -> tuple[float, float]:
    """Microseconds per run of one call for its inputs and for its outputs."""
    before = session.stats().total
    call()
    after = session.stats().total
    runs = max(after.runs - before.runs, 1)
    inputs, outputs = after.convert_seconds - before.convert_seconds, after.fetch_seconds - before.fetch_seconds
    return inputs / runs * 1e6, outputs / runs * 1e6


def priority(subject: Subject) -> Line:
    """Whether the flags for ``priority`` are accepted, and the process keeps its own priority."""
    told = []
    before = os.getpriority(os.PRIO_PROCESS, 0)
    for word in ("high", "medium", "low"):
        try:
            with subject.model(priority=word) as model:
                wrong = subject.wrong(subject.run_bare(model, 0))
        except SettingError:
            told.append(f"{word} refused by the adapter")
            continue
        if wrong:
            return Line("priority", "failure", f"{word}: {wrong}")
        told.append(f"{word} runs")
    after = os.getpriority(os.PRIO_PROCESS, 0)
    return Line("priority", "info", f"{'; '.join(told)}; nice value of the process {before}, then {after}")


def stamped(subject: Subject) -> Line:
    """Whether the runtime accepts a file written by `ort-rknn stamp`."""
    from ..files import stamp

    given = subject.compiled()
    assert given is not None
    with tempfile.TemporaryDirectory(prefix="ort_rknn-selftest-") as folder:
        path = Path(folder, "model.rknn")
        path.write_bytes(Path(given).read_bytes())
        stamp(subject.onnx(), path)
        with subject.model(str(path)) as model:
            wrong = subject.wrong(subject.run_bare(model, 0))
    return Line("stamped", "failure" if wrong else "ok", wrong or "runs as before")


_SIBLINGS: Final = {"rk3566": "rk3568", "rk3568": "rk3566"}


def sibling(subject: Subject) -> Line:
    """Whether a model for the RK3566 runs on an RK3568, and vice versa."""
    other = _SIBLINGS.get(subject.found.device.soc)
    if other is None:
        return Line("sibling", "left out", "a question about the RK3566 and the RK3568")
    try:
        with subject.model(subject.compiled(soc=other)) as model:
            wrong = subject.wrong(subject.run_bare(model, 0))
    except AdapterError as error:
        return Line("sibling", "info", f"a model for {other} is refused: {' '.join(str(error).split())[:200]}")
    return Line("sibling", "info", f"a model for {other} {wrong or 'runs'}")


_FORK: Final = """
import json, os, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, ort_rknn
options = json.loads(sys.argv[2])
session = ort_rknn.InferenceSession(sys.argv[1], provider_options=[options])
feed = {"x": np.ones((1, 3, 32, 32), np.float32)}
if "RKNNExecutionProvider" not in session.get_providers():
    sys.exit(session.explain())
first = session.run(None, feed)[0]
child = os.fork()
if not child:
    try:
        good = np.array_equal(session.run(None, feed)[0], first)
        os._exit(0 if good else 3)
    except BaseException as error:
        print(str(error)[:300], flush=True)
        os._exit(4)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
if not np.array_equal(session.run(None, feed)[0], first):
    code = 5
print("child", code)
"""


def forked(subject: Subject) -> Line:
    """Whether a forked child works while its parent has contexts, and the parent afterwards."""
    options = subject.options(rknn_model=subject.compiled())
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", _FORK, subject.onnx(), json.dumps(options)],
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return Line("forked", "info", "it hangs: use after_fork='refuse', or start workers without --preload")
    lines = done.stdout.split("\n")
    if "child 0" in lines:
        return Line("forked", "info", "child and parent work")
    said = " ".join([*lines, done.stderr.strip()[-300:]]).strip()
    return Line("forked", "info", f"it does not work (exit code {done.returncode}): {said}")


CHECKS: Mapping[str, Callable[[Subject], Line]] = {
    "numbers": numbers,
    "masks": masks,
    "contexts": contexts,
    "shapes": shapes,
    "layouts": layouts,
    "callers": callers,
    "cores": cores,
    "crossing": crossing,
    "priority": priority,
    "stamped": stamped,
    "sibling": sibling,
    "forked": forked,
}
