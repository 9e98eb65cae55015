"""``ort-rknn demo``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from ort_rknn.adapter import Command, hookimpl


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=("ocr", "npu"), help="only this part")
    parser.add_argument("--save", metavar="PATH", help="write the picture that part one reads (.png)")


def _run(given: argparse.Namespace) -> int:
    from . import run

    return run(part=given.part, save=given.save)


@hookimpl
def ort_rknn_commands() -> Iterable[Command]:
    return [
        Command(
            name="demo",
            summary="a real OCR program through our session, then three cores of a virtual NPU at work",
            description="Part one, 'ocr': RapidOCR, unmodified, reads a picture through our session. Part two, 'npu': "
            "a small model on a virtual NPU with one, two and three cores. A part one whose packages are not installed "
            "is left out with a word about it, unless it is asked for with --part.",
            add_arguments=_add_arguments,
            run=_run,
        )
    ]
