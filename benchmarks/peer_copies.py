"""An input of 1x3x640x640 float32: how often it is copied before the runtime, and the CPU time of a call.

The event log of the virtual NPU contains the address of the buffer passed to rknn_inputs_set.
"""

import sys
import time
from functools import partial

from measure import DEVICE, Verdict, arguments
from peer_pairing import both, in_turns, session_of_ours

SHAPE = (1, 3, 640, 640)


def stand_in():
    """A compiled model that takes the image and has a small output."""
    from ort_rknn._planning.discovery import survey
    from ort_rknn.adapter import Query
    from ort_rknn_virtual import VirtualAdapter

    device = survey(Query(device=DEVICE)).found[0].device
    return VirtualAdapter().stand_in(device, [("x", "float32", SHAPE)], [("y", "float32", (1, 16))])


def cpu_of(run, calls):
    """CPU milliseconds per call, of all threads of the process."""
    start = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - start) / calls * 1000


def main():
    given = arguments(__doc__)
    import numpy as np

    peer, face, npu = both()
    verdict = Verdict()
    calls, turns = (5, 1) if given.quick else (40, 7)
    blob = stand_in()
    theirs = peer.InferenceSession(blob, provider_options={"schedule": [0]})
    x = np.random.default_rng(0).random(SHAPE, np.float32)
    with (
        face.InferenceSession(blob, provider_options={"schedule": [0]}) as same,
        session_of_ours(blob, schedule="0") as own,
    ):
        name = own.get_inputs()[0].name
        for label, session in (("ort_rknn_ez_async", same), ("ort_rknn", own), ("the peer", theirs)):
            since = npu.counters().events
            for _ in range(3):
                session.run(None, {name: x})
            addresses = {e.address for e in npu.events(since) if e.kind == "inputs_set"}
            own_address = addresses == {x.ctypes.data}
            is_peer = session is theirs
            verdict.hold(
                f"{label}: the runtime reads {'the array itself' if own_address else 'a copy'}",
                own_address or is_peer,
                "the array itself" if not is_peer else "none, for comparison",
            )
            if not is_peer:
                ratio, mine, other = in_turns(
                    partial(cpu_of, partial(session.run, None, {name: x}), calls),
                    partial(cpu_of, partial(theirs.run, None, {name: x}), calls),
                    turns,
                )
                verdict.hold(
                    f"{label}: {mine:.2f} ms of CPU a call, the peer {other:.2f} ms: ratio {ratio:.2f}",
                    ratio <= (2.0 if given.quick else 1.0),
                    "not more than the peer",
                )
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
