"""Frames that OpenCV resizes straight into memory that the NPU reads: no copy, no conversion on the CPU after that.

    python examples/npu_memory_opencv.py model.onnx [video]

The compiled model is beside the ONNX, takes images (one 4-D input with 3 channels), and has mean and std compiled in.
Without a video, frames are generated. Needs opencv-python-headless.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

import ort_rknn as ort

Feed = dict[str, Any]


def frames(path: str | None, count: int = 100) -> Iterator[np.ndarray[Any, Any]]:
    """BGR frames of a video; generated ones without a video."""
    if path is None:
        for k in range(count):
            yield np.full((720, 1280, 3), k % 256, np.uint8)
        return
    import cv2

    video = cv2.VideoCapture(path)
    try:
        while (read := video.read())[0]:
            yield read[1]
    finally:
        video.release()


def filled(sets: list[Feed], name: str, path: str | None) -> Iterator[Feed]:
    """The sets in rotation, each filled with the next frame."""
    import cv2

    for k, frame in enumerate(frames(path)):
        one = sets[k % len(sets)]
        target = one[name][0]  # height, width, channels: a view of NPU memory
        cv2.resize(frame, (target.shape[1], target.shape[0]), dst=target)
        cv2.cvtColor(target, cv2.COLOR_BGR2RGB, dst=target)
        yield one


def main(model: str, path: str | None = None) -> int:
    """Returns the number of frames."""
    options = ort.make_provider_options(layout="nhwc", input_dtype="uint8", schedule="auto")
    with ort.InferenceSession(model, provider_options=options) as session:
        (image,) = session.get_inputs()
        sets = session.buffers(4)
        done = 0
        # depth: a set is filled again only when its run has ended
        for _outputs in session.map(filled(sets, image.name, path), copy=False, depth=len(sets)):
            done += 1
        print(session.explain())
    return done


if __name__ == "__main__":
    print(main(*sys.argv[1:]), "frames")
