"""``ort-rknn run``: runs a whole program under the swap."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ort_rknn._cli.arguments import add_key_values, key_values
from ort_rknn.adapter import Command, hookimpl

_EPILOG = (
    "All arguments after the script's or module's name are passed to the program. Its exit code and traceback are "
    "its own. The default of --policy is ORT_RKNN_POLICY, else 'respect'. Exit code 2: usage error."
)
_TAKES_VALUE = ("--policy", "--device", "--options", "--trace")


_USAGE = "ort-rknn run [options] (APP.py | -m MODULE) [ARGUMENT ...]"
_DESCRIPTION = (
    "Runs an unmodified program, like 'python APP.py ...' or 'python -m MODULE ...', with ort_rknn in place of "
    "onnxruntime and of the vendor's rknnlite."
)


def _fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        choices=("prefer", "respect", "only"),
        help="prefer: the NPU before the providers that the program names; respect: exactly the program's providers; "
        "only: the NPU or an error",
    )
    parser.add_argument("--device", metavar="NAME", help="the NPU for every session: rk3588, virtual:rk3588 ...")
    add_key_values(parser, "--options", "a provider option for every session")
    parser.add_argument("--report", action="store_true", help="at the end, print to stderr what each session ran on")
    parser.add_argument("--json", action="store_true", help="the same as a JSON object, in the last line of stderr")
    parser.add_argument("--trace", metavar="FILE", help="write a timeline of every run, for ui.perfetto.dev")
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module, as python -m does")
    parser.add_argument(
        "program", nargs="?", metavar="APP.py", help="a script, a folder or zip with __main__.py, or - for stdin"
    )


def run(argv: Sequence[str]) -> int:
    """The command with its arguments (without ``run``). Returns 0, or 2 for a usage error; otherwise raises whatever
    ends the program, for the interpreter to handle."""
    ours, program, module, args = _split(argv)
    parser = argparse.ArgumentParser(prog="ort-rknn run", description=_DESCRIPTION, epilog=_EPILOG, usage=_USAGE)
    _fill(parser)
    given = parser.parse_args(ours)
    if module is None and program is None:
        parser.error("expected a program: APP.py or -m MODULE")
    from ort_rknn import devices
    from ort_rknn._cli.program import NoProgram, run_module, run_script
    from ort_rknn._errors import OptionError, bare_message
    from ort_rknn_rknnlite import offer

    from . import _report, install

    try:
        options = key_values("--options", given.options)
        install(given.policy, device=given.device, options=options, report=given.report)
        if given.device is not None:
            devices()  # a name that cannot exist would be an error of the program's first session
    except OptionError as error:
        parser.error(bare_message(error))
    if given.json:
        _report.start(as_json=True)
    if given.trace:
        from . import _trace

        try:
            _trace.start(given.trace)
        except OSError as error:
            parser.error(f"--trace {given.trace}: {error.strerror or error}")
    offer()
    if module is not None:
        run_module(module, args)
        return 0
    assert program is not None
    try:
        run_script(program, args)
    except NoProgram as error:
        print(f"{sys.executable}: {error}", file=sys.stderr)
        return 2
    return 0


def _split(argv: Sequence[str]) -> tuple[list[str], str | None, str | None, list[str]]:
    """(our options, script, module, the program's arguments): ours end at the program's name."""
    place = 0
    while place < len(argv):
        word = argv[place]
        if word == "-m":
            if place + 1 == len(argv):
                break
            return list(argv[:place]), None, argv[place + 1], list(argv[place + 2 :])
        if word.startswith("-m") and not word.startswith("--"):
            return list(argv[:place]), None, word[2:], list(argv[place + 1 :])
        if word == "--":
            rest = list(argv[place + 1 :])
            return list(argv[:place]), rest[0] if rest else None, None, rest[1:]
        if not word.startswith("-") or word == "-":
            return list(argv[:place]), word, None, list(argv[place + 1 :])
        place += 2 if word in _TAKES_VALUE else 1
    return list(argv), None, None, []


def _never(given: argparse.Namespace) -> int:
    raise AssertionError("the command reads its arguments itself")


@hookimpl
def ort_rknn_commands() -> Iterable[Command]:
    from ._report import JSON_OUTPUT

    return [
        Command(
            name="run",
            summary="run a Python program with ort_rknn in place of onnxruntime",
            description=_DESCRIPTION,
            add_arguments=_fill,
            run=_never,
            json_output=JSON_OUTPUT,
            takes_over=run,
            epilog=_EPILOG,
            usage=_USAGE,
        )
    ]


@hookimpl
def ort_rknn_names() -> Iterable[tuple[str, Any]]:
    from . import install, swapped, uninstall

    return [("install", install), ("swapped", swapped), ("uninstall", uninstall)]
