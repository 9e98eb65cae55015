"""CPU time per run as callers and sessions increase, at a simulated 2 ms over three cores.

Waiting callers cost nothing; only the switching between threads grows. Sessions share nothing.
"""

import sys
import threading
import time
from functools import partial

from measure import Verdict, arguments
from peer_pairing import CONV, both, ones, session_of_ours, throughput

MS = 2
BAR = 2.5


def cost(runs_of, callers, seconds):
    """(CPU microseconds per run, runs per second) with ``callers`` callers; ``runs_of(k)`` is what caller k calls."""
    local = threading.local()
    numbers = iter(range(callers))
    lock = threading.Lock()

    def run():
        if not hasattr(local, "run"):
            with lock:
                local.run = runs_of(next(numbers))
        local.run()

    start = time.process_time()
    rate = throughput(run, callers, seconds)
    return (time.process_time() - start) / (rate * seconds) * 1e6, rate


def one_of(sessions, feed):
    """Caller k calls session k, modulo the number of sessions."""
    return lambda k: partial(sessions[k % len(sessions)].run, None, feed)


def main():
    given = arguments(__doc__)
    peer, face, npu = both()
    verdict = Verdict()
    npu.run_time_us = MS * 1000
    seconds = 0.2 if given.quick else 1.0
    bar = 10.0 if given.quick else BAR
    options = {"schedule": [0, 1, 2], "threads_per_core": 2, "max_queue_size": 100}

    def made():
        return {
            "ez": face.InferenceSession(CONV, provider_options=options),
            "own": session_of_ours(**options),
            "peer": peer.InferenceSession(str(CONV), provider_options=options),
        }

    sessions = made()
    feed = ones(sessions["peer"])
    first = {}
    counts = (1, 16) if given.quick else (1, 2, 4, 8, 16, 32, 64)
    for callers in counts:
        seen = {key: cost(one_of([session], feed), callers, seconds) for key, session in sessions.items()}
        report(verdict, f"{callers} callers of one session", seen, first, bar)
    for n in (1, 4) if given.quick else (1, 2, 4, 8, 16):
        groups = [made() for _ in range(n)]
        seen = {key: cost(one_of([group[key] for group in groups], feed), 16, seconds) for key in sessions}
        report(verdict, f"16 callers of {n} sessions", seen, first, bar)
        for group in groups:
            group["ez"].close()
            group["own"].close()
    return verdict.end()


def report(verdict, what, seen, first, bar):
    first.update({key: cost for key, (cost, _) in seen.items() if key not in first})
    text = ", ".join(
        f"{name} {seen[key][0]:.0f} us ({seen[key][0] / first[key]:.2f} of one caller's, {seen[key][1]:.0f} runs/s)"
        for key, name in (("ez", "ort_rknn_ez_async"), ("own", "ort_rknn"), ("peer", "the peer"))
    )
    worst = max(seen[key][0] / first[key] for key in ("ez", "own"))
    verdict.hold(f"{what}: CPU time a run: {text}", worst <= bar, f"ours at most {bar:g} times one caller's")


if __name__ == "__main__":
    sys.exit(main())
