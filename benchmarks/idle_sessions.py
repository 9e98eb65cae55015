"""CPU time of a hundred NPU sessions: while all are idle, and while one of them runs at 30 frames a second.

onnxruntime's default thread pools spin: sessions made with them cost about a whole CPU here. The reference is a plain
onnxruntime session on the CPU with default options, run at the same pace.
"""

from __future__ import annotations

import os
import sys
import threading
import time

os.environ["ORT_RKNN_VIRTUAL_COMPUTE"] = "pattern"

from measure import DEVICE, MODELS, SOC, Verdict, arguments

SESSIONS = 100
FPS = 30
IDLE_BAR = 0.01
BUSY_BAR = 0.05
MODEL = MODELS / "conv_f16.onnx"


def cpu_share(seconds, work):
    """CPU seconds per second of this process during ``work(seconds)``."""
    start, cpu = time.perf_counter(), time.process_time()
    work(seconds)
    return (time.process_time() - cpu) / (time.perf_counter() - start)


def frames(session, feed):
    """Run ``session`` through run_async at FPS frames a second."""

    def work(seconds):
        done = threading.Semaphore(0)
        failed = []

        def finished(results, _, error):
            if error:
                failed.append(error)
            done.release()

        count = max(int(seconds * FPS), 1)
        start = time.perf_counter()
        for frame in range(count):
            session.run_async(None, feed, finished, None)
            time.sleep(max(start + (frame + 1) / FPS - time.perf_counter(), 0))
        for _ in range(count):
            if not done.acquire(timeout=10):
                raise RuntimeError("a run did not end")
        if failed:
            raise RuntimeError(failed[0])

    return work


def main():
    given = arguments(__doc__)
    import numpy as np
    import onnxruntime

    import ort_rknn
    from ort_rknn_virtual.control import virtual_npu

    npu = virtual_npu(SOC)
    npu.reset()
    npu.run_time_us = 2000
    seconds = 0.7 if given.quick else 5.0
    options = [{"device": DEVICE, "schedule": "0,1,2"}]
    sessions = [ort_rknn.InferenceSession(MODEL, provider_options=options) for _ in range(SESSIONS)]
    session = sessions[SESSIONS // 2]
    assert session.get_providers()[0] == "RKNNExecutionProvider", session.explain()
    feed = {i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()}
    for each in sessions:
        each.run(None, feed)
    time.sleep(0.1)
    idle = cpu_share(seconds, time.sleep)
    frames(session, feed)(0.2)
    before = sum(npu.counters().runs)
    busy = cpu_share(seconds, frames(session, feed))
    runs = sum(npu.counters().runs) - before
    for each in sessions:
        each.close()
    sessions.clear()

    plain = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    frames(plain, feed)(0.2)
    reference = cpu_share(seconds, frames(plain, feed))

    verdict = Verdict()
    idle_bar, busy_bar = (0.2, 0.5) if given.quick else (IDLE_BAR, BUSY_BAR)
    said = f"{SESSIONS} idle sessions: {idle:.4f} CPU seconds a second"
    verdict.hold(said, idle <= idle_bar, f"at most {idle_bar:g}")
    verdict.hold(
        f"one of them at {runs / seconds:.0f} runs/s through run_async: {busy:.4f} CPU seconds a second, a plain CPU "
        f"session {reference:.3f}: ratio {busy / reference:.3f}",
        busy <= busy_bar,
        f"at most {busy_bar:g}",
    )
    verdict.hold(f"{runs} frames ran on the NPU", runs == max(int(seconds * FPS), 1), "every frame")
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
