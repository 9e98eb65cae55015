"""``ort-rknn doctor``: why a model does not run on the NPU."""

from __future__ import annotations

import argparse
import os

from ..adapter.command import Command
from . import schemas
from .arguments import add_device
from .output import (
    FAILED,
    FINE,
    Cell,
    Column,
    Style,
    TextTable,
    add_json_option,
    check_file,
    say,
    say_json,
    show,
    write_text,
)

_STYLES: dict[str, Style] = {"ok": "good", "warning": "warn", "failure": "bad"}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="also check this .onnx or .rknn file")
    add_device(parser)
    parser.add_argument("--report", metavar="FILE", help="write a text file to send with a question")
    add_json_option(parser)


def run(given: argparse.Namespace) -> int:
    """Check everything and print the findings."""
    from .._measure.doctor import doctor, listed, summary

    if given.model is not None:
        check_file(given.model, or_export=True)
    found = doctor(given.model, device=given.device)
    if given.report is not None:
        write_text(given.report, found.report())
    if given.json:
        say_json("doctor", found.as_json())
        return FAILED if found.failures else FINE
    columns = (Column("state", keep=True), Column("check", keep=True), Column("seen"))
    rows = [(Cell(each.state, _STYLES[each.state]), each.check, each.seen) for each in found.findings]
    show(TextTable(columns, rows))
    for finding, below in listed(found.findings):
        if below:
            say()
            say(f"{finding.check}:", _STYLES[finding.state])
        for line in below:  # not in the table, so that a command can be pasted in one piece
            say(f"  {line}")
    say()
    say(summary(found))
    if given.report is not None:
        say(f"written: {os.path.abspath(given.report)} (personal paths are replaced; look it over before sending it)")
    return FAILED if found.failures else FINE


COMMAND = Command(
    name="doctor",
    summary="why a model does not run on the NPU, and what to do",
    description="Checks the machine, the driver, the runtime, onnxruntime and, with MODEL, how a session would run it, "
    "in the order in which things fail. Every problem comes with a remedy. Exit code 1 if a check failed.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.DOCTOR,
)
