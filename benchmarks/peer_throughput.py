"""Runs per second over three cores compared with the peer, for every combination of simulated time, contexts per core
and callers.

Several callers call the blocking run(). One caller uses run_pipeline(), which both libraries have, and our map().
"""

import itertools
import sys

from measure import Verdict, arguments, taken_per_second
from peer_pairing import CONV, both, in_turns, ones, session_of_ours, throughput

BAR = 0.97
#: With many callers and short runs the calls dominate: there we are slightly faster, hence the number of turns.
ABOVE, MANY, SHORT_MS, MORE_TURNS = 1.0, 8, 0.5, 15
#: Share of three cores' capacity. If both libraries reach it, neither can be faster than the other.
FULL = 0.995
DEPTH = 8


def pipelined(session, feed, seconds):
    """Calls per second of one thread through run_pipeline, once it is full."""
    for _ in range(3 * DEPTH):
        session.run_pipeline(feed, DEPTH)
    return throughput(lambda: session.run_pipeline(feed, DEPTH), 1, seconds)


def mapped(session, feed, seconds):
    """Results per second of one thread through map(), once it is full."""
    # A pipeline submits before it waits, so as many are in flight.
    results = session.map(itertools.repeat(feed), depth=DEPTH + 1)
    for _ in range(3 * DEPTH):
        next(results)
    return taken_per_second(results, seconds)


def main():
    given = arguments(__doc__)
    peer, face, npu = both()
    verdict = Verdict()
    turns, seconds = (1, 0.15) if given.quick else (5, 0.5)
    bar = 0.5 if given.quick else BAR
    times = (2,) if given.quick else (SHORT_MS, 2, 10)
    for ms, threads in itertools.product(times, (1, 2)):
        npu.run_time_us = ms * 1000
        options = {"schedule": [0, 1, 2], "threads_per_core": threads, "max_queue_size": DEPTH}
        theirs = peer.InferenceSession(str(CONV), provider_options=options)
        same = face.InferenceSession(CONV, provider_options=options)
        own = session_of_ours(**options)
        feed = ones(theirs)
        cells = [
            (f"{n} callers, {label}", n, session, throughput_of(session, feed, n, seconds))
            for n in (3, MANY)
            for label, session in (("ort_rknn_ez_async", same), ("ort_rknn", own))
        ]
        rows = [
            (label, ours, throughput_of(theirs, feed, n, seconds), n == MANY and ms == SHORT_MS)
            for label, n, _, ours in cells
        ]
        reference = once(pipelined, theirs, feed, seconds)
        rows += [
            ("one caller, ort_rknn_ez_async pipeline", once(pipelined, same, feed, seconds), reference, False),
            ("one caller, ort_rknn map", once(mapped, own, feed, seconds), reference, False),
        ]
        for label, ours, of_peer, above in rows:
            ratio, mine, other = in_turns(ours, of_peer, MORE_TURNS if above else turns)
            full = 3 * 1000 / ms * FULL
            verdict.hold(
                f"{ms:g} ms, threads_per_core={threads}, {label}: {mine:.0f} runs/s, the peer {other:.0f}: "
                f"ratio {ratio:.3f}",
                ratio > ABOVE or min(mine, other) >= full if above else ratio >= bar,
                f"above {ABOVE:g}, or both {full:.0f}: all that the cores do" if above else f"at least {bar:g}",
            )
        same.close()
        own.close()
        del theirs
    return verdict.end()


def throughput_of(session, feed, callers, seconds):
    return lambda: throughput(lambda: session.run(None, feed), callers, seconds)


def once(measure, session, feed, seconds):
    return lambda: measure(session, feed, seconds)


if __name__ == "__main__":
    sys.exit(main())
