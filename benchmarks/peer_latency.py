"""A blocking run at zero modelled time, against EZ RKNN Async on the same virtual NPU in the same process."""

import sys
from functools import partial

from measure import Verdict, arguments, paired
from peer_pairing import CONV, both, ones, session_of_ours

BAR = 0.4


def main():
    given = arguments(__doc__)
    peer, face, _ = both()
    verdict = Verdict()
    turns, calls = (10, 50) if given.quick else (200, 100)
    bar = 1.0 if given.quick else BAR
    theirs = peer.InferenceSession(str(CONV), provider_options={"schedule": [0]})
    feed = ones(theirs)
    with face.InferenceSession(CONV, provider_options={"schedule": [0]}) as same, session_of_ours(schedule=[0]) as own:
        for label, ours in (("ort_rknn_ez_async", same), ("ort_rknn.InferenceSession", own)):
            seen = paired(partial(ours.run, None, feed), partial(theirs.run, None, feed), turns=turns, calls=calls)
            verdict.hold(
                f"{label}: {seen.ours:.1f} us (least {seen.least_ours:.1f}), the peer {seen.reference:.1f} us "
                f"(least {seen.least_reference:.1f}): ratio {seen.ratio:.2f}",
                seen.ratio <= bar,
                f"at most {bar:g}",
            )
    return verdict.end()


if __name__ == "__main__":
    sys.exit(main())
