"""Throughput of three cores with three callers compared with one core with one caller, at a simulated 2 ms per run.

Also compares the event log of the virtual NPU with the schedule: run n goes to core schedule[n % len(schedule)].
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections import Counter

os.environ["ORT_RKNN_VIRTUAL_COMPUTE"] = "pattern"

from measure import DEVICE, MODELS, SOC, Verdict, arguments

BAR = 2.95
RUN_US = 2000
MODEL = MODELS / "conv_f16.onnx"


def session_on(schedule, **options):
    import ort_rknn

    session = ort_rknn.InferenceSession(MODEL, provider_options=[{"device": DEVICE, "schedule": schedule, **options}])
    assert session.get_providers()[0] == "RKNNExecutionProvider", session.explain()
    return session


def feed_of(session):
    import numpy as np

    return {i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()}


def throughput(session, callers, seconds, run_us=RUN_US):
    """Runs per second of ``callers`` threads together: the sum of their rates, so that none waits for another's last
    run. They start at different times, like independent callers."""
    feed = feed_of(session)
    rates = [0.0] * callers
    failed = []
    ready = threading.Barrier(callers)

    def call(k):
        ready.wait()
        try:
            time.sleep(k / callers * run_us / 1e6)
            count, now = 0, time.perf_counter()
            start, end = now, now + seconds
            while now < end:
                session.run(None, feed)
                count += 1
                now = time.perf_counter()
            rates[k] = count / (now - start)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=call, args=(k,)) for k in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return sum(rates)


def check_order(npu, verdict, schedule, runs=24):
    """One caller after the other: the log names the core of every run."""
    with session_on(schedule) as session:
        feed = feed_of(session)
        since = npu.counters().events
        for _ in range(runs):
            session.run(None, feed)
        masks = [event.core_mask for event in npu.events(since) if event.kind == "run"]
    wanted = [1 << schedule[n % len(schedule)] for n in range(runs)]
    said = f"schedule {schedule}: {len(masks)} runs in the log"
    verdict.hold(said, masks == wanted, "run n on core schedule[n % len]")


def check_shares(npu, verdict, schedule, callers):
    """Several concurrent callers: their runs overlap, so only the shares of the cores can be checked."""
    with session_on(schedule) as session:
        before = npu.counters().runs
        throughput(session, callers, 0.3)
        runs = [now - then for now, then in zip(npu.counters().runs, before)]
    wanted = Counter(schedule[n % len(schedule)] for n in range(sum(runs)))
    met = sum(runs) > 0 and all(runs[core] == wanted[core] for core in range(len(runs)))
    verdict.hold(f"schedule {schedule}, {callers} callers: runs by core {runs}", met, "exactly the schedule's shares")


def main():
    given = arguments(__doc__)
    from ort_rknn_virtual.control import virtual_npu

    npu = virtual_npu(SOC)
    npu.reset()
    npu.run_time_us = RUN_US
    verdict = Verdict()
    for schedule in ([0, 1, 2], [0, 2], [2, 0, 0, 1]):
        check_order(npu, verdict, schedule)
    check_shares(npu, verdict, [0, 1, 2], 3)
    check_shares(npu, verdict, [1, 1, 2], 4)

    turns, seconds = (2, 0.3) if given.quick else (30, 0.5)
    with session_on([0]) as single, session_on([0, 1, 2]) as triple:
        pairs = [(throughput(single, 1, seconds), throughput(triple, 3, seconds)) for _ in range(turns)]
    rates = [statistics.median(rate) for rate in zip(*pairs)]
    factor = statistics.median(three / one for one, three in pairs)
    bar = 1.5 if given.quick else BAR
    verdict.hold(
        f"one core {rates[0]:.0f} runs/s, three cores {rates[1]:.0f} runs/s, factor {factor:.3f}: medians of the turns",
        factor >= bar,
        f"at least {bar:g}",
    )
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
