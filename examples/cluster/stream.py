"""A stream of frames over all boards of a cluster, results in order.

    python examples/cluster/stream.py model.onnx frames/ [--address HOST:6379]

``frames/`` has ``.npy`` files, each one input of the model; they are taken in the order of their names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

from ort_rknn.files import read_onnx
from ort_rknn_ray import Boards


def frames(model: str, folder: str) -> Iterator[dict[str, Any]]:
    """One after the other, as boards have room for them."""
    (image,) = read_onnx(model).inputs
    for path in sorted(Path(folder).glob("*.npy")):
        yield {image.name: np.load(path, allow_pickle=False)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("frames")
    parser.add_argument("--address", default="auto")
    given = parser.parse_args(arguments)
    ray.init(address=given.address, ignore_reinit_error=True)
    done = 0
    # If a board does not answer within five seconds, its calls move to the others.
    with Boards(given.model, timeout=5) as boards:
        for told in boards.describe():
            print(told.get("error") or f"{told['providers'][0]}, {told['calls_at_once']} calls at once")
        for outputs in boards.map(frames(given.model, given.frames)):
            print(f"frame {done}: {', '.join(str(output.shape) for output in outputs)}")
            done += 1
    print(f"{done} frames")
    return 0


if __name__ == "__main__":
    sys.exit(main())
