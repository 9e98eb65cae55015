"""The tables of docs/multicore.md: schedule, tp_mode and threads_per_core on the virtual NPU, compared with the peer.

An image of 1x3x320x320 float32, which the CPU converts for every run, and a modelled 5 ms a run on one core.
"""

import sys
import threading
import time
from functools import partial

from measure import DEVICE, Verdict, arguments
from peer_pairing import both, session_of_ours, throughput

MS = 5
SHAPE = (1, 3, 320, 320)
ROWS = (
    ({"schedule": [0]}, (1, 2)),
    ({"schedule": [0], "threads_per_core": 2}, (2,)),
    ({"schedule": [0, 1]}, (2,)),
    ({"schedule": [0, 1, 2]}, (1, 3)),
    ({"schedule": [0, 1, 2], "threads_per_core": 2}, (3, 6)),
    ({"tp_mode": "0"}, (1,)),
    ({"tp_mode": "0,1"}, (1,)),
    ({"tp_mode": "all"}, (1, 3)),
    ({"tp_mode": "all", "threads_per_core": 3}, (3,)),
)


def stand_in():
    """A compiled model that takes the image and has a small output."""
    from ort_rknn._planning.discovery import survey
    from ort_rknn.adapter import Query
    from ort_rknn_virtual import VirtualAdapter

    device = survey(Query(device=DEVICE)).found[0].device
    return VirtualAdapter().stand_in(device, [("x", "float32", SHAPE)], [("y", "float32", (1, 16))])


def measured(run, callers, seconds):
    """(calls per second, median milliseconds per call)."""
    times, lock = [], threading.Lock()

    def timed():
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        with lock:
            times.append(took)

    rate = throughput(timed, callers, seconds)
    return rate, sorted(times)[len(times) // 2] * 1000


def main():
    given = arguments(__doc__)
    import numpy as np

    peer, _, npu = both()
    verdict = Verdict()
    npu.run_time_us = MS * 1000
    seconds = 0.2 if given.quick else 2.0
    feed = {"x": np.random.default_rng(0).random(SHAPE, np.float32)}
    blob = stand_in()
    for options, counts in ROWS:
        text = ", ".join(f"{key}={value!r}" for key, value in options.items())
        theirs = peer.InferenceSession(blob, provider_options=options)
        with session_of_ours(blob, **options) as ours:
            for callers in counts:
                rate, took = measured(partial(ours.run, None, feed), callers, seconds)
                other, its = measured(partial(theirs.run, None, feed), callers, seconds)
                verdict.hold(
                    f"{text}, {callers} callers: {rate:.0f} runs/s, {took:.1f} ms a call; "
                    f"the peer {other:.0f}, {its:.1f}",
                    rate > 0,
                    "none: a table",
                )
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
