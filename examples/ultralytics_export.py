"""From an Ultralytics model to the NPU: export to ONNX, compile, run.

    python examples/ultralytics_export.py yolo11n.pt rk3588 [--size 640]

Writes ``yolo11n.onnx`` and the compiled model beside it, and runs one frame. Needs ultralytics, onnxslim and the
vendor's converter (``ort-rknn toolkit install``); without the converter it stops after the export and says so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

import ort_rknn as ort


def exported(model: str, size: int) -> Path:
    """The ONNX of an Ultralytics model, with fixed shapes: an NPU runs shapes that were compiled."""
    from ultralytics import YOLO

    # The converter reads opset 19 at most; a simplified graph makes fewer parts.
    return Path(YOLO(model).export(format="onnx", imgsz=size, opset=17, dynamic=False, simplify=True))


def compiled(model: Path, soc: str) -> bool:
    """Whether ``ort-rknn convert`` made a twin; says why not."""
    command = [sys.executable, "-m", "ort_rknn", "convert", str(model), "--target", soc]
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Export an Ultralytics model and compile it for the NPU.")
    parser.add_argument("model", help="yolo11n.pt, or yolo11n.yaml for untrained weights")
    parser.add_argument("soc", nargs="?", default="rk3588")
    parser.add_argument("--size", type=int, default=640)
    given = parser.parse_args(arguments)

    onnx = exported(given.model, given.size)
    print("exported", onnx)
    if not compiled(onnx, given.soc):
        return 1
    with ort.InferenceSession(str(onnx)) as session:
        (image,) = session.get_inputs()
        outputs = session.run(None, {image.name: np.zeros(image.shape, np.float32)})
        print(session.explain())
        print("outputs", [output.shape for output in outputs])
    return 0


if __name__ == "__main__":
    sys.exit(main())
