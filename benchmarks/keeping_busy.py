"""Throughput of map() over three cores with its default depth, if one core is slow or runs vary in length.

The ideal is the sum of the cores' speeds.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys

from measure import SOC, Verdict, arguments, taken_per_second
from scaling import feed_of, session_on

BAR = 0.95
SLOW = 8


def slow_core(npu, schedule):
    """1 ms a run, one core eight times slower. Returns the ideal runs per second, and feeds to run."""
    npu.run_time_us = 1000
    npu.core_factor(2, SLOW)
    return 1000 * (2 + 1 / SLOW), itertools.repeat


def jitter(npu, schedule):
    """2 ms a run, and up to 1.5 ms more or less."""
    chance = random.Random(0)

    def feeds(feed):
        while True:
            npu.run_time_us = 2000 + chance.randrange(-1500, 1501)
            yield feed

    return 3000 / 2, feeds


def rate(session, feeds, seconds):
    """Results per second in the steady state."""
    results = session.map(feeds)
    for _ in range(100):
        next(results)
    return taken_per_second(results, seconds)


def main():
    given = arguments(__doc__)
    from ort_rknn_virtual.control import virtual_npu

    npu = virtual_npu(SOC)
    verdict = Verdict()
    turns, seconds = (1, 0.5) if given.quick else (7, 1.0)
    bar = 0.5 if given.quick else BAR
    for way, schedule in ((slow_core, "auto"), (jitter, "auto"), (jitter, "0,1,2")):
        npu.reset()
        ideal, feeds = way(npu, schedule)
        with session_on(schedule) as session:
            feed = feed_of(session)
            part = statistics.median(rate(session, feeds(feed), seconds) for _ in range(turns)) / ideal
        verdict.hold(
            f'map, schedule="{schedule}", {way.__doc__.partition(". ")[0].rstrip(".")}: {part:.3f} of the ideal '
            f"{ideal:.0f} runs/s",
            part >= bar,
            f"at least {bar:g}",
        )
    npu.reset()
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
