"""``ort-rknn ray-resources``: what this board offers, ready for ``ray start``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from ort_rknn._cli.output import add_json_option, say_json
from ort_rknn.adapter import Command, hookimpl
from ort_rknn.adapter.json_output import boolean, number, table, text

_OUTPUT = {
    "npu": boolean("whether an NPU is usable"),
    "resources": table(number(), "for `ray start --resources`"),
    "labels": table(text(), "for `ray start --labels`"),
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json_option(parser)


def _run(given: argparse.Namespace) -> int:
    from ._board import this_board

    board = this_board()
    if given.json:
        resources, labels = (board.resources, board.labels) if board is not None else ({}, {})
        say_json("ray-resources", {"npu": board is not None, "resources": dict(resources), "labels": dict(labels)})
    elif board is not None:
        print(board.start_arguments())
    if board is None:
        print("ort-rknn: no NPU is usable here; `ort-rknn devices` says why", file=sys.stderr)
        return 1
    return 0


@hookimpl
def ort_rknn_commands() -> Iterable[Command]:
    return [
        Command(
            name="ray-resources",
            summary="print this board's resources as arguments for `ray start`",
            description="Prints --resources and --labels for `ray start`: one rknpu per board, its cores, the SoC. "
            "Exit code 1 if no NPU is usable.",
            add_arguments=_add_arguments,
            run=_run,
            json_output=_OUTPUT,
        )
    ]
