"""Part two: a small convolutional model on one, two and three cores of a virtual NPU."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from ort_rknn._errors import NpuUnavailable, bare_message
from ort_rknn._options import PROVIDER
from ort_rknn._session.session import InferenceSession
from ort_rknn.adapter import AdapterError, Query
from ort_rknn_demo._onnx import float_tensor, model, node, value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ort_rknn_demo import Outcome
    from ort_rknn_virtual.control import VirtualNpu

    Array = NDArray[np.float32]
    Feed = dict[str, Array]

_SOC = "rk3588"
_DEVICE = f"virtual:{_SOC}"
_RUN_MS = 2.0
_CALLERS = 3
_SCHEDULES = ((0,), (0, 1), (0, 1, 2))
_SHAPE = (1, 3, 16, 16)
#: The NPU computes in float16.
_TOLERANCE = 5e-3


def show(seconds: float = 1.0) -> Outcome:
    """Print the table; each schedule runs for ``seconds``."""
    print(f"Part two: {_CALLERS} callers, and one, two, three cores of a virtual {_SOC.upper()}")
    from ort_rknn._planning.discovery import survey

    report = survey(Query(device=_DEVICE), "virtual")
    if not report.found:
        print(f"  It cannot be shown: {report.why_none()}")
        return "failed"
    try:
        from ort_rknn_virtual.control import virtual_npu

        npu = virtual_npu(_SOC)
        return _table(npu, seconds)
    except (AdapterError, InvalidArgument, Fail, RuntimeException) as error:
        print(f"  It cannot be shown: {bare_message(error)}")
        return "failed"


def conv_net() -> bytes:
    """An ONNX model: two 3x3 convolutions with a ReLU in between, x [1, 3, 16, 16] to y [1, 4, 16, 16]."""
    random = np.random.default_rng(7)

    def kernel(name: str, c_out: int, c_in: int) -> bytes:
        return float_tensor((random.standard_normal((c_out, c_in, 3, 3)) * 0.2).astype(np.float32), name)

    same = {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
    return model(
        "demo",
        [
            node("Conv", ["x", "w1"], "c1", **same),
            node("Relu", ["c1"], "r1"),
            node("Conv", ["r1", "w2"], "y", **same),
        ],
        inputs=[value("x", _SHAPE)],
        outputs=[value("y", (1, 4, *_SHAPE[2:]))],
        initializers=[kernel("w1", 8, 3), kernel("w2", 4, 8)],
    )


def _session(net: bytes, schedule: tuple[int, ...]) -> InferenceSession:
    """A session on the virtual NPU. Raises NpuUnavailable if it would run on the CPU."""
    session = InferenceSession(net, providers=[(PROVIDER, {"device": _DEVICE, "schedule": list(schedule)})])
    if PROVIDER not in session.get_providers():
        raise NpuUnavailable(session.explain())
    return session


def _table(npu: VirtualNpu, seconds: float) -> Outcome:
    print("  This is a virtual NPU: a C library behind the same interface as the board's runtime. It keeps a core busy")
    print(f"  for a modelled {_RUN_MS:g} ms a run, so the table shows how runs spread over cores, not a board's speed.")
    print()
    print(f"  {'schedule':<11} {'runs/s':>7} {'speed-up':>9}   runs on core 0, 1, 2")
    net = conv_net()
    callers = _callers(net)
    first = worst = 0.0
    strays = False
    before = npu.run_time_us
    npu.run_time_us = _RUN_MS * 1000
    try:
        for schedule in _SCHEDULES:
            with _session(net, schedule) as session:
                session.run(None, callers[0][0])  # the first run loads what computes the numbers
                runs_before = npu.counters().runs
                rate, difference = _throughput(session, callers, seconds)
                runs = [now - then for now, then in zip(npu.counters().runs, runs_before)]
            first = first or rate
            worst = max(worst, difference)
            strays |= {core for core, count in enumerate(runs) if count} != set(schedule)
            text = ",".join(map(str, schedule))
            print(f"  {text:<11} {rate:>7.0f} {rate / first:>8.2f}x   {', '.join(map(str, runs))}", flush=True)
    finally:
        npu.run_time_us = before
    print()
    print("  Every caller has its own picture, and every answer was compared with that of onnxruntime's CPU:")
    print(f"  they differ by {worst:.1g} at most (the NPU computes in float16).")
    if strays:
        print("  That is wrong: the cores that ran are not those of the schedule.")
    if not worst <= _TOLERANCE:
        print(f"  That is wrong: at most {_TOLERANCE:g} is expected.")
    return "failed" if strays or not worst <= _TOLERANCE else "fine"


def _callers(net: bytes) -> list[tuple[Feed, Array]]:
    """For each caller, its feed and the expected answer."""
    cpu = onnxruntime.InferenceSession(net, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    feeds = [{"x": random.standard_normal(_SHAPE).astype(np.float32)} for _ in range(_CALLERS)]
    return [(feed, cpu.run(None, feed)[0]) for feed in feeds]


def _throughput(
    session: InferenceSession, callers: Sequence[tuple[Feed, Array]], seconds: float
) -> tuple[float, float]:
    """Runs per second of all callers together, and the largest difference from the expected answers."""
    start = threading.Barrier(len(callers))
    rates = [0.0] * len(callers)
    worst = [0.0] * len(callers)
    errors: list[Exception] = []

    def call(k: int) -> None:
        feed, wanted = callers[k]
        start.wait()
        try:
            runs, began = 0, time.perf_counter()
            while (took := time.perf_counter() - began) < seconds or not runs:
                answer = session.run(None, feed)[0]
                worst[k] = max(worst[k], float(np.abs(answer - wanted).max()))
                runs += 1
            rates[k] = runs / took
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(k,)) for k in range(len(callers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(rates), max(worst)
