"""``ort-rknn top``: who uses the NPU."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from ..adapter.command import Command
from . import schemas
from .output import (
    FINE,
    USAGE,
    Cell,
    Column,
    Mistake,
    Style,
    TextTable,
    add_json_option,
    live,
    one_line,
    rich_console,
    say,
    say_json,
    show,
)

if TYPE_CHECKING:
    from .._measure.top import Usage

_COLUMNS = (
    Column("pid", right=True, keep=True),
    Column("program", spare=3),
    Column("model"),
    Column("on"),
    Column("load", right=True, keep=True),
    Column("runs/s", right=True, keep=True, spare=1),
    Column("waiting", right=True, keep=True, spare=4),
    Column("errors", right=True, keep=True, spare=2),
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="print once and exit, as in a pipe")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=float, default=1.0, help="time between updates (default: 1)"
    )
    add_json_option(parser)


def run(given: argparse.Namespace) -> int:
    """Show it until Ctrl-C, or once."""
    from .._measure.top import top

    if not 0.1 <= given.interval <= 3600:
        raise Mistake(f"--interval {given.interval:g}: expected seconds from 0.1 to 3600", USAGE)
    if given.json:
        say_json("top", top().as_json())
        return FINE
    if given.once or not sys.stdout.isatty() or rich_console() is None:  # FORCE_COLOR makes no terminal of a pipe
        found = table_of(top())
        if found.rows:
            show(found)
        else:
            say(found.title)
        return FINE
    try:
        with live(table_of(top())) as update:
            while True:
                time.sleep(given.interval)
                update(table_of(top()))
    except KeyboardInterrupt:
        return FINE


def table_of(usage: Usage) -> TextTable:
    """The table, below the board's own numbers."""
    rows: list[list[str | Cell]] = []
    for process in usage.processes:
        for model in process.models:
            for number, (label, load) in enumerate(model.cores.items()):
                first = number == 0
                rows.append(
                    [
                        str(process.pid) if first else "",
                        process.name if first else "",
                        model.model if first else "",
                        f"{model.device} {label}",
                        _percent(load),
                        f"{model.runs_per_second:.1f}" if first else "",
                        str(model.queued) if first else "",
                        Cell(str(model.errors), "bad" if model.errors else "") if first else "",
                    ]
                )
    for user in usage.others:
        rows.append([str(user.pid), user.name, Cell("another library", "dim"), "", "", "", "", ""])
    return TextTable(_COLUMNS, rows, "\n".join(_head(usage, bool(rows))))


def _percent(load: float) -> Cell:
    style: Style = "bad" if load > 0.9 else "warn" if load > 0.6 else ""
    return Cell(f"{load:.0%}", style)


def _head(usage: Usage, any_rows: bool) -> list[str]:
    lines = []
    board = []
    if usage.clock is not None and usage.clock.now is not None:
        highest = f" of {usage.clock.highest / 1e6:.0f}" if usage.clock.highest else ""
        board.append(f"{usage.clock.now / 1e6:.0f}{highest} MHz ({usage.clock.governor})")
    if usage.temperature is not None:
        board.append(f"{usage.temperature[1]:.0f} C")
    if usage.driver is not None:
        board.append(f"the driver reports {', '.join(f'{x} %' for x in usage.driver)}")
    if board:
        lines.append(f"NPU: {'; '.join(board)}")
    if usage.hint:
        lines.append(f"The driver's own load is for root. To read it: {usage.hint}")
    if usage.cores:
        lines.append(one_line("; ".join(f"{core}: {load:.0%}" for core, load in usage.cores.items())))
    if not any_rows:
        lines.append("No process of this user runs a model on an NPU through ort_rknn.")
    return lines


COMMAND = Command(
    name="top",
    summary="show which processes use the NPU",
    description="Shows the processes that run models through this package, with the load of the last second by core, "
    "model and session, and the NPU's clock, temperature and load if the kernel exposes them. Updates until Ctrl-C on "
    "a terminal with the extra 'cli'; otherwise prints once. Needs neither root nor a daemon: every process with a "
    "model on the NPU publishes its load in a file that only its user can read, unless ORT_RKNN_NO_TOP=1 is set.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.TOP,
)
