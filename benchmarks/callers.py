"""Throughput of three cores for every way to call, compared with one core and one blocking caller.

Measures blocking callers of run(), and one thread that keeps all cores busy with submit(), map() or onnxruntime's
run_async(), at a simulated 0.5, 2 and 10 ms per run and with one or two contexts per core.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import threading
import time
from collections import deque
from functools import partial

from measure import SOC, Verdict, arguments
from scaling import feed_of, session_on, throughput

IN_FLIGHT = 8
#: Multiples of one core's throughput, by milliseconds per run. A cell without a bar is only reported.
BARS = {
    "3 blocking callers": {0.5: 2.8, 2: 2.95},
    "8 blocking callers": {0.5: 2.6, 2: 2.9},
    "submit": {2: 2.9},
    "map": {2: 2.9},
    "run_async": {2: 2.5},
}


def submitted(session, feed, seconds):
    """Results per second of one thread that keeps futures in flight."""
    flying = deque(session.submit(None, feed) for _ in range(IN_FLIGHT))

    def step():
        flying.popleft().result()
        flying.append(session.submit(None, feed))

    rate = stepped(step, seconds)
    for future in flying:
        future.result()
    return rate


def mapped(session, feed, seconds):
    """Results per second of one thread that iterates over map()."""
    results = session.map(itertools.repeat(feed), depth=IN_FLIGHT)
    rate = stepped(lambda: next(results), seconds)
    results.close()
    return rate


def by_run_async(session, feed, seconds):
    """Results per second of one thread that calls onnxruntime's run_async and waits for its callbacks."""
    free, errors = threading.Semaphore(IN_FLIGHT), []

    def finished(results, user_data, error):
        if error:
            errors.append(error)
        free.release()

    def step():
        free.acquire()
        session.run_async(None, feed, finished, None)

    rate = stepped(step, seconds)
    for _ in range(IN_FLIGHT):
        free.acquire()
    if errors:
        raise RuntimeError(errors[0])
    return rate


def stepped(step, seconds):
    """Steps per second, once the pipeline is full."""
    for _ in range(3 * IN_FLIGHT):
        step()
    start, count = time.perf_counter(), 0
    while (took := time.perf_counter() - start) < seconds:
        step()
        count += 1
    return count / took


def main():
    given = arguments(__doc__)
    from ort_rknn_virtual.control import virtual_npu

    npu = virtual_npu(SOC)
    npu.reset()
    verdict = Verdict()
    turns, seconds = (1, 0.1) if given.quick else (7, 0.5)
    for ms in (2,) if given.quick else (0.5, 2, 10):
        npu.run_time_us = run_us = int(ms * 1000)
        for contexts in (1, 2):
            # max_queue_size: onnxruntime's threads limit run_async; the calls in flight limit the others.
            options = {"threads_per_core": contexts, "max_queue_size": IN_FLIGHT}
            with session_on([0]) as single, session_on([0, 1, 2], **options) as triple:
                feed = feed_of(triple)
                ways = {
                    "3 blocking callers": partial(throughput, triple, 3, seconds, run_us),
                    "8 blocking callers": partial(throughput, triple, 8, seconds, run_us),
                    "submit": partial(submitted, triple, feed, seconds),
                    "map": partial(mapped, triple, feed, seconds),
                    "run_async": partial(by_run_async, triple, feed, seconds),
                }
                for name, way in ways.items():
                    pairs = [(throughput(single, 1, seconds, run_us), way()) for _ in range(turns)]
                    factor = statistics.median(three / one for one, three in pairs)
                    rate = statistics.median(three for _, three in pairs)
                    bar = BARS[name].get(ms)
                    if given.quick:
                        bar = 1.2 if bar else None
                    verdict.hold(
                        f"{ms:g} ms, threads_per_core={contexts}, {name}: {rate:.0f} runs/s, factor {factor:.3f}",
                        bar is None or factor >= bar,
                        "none: told only" if bar is None else f"at least {bar:g}",
                    )
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
