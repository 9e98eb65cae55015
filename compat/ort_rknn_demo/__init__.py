"""The demo, ``ort-rknn demo``: shows what this package does on the current machine, with or without a board.

Part one, "ocr": RapidOCR, an unmodified program written for onnxruntime, reads an image through our session. Part two,
"npu": a small model on one, two and three cores of a virtual NPU.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["run"]

Outcome = Literal["fine", "failed", "left out"]


def run(
    *,
    part: Literal["ocr", "npu"] | None = None,
    save: str | None = None,
    outcomes: dict[str, Outcome] | None = None,
) -> int:
    """Run both parts, or the named one, and print what happens. ``save``: where to write the image. ``outcomes``
    receives the outcome of each part that was shown.

    Returns 0 if something ran and everything that ran succeeded, else 1. If the packages of part one are missing, it is
    skipped, which is a failure only if it was requested by name. Part two without a C compiler is a failure.
    """
    from ort_rknn._environment import switched_on

    if switched_on("ORT_RKNN_DISABLE"):
        print("ORT_RKNN_DISABLE=1 is set, so sessions are plain onnxruntime's: there is nothing to show. Unset it.")
        return 1
    outcomes = {} if outcomes is None else outcomes
    if part != "npu":
        from ort_rknn_demo._ocr import show as show_ocr

        outcomes["ocr"] = show_ocr(save)
    if part != "ocr":
        from ort_rknn_demo._npu import show as show_npu

        if outcomes:
            print()
        outcomes["npu"] = show_npu()
    return 0 if "failed" not in outcomes.values() and "fine" in outcomes.values() else 1
