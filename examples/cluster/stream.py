"""A stream of frames over all boards of a cluster, results in order.

python examples/cluster/stream.py model.onnx [--address HOST:6379]
"""

from __future__ import annotations

import argparse

import numpy as np
import ray

from ort_rknn_ray import Boards


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--address", default="auto")
    parser.add_argument("--frames", type=int, default=100)
    given = parser.parse_args()
    ray.init(address=given.address)
    with Boards(given.model) as boards:
        for told in boards.describe():
            print(told["providers"][0], "calls at once:", told["calls_at_once"])
        import ort_rknn

        x = ort_rknn.InferenceSession(given.model, providers=["CPUExecutionProvider"]).get_inputs()[0]
        shape = [d if isinstance(d, int) else 1 for d in x.shape]
        frames = ({x.name: np.full(shape, k % 7, np.float32)} for k in range(given.frames))
        for k, outputs in enumerate(boards.map(frames)):
            if k % 25 == 0:
                print(f"frame {k}: {[o.shape for o in outputs]}")


if __name__ == "__main__":
    main()
