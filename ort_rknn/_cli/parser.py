"""The parser of the whole command line, built from the commands' parsers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..adapter.command import Command

#: Metavars of arguments that are files or folders, for shell completion.
_FILES = frozenset(("MODEL", "ONNX", "RKNN", "PATH", "FILE", "DIR", "DATA", "PYTHON", "RUN.npz", "APP.py", "APP"))


def make_parser(known: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of ``ort-rknn``, with a sub-parser for each command."""
    parser = argparse.ArgumentParser(
        prog="ort-rknn",
        description="ONNX Runtime on Rockchip NPUs, from the command line.",
        epilog="Exit codes: 0 success, 1 failure, 2 usage error.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions and exit")
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=("bash", "zsh", "tcsh", "fish"),
        metavar="SHELL",
        help="print a completion script for bash, zsh, tcsh or fish, and exit",
    )
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


class _Completion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, *__: Any) -> None:
        try:
            import shtab
        except ImportError:
            parser.exit(1, "ort-rknn: shtab is not installed: pip install 'ort-rknn[cli]'\n")
        if shell not in shtab.SUPPORTED_SHELLS:
            parser.exit(1, f"ort-rknn: this version of shtab has no {shell}: pip install --upgrade shtab\n")
        _name_files(parser)
        print(shtab.complete(parser, shell))
        parser.exit()


def _name_files(parser: argparse.ArgumentParser) -> None:
    """Mark file arguments for shtab."""
    from shtab import FILE

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                _name_files(one)
        elif action.metavar in _FILES:
            action.complete = FILE  # type: ignore[attr-defined]
