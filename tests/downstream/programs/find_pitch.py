"""Makes a voice-like sound and finds its pitch with SwiftF0. Knows nothing of ort_rknn."""

import json
import sys

import numpy as np
from swift_f0 import SwiftF0

RATE = 16_000


def main():
    time = np.arange(RATE * 2) / RATE
    hertz = 220 * 2 ** (time / 2)  # an octave in two seconds
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    sound = sum(np.sin(k * phase) / k for k in range(1, 6)).astype(np.float32) * 0.2
    finder = SwiftF0(threads=1)
    result = finder.detect(sound, RATE)
    middle = float(np.median(result.pitch_hz))
    assert 280 < middle < 340, middle
    stream = finder.stream()
    pieces = [stream.push(sound[k : k + 4000], RATE) for k in range(0, len(sound), 4000)] + [stream.flush()]
    streamed = np.concatenate([piece.pitch_hz for piece in pieces])
    json.dump(
        {"pitch": result.pitch_hz.tolist(), "confidence": result.confidence.tolist(), "streamed": streamed.tolist()},
        sys.stdout,
    )


if __name__ == "__main__":
    main()
