"""Throughput of map() over three cores with its default depth, if one core is slow or runs vary in length.

The ideal is the sum of the cores' speeds. A core's speed is what it does while the runtime's calls for one run follow
those for the run before without a gap: its runs per second of these calls, from the counters of ``session.stats()``.
The fraction of the modelled speeds is printed as well, and ``--modelled`` holds it to the bar: there the runtime's own
calls count too, and that a sleeping thread wakes up late.
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
CORES = 3


def slow_core(npu):
    """1 ms a run, one core eight times slower. Returns the modelled runs per second, and feeds to run."""
    npu.run_time_us = 1000
    npu.core_factor(2, SLOW)
    return 1000 * (2 + 1 / SLOW), itertools.repeat


def jitter(npu):
    """2 ms a run, and up to 1.5 ms more or less."""
    chance = random.Random(0)

    def feeds(feed):
        while True:
            npu.run_time_us = 2000 + chance.randrange(-1500, 1501)
            yield feed

    return CORES * 1000 / 2, feeds


def rate(session, feeds, seconds):
    """Results per second in the steady state."""
    results = session.map(feeds)
    for _ in range(100):
        next(results)
    return taken_per_second(results, seconds)


def work(session):
    """Runs and seconds of the runtime's calls, by core."""
    (model,) = session.stats().models
    return {core: (c.runs, c.convert_seconds + c.run_seconds + c.fetch_seconds) for core, c in model.cores.items()}


def speeds(before, after):
    """The sum of the cores' speeds between two calls of :func:`work`."""
    return sum((after[core][0] - before[core][0]) / (after[core][1] - before[core][1]) for core in after)


def main():
    given = arguments(__doc__, ("--modelled", "compare with the modelled speeds of the cores"))
    from ort_rknn_virtual.control import virtual_npu

    npu = virtual_npu(SOC)
    verdict = Verdict()
    turns, seconds = (1, 0.5) if given.quick else (7, 1.0)
    bar = 0.5 if given.quick else BAR
    for way, schedule in ((slow_core, "auto"), (jitter, "auto"), (jitter, "0,1,2")):
        npu.reset()
        modelled, feeds = way(npu)
        rates, measured = [], []
        with session_on(schedule) as session:
            feed = feed_of(session)
            for _ in range(turns):
                before = work(session)
                rates.append(rate(session, feeds(feed), seconds))
                measured.append(speeds(before, work(session)))
        of_measured = statistics.median(a / b for a, b in zip(rates, measured))
        of_modelled = statistics.median(rates) / modelled
        verdict.hold(
            f'map, schedule="{schedule}", {way.__doc__.partition(". ")[0].rstrip(".")}: {of_measured:.3f} of the '
            f"cores' {statistics.median(measured):.0f} runs/s, {of_modelled:.3f} of the modelled {modelled:.0f}",
            (of_modelled if given.modelled else of_measured) >= bar,
            f"at least {bar:g} of {'the modelled' if given.modelled else 'theirs'}",
        )
    npu.reset()
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
