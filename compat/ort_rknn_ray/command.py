"""``ort-rknn ray-resources``: what this board offers, ready for ``ray start``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable

from ort_rknn.adapter import Command, hookimpl


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of arguments for `ray start`")


def _run(given: argparse.Namespace) -> int:
    from ._board import this_board

    board = this_board()
    if given.json:
        found = {"resources": dict(board.resources), "labels": dict(board.labels)} if board is not None else {}
        print(json.dumps({"npu": board is not None, **found}))
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
            summary="what this board offers to Ray, as arguments for `ray start`",
            description="Prints --resources and --labels for `ray start`: one rknpu per board, its cores, the SoC. "
            "Exit code 1 where no NPU is usable.",
            add_arguments=_add_arguments,
            run=_run,
        )
    ]
