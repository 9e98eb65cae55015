"""The command line: ``ort-rknn`` or ``python -m ort_rknn``.

A command is a file beside this one, or comes from another package (see :mod:`ort_rknn.adapter.hookspecs`). Exit codes:
0 fine, 1 failed, 2 used wrongly (an unknown command, a bad option). A user's mistake is told in one line on stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._errors import OptionError, bare_message
from ..adapter.command import Command
from .output import FAILED, USAGE, Mistake, printable
from .registry import commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; ``argv`` without the program's name, ``sys.argv``'s where None. Returns the exit code.

    Never raises for what a user can get wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        known = commands()
    except OptionError as error:  # a variable of the environment
        print(f"ort-rknn: {printable(bare_message(error), sys.stderr)}", file=sys.stderr)
        return USAGE
    chosen = known.get(argv[0]) if argv else None
    if chosen is not None and chosen.takes_over is not None:
        return chosen.takes_over(argv[1:])
    try:
        given = _parser(known).parse_args(argv)
        run: Callable[[argparse.Namespace], int] = given.run_command
        code = run(given)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse's: it has said what is wrong
        return stop.code if isinstance(stop.code, int) else USAGE
    except OptionError as error:
        print(f"ort-rknn: {printable(bare_message(error), sys.stderr)}", file=sys.stderr)
        return USAGE
    except Mistake as mistake:
        print(f"ort-rknn: {printable(str(mistake), sys.stderr)}", file=sys.stderr)
        return mistake.code
    except BrokenPipeError:  # "ort-rknn info model.rknn | head -1"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return 130
    return code


def _parser(known: Mapping[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ort-rknn",
        description="onnxruntime with Rockchip's NPUs, from the command line.",
        epilog="Exit codes: 0 fine, 1 failed, 2 used wrongly.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions that matter, and stop")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in known.values():
        one = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=command.epilog,
            usage=command.usage,
        )
        command.add_arguments(one)
        one.set_defaults(run_command=command.run)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import platform

        import onnxruntime

        from .. import package_version

        print(
            f"ort-rknn {package_version} (onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}, "
            f"{platform.machine()})"
        )
        parser.exit()
