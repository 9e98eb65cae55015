"""``ort-rknn demo``."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ort_rknn._cli.output import add_json_option, say_json
from ort_rknn.adapter import Command, hookimpl
from ort_rknn.adapter.json_output import table, truth, word

_OUTPUT = {
    "fine": truth("whether something ran, and all that ran went well"),
    "parts": table(word("fine", "failed", "left out"), "by part: ocr, npu"),
}

if TYPE_CHECKING:
    from . import Outcome


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=("ocr", "npu"), help="only this part")
    parser.add_argument("--save", metavar="PATH", help="write the picture that part one reads (.png)")
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
            summary="a real OCR program through our session, then three cores of a virtual NPU at work",
            description="Part one, 'ocr': RapidOCR, unmodified, reads a picture through our session. Part two, 'npu': "
            "a small model on a virtual NPU with one, two and three cores. A part one whose packages are not installed "
            "is left out with a word about it, unless it is asked for with --part.",
            add_arguments=_add_arguments,
            run=_run,
            json_output=_OUTPUT,
        )
    ]
