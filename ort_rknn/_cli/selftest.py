"""``ort-rknn selftest``: tests on a board what cannot be known without one."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

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
    check_writable,
    printable,
    say,
    say_json,
    show,
    write_text,
)

if TYPE_CHECKING:
    from .._selftest.subject import Line
    from ..adapter.contract import Device

_STYLES: dict[str, Style] = {"ok": "good", "info": "", "failure": "bad", "left out": "dim"}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument("--adapter", metavar="NAME", help="use only this adapter")
    parser.add_argument("--quick", action="store_true", help="shorter measurements")
    parser.add_argument("--report", metavar="FILE", help="write a text file to send with a question")
    add_json_option(parser)


def run(given: argparse.Namespace) -> int:
    """Run all checks."""
    from .._selftest.selftest import selftest

    if given.report is not None:
        check_writable(given.report)
    found = selftest(device=given.device, adapter=given.adapter, quick=given.quick, progress=_progress)
    if given.report is not None:
        write_text(given.report, found.report())
    good = bool(found.tested) and not found.failures
    if given.json:
        say_json("selftest", found.as_json())
        return FINE if good else FAILED
    columns = (Column("check", keep=True), Column("", keep=True), Column("seen"))
    for each in found.tested:
        kind = "virtual NPU" if each.device.virtual else "NPU"
        title = f"{each.device.name}: {kind}, adapter {each.device.adapter}"
        show(
            TextTable(
                columns, [(one.check, Cell(one.state, _STYLES[one.state]), one.seen) for one in each.lines], title
            )
        )
        say()
    say(found.verdict, "good" if good and not found.virtual else "warn" if good else "bad")
    if given.report is not None:
        say(f"written: {os.path.abspath(given.report)} (look it over before sending it)")
    return FINE if good else FAILED


def _progress(device: Device, line: Line) -> None:
    print(printable(f"{device.name}: {line.check}: {line.state}", sys.stderr), file=sys.stderr)


COMMAND = Command(
    name="selftest",
    summary="test on the board what cannot be known without one",
    description="Runs small models, included in the package, through every adapter that finds a device. Checks the "
    "outputs, core masks, contexts and shapes, and measures the cost of each layout, core, context and part. "
    "docs/board.md lists which open question each line answers. Also passes on a virtual NPU, and says that it ran "
    "there. Exit code 1 if a check failed, or if no device was found.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.SELFTEST,
)
