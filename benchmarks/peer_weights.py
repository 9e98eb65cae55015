"""Memory of twelve contexts (threads_per_core=4 on three cores): the weights are loaded once."""

import gc
import sys

from measure import Verdict, arguments
from peer_pairing import CONV, both, session_of_ours


def main():
    arguments(__doc__)
    peer, face, npu = both()
    verdict = Verdict()
    made = {
        "ort_rknn_ez_async": lambda **options: face.InferenceSession(CONV, provider_options=options),
        "ort_rknn": lambda **options: session_of_ours(**options),
        "the peer": lambda **options: peer.InferenceSession(str(CONV), provider_options=options),
    }
    for label, make in made.items():
        session = make(schedule=[0], threads_per_core=1)
        one = npu.counters()
        del session
        gc.collect()
        session = make(schedule=[0, 1, 2], threads_per_core=4)
        many = npu.counters()
        del session
        gc.collect()
        verdict.hold(
            f"{label}: one context {one.weight_bytes} bytes of weights, {many.contexts} contexts {many.weight_bytes}",
            many.contexts == 12 and many.weight_bytes == one.weight_bytes and npu.counters().contexts == 0,
            "the weights once",
        )
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
