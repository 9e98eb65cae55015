"""Makespan of a batch of runs if one core is four times slower than the others: the others should not wait for it."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from measure import Verdict, arguments
from peer_pairing import CONV, both, in_turns, ones, session_of_ours

MS, FACTOR, CALLERS = 5, 4, 9
BAR = 1.15


def makespan(session, feed, runs):
    """Seconds until all runs are done, after one warm-up."""
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(lambda _: session.run(None, feed), range(CALLERS)))
        start = time.perf_counter()
        list(pool.map(lambda _: session.run(None, feed), range(runs)))
        return time.perf_counter() - start


def ideal(runs):
    """Seconds with the best assignment of whole runs to cores: each to the core that would finish it first."""
    ends = [0.0, 0.0, 0.0]
    for _ in range(runs):
        k = min(range(3), key=lambda core: ends[core] + (FACTOR if core == 0 else 1) * MS)
        ends[k] += (FACTOR if k == 0 else 1) * MS
    return max(ends) / 1000


def main():
    given = arguments(__doc__)
    peer, face, npu = both()
    verdict = Verdict()
    npu.run_time_us = MS * 1000
    npu.core_factor(0, FACTOR)
    runs, turns = (30, 1) if given.quick else (120, 5)
    bar = 2.0 if given.quick else BAR
    theirs = peer.InferenceSession(str(CONV), provider_options={"schedule": [0, 1, 2]})
    feed = ones(theirs)
    best = ideal(runs)
    with (
        face.InferenceSession(CONV, provider_options={"schedule": "auto"}) as same,
        session_of_ours(schedule="auto") as own,
        session_of_ours(schedule=[0, 1, 2]) as fixed,
    ):
        for label, session in (('ort_rknn_ez_async, schedule="auto"', same), ('ort_rknn, schedule="auto"', own)):
            ratio, mine, other = in_turns(
                partial(makespan, session, feed, runs), partial(makespan, theirs, feed, runs), turns
            )
            verdict.hold(
                f"{label}: {mine * 1000:.0f} ms for {runs} runs, {mine / best:.2f} of the ideal {best * 1000:.0f} ms; "
                f"the peer with [0,1,2] {other * 1000:.0f} ms, {other / best:.2f}; ours / the peer's {ratio:.2f}",
                mine / best <= bar,
                f"at most {bar:g} of the ideal",
            )
        ratio, mine, other = in_turns(
            partial(makespan, fixed, feed, runs), partial(makespan, theirs, feed, runs), turns
        )
        verdict.hold(
            f"ort_rknn, schedule=[0,1,2]: {mine * 1000:.0f} ms, {mine / best:.2f} of the ideal (run n belongs to its "
            f"core); the peer {other * 1000:.0f} ms: ratio {ratio:.2f}",
            ratio <= (2.0 if given.quick else 1.02),
            "not slower than the peer",
        )
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
