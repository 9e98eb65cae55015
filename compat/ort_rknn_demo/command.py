"""``ort-rknn demo``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ort_rknn._cli.output import add_json_option, say_json
from ort_rknn.adapter import Command, hookimpl
from ort_rknn.adapter.json_output import boolean, enum, table

_OUTPUT = {
    "fine": boolean("whether a part ran, and no part failed"),
    "parts": table(enum("fine", "failed", "left out"), "by part: ocr, npu"),
}

if TYPE_CHECKING:
    from . import Outcome


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=("ocr", "npu"), help="run only this part")
    parser.add_argument("--save", metavar="PATH", help="write the image that part one reads (.png)")
    add_json_option(parser)


def _run(given: argparse.Namespace) -> int:
    from . import run

    outcomes: dict[str, Outcome] = {}
    with contextlib.redirect_stdout(sys.stderr) if given.json else contextlib.nullcontext():
        code = run(part=given.part, save=given.save, outcomes=outcomes)
    if given.json:
        say_json("demo", {"fine": code == 0, "parts": outcomes})
    return code


@hookimpl
def ort_rknn_commands() -> Iterable[Command]:
    return [
        Command(
            name="demo",
            summary="run an OCR program through ort_rknn, then a model on three cores of a virtual NPU",
            description="Part one, 'ocr': RapidOCR, unmodified, reads an image through our session. Part two, 'npu': "
            "a small model on a virtual NPU with one, two and three cores. If the packages of part one are not "
            "installed, it is skipped with a message, unless --part names it.",
            add_arguments=_add_arguments,
            run=_run,
            json_output=_OUTPUT,
        )
    ]
