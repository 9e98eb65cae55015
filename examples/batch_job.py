"""Runs a model on a folder of inputs, once each: a job that may be stopped and resumed.

    python examples/batch_job.py model.onnx inputs/ outputs/

``inputs/`` has ``.npy`` files, each one input of the model; ``outputs/`` gets an ``.npz`` of the same name with all
outputs by name. Finished inputs are skipped; a failing input is reported, and the others continue. Exit code 1 if any
failed.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

import ort_rknn as ort


def written(path: Path, outputs: dict[str, Any]) -> None:
    """Write the file completely or not at all: a job that was stopped leaves no partial file."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez(file, **outputs)
    os.replace(part, path)


def main(model: str, source: str, target: str) -> int:
    inputs = sorted(Path(source).glob("*.npy"))
    Path(target).mkdir(parents=True, exist_ok=True)
    goals = {path: Path(target, path.name).with_suffix(".npz") for path in inputs}
    left = [path for path in inputs if not goals[path].exists()]
    print(f"{len(inputs)} inputs, {len(inputs) - len(left)} done before")
    failed = 0

    # Two contexts per core: one run's input is copied while another's is computed.
    options = ort.make_provider_options(schedule="auto", threads_per_core=2)
    with ort.InferenceSession(model, provider_options=options) as session:
        (image,) = session.get_inputs()
        names = [output.name for output in session.get_outputs()]

        def finish(path: Path, call: Future[list[Any]]) -> int:
            try:
                written(goals[path], dict(zip(names, call.result())))
            except Exception as error:
                print(f"{path.name}: {error}", file=sys.stderr)
                return 1
            return 0

        under_way: list[tuple[Path, Future[list[Any]]]] = []
        for path in left:
            try:
                feed = {image.name: np.load(path, allow_pickle=False)}
            except ValueError as error:
                print(f"{path.name}: {error}", file=sys.stderr)
                failed += 1
                continue
            if len(under_way) == 16:  # bounds the memory
                failed += finish(*under_way.pop(0))
            under_way.append((path, session.submit(None, feed)))
        failed += sum(finish(path, call) for path, call in under_way)
        print(f"{len(left) - failed} done now, {failed} failed, on {session.get_providers()[0]}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
