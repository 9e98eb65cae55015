"""A live camera on the NPU: every core works on a different frame, and results stay in order.

    python examples/camera_opencv.py model.onnx [0 | video.mp4] [--frames N]

The source is a camera's number or a video's path. The model takes one float32 image (1, 3, H, W) with values from 0 to
1; its compiled twin is beside it. Needs opencv-python-headless.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import cv2
import numpy as np

import ort_rknn as ort

Array = np.ndarray[Any, Any]


def frames(source: str) -> Iterator[Array]:
    """BGR frames until the source ends."""
    camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
    if not camera.isOpened():
        raise SystemExit(f"cannot open {source}: expected a camera's number or a video file")
    # Cameras queue frames; only the newest is of interest.
    camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    try:
        while True:
            there, frame = camera.read()
            if not there:
                return
            yield frame
    finally:
        camera.release()


def prepared(frame: Array, height: int, width: int) -> Array:
    """RGB, NCHW, 0 to 1; scaled to fit, with gray borders, so that nothing is distorted."""
    scale = min(height / frame.shape[0], width / frame.shape[1])
    inner = cv2.resize(frame, (round(frame.shape[1] * scale), round(frame.shape[0] * scale)))
    picture = np.full((height, width, 3), 114, np.uint8)
    top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
    picture[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return np.ascontiguousarray(picture[None, :, :, ::-1].transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def main(arguments: list[str] | None = None) -> int:
    """Returns the number of frames."""
    parser = argparse.ArgumentParser(description="Run a model on a camera's frames.")
    parser.add_argument("model")
    parser.add_argument("source", nargs="?", default="0")
    parser.add_argument("--frames", type=int, default=None, help="stop after so many")
    given = parser.parse_args(arguments)

    options = ort.make_provider_options(schedule="auto")  # the first idle core takes the next frame
    with ort.InferenceSession(given.model, provider_options=options) as session:
        (image,) = session.get_inputs()
        _, _, height, width = image.shape
        feeds = ({image.name: prepared(frame, height, width)} for frame in islice(frames(given.source), given.frames))
        began, done = time.perf_counter(), 0
        for outputs in session.map(feeds):
            done += 1
            if done % 30 == 0:
                rate = done / (time.perf_counter() - began)
                print(f"{done} frames, {rate:.1f} frames/s, first output {outputs[0].shape}", flush=True)
        print(session.explain())
    return done


if __name__ == "__main__":
    print(main(), "frames")
