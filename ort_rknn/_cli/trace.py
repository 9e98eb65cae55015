"""``ort-rknn trace``: where the time goes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._errors import OptionError
from ..adapter.command import Command
from ..adapter.plugins import COMMANDS, provided
from . import schemas
from .arguments import add_device, add_key_values, device_options, key_values
from .output import (
    FINE,
    Cell,
    Column,
    Mistake,
    TextTable,
    about_model,
    add_json_option,
    check_file,
    one_line,
    say,
    say_json,
    show,
)

if TYPE_CHECKING:
    from .._bench.layers import LayerTime

#: The number of layers printed.
_SLOWEST = 20


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_options(parser)
    parser.add_argument("what", metavar="MODEL|APP.py", help="an .onnx or .rknn file, or a Python program")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="an argument of the program")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="trace.pftrace", help="the trace file (default: trace.pftrace)"
    )
    add_device(parser)
    parser.add_argument("--runs", type=int, default=50, help="runs of a MODEL by each caller (default: 50)")
    parser.add_argument("--callers", type=int, default=1, help="threads that call a MODEL (default: 1)")
    parser.add_argument("--layers", action="store_true", help="also measure each layer of a MODEL")
    add_key_values(parser, "--option", "a provider option, such as schedule=0,1,2")
    add_json_option(parser)


def run(given: argparse.Namespace) -> int:
    """Trace a model or a program."""
    program = _is_program(given.what)
    if not program:  # arguments after a program's name are the program's own
        after = argparse.ArgumentParser(prog="ort-rknn trace", add_help=False, allow_abbrev=False)
        _add_options(after)
        after.parse_args(given.arguments, given)
    check_file(given.what, or_export=True)
    options = {**device_options(given), **key_values("--option", given.option)}
    if program:
        if given.json:
            raise OptionError("--json is for a MODEL: what a program prints is its own")
        return _program(given, options)
    return _model(given, options)


def _is_program(path: str) -> bool:
    return path.lower().endswith((".py", ".pyc", ".pyz", ".zip"))


def _model(given: argparse.Namespace, options: dict[str, object]) -> int:
    import warnings

    from .._bench.tracing import trace_model
    from .._errors import FallbackWarning
    from ..files import OnnxFileError, read_onnx

    try:
        if given.what.lower().endswith(".onnx"):
            read_onnx(given.what)  # onnxruntime says less, and logs that it has no profile
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FallbackWarning)  # said below
            traced = trace_model(
                given.what, given.output, runs=given.runs, callers=given.callers, options=options, layers=given.layers
            )
    except OptionError:
        raise
    except OnnxFileError as error:
        raise Mistake(one_line(str(error))) from None
    except OSError as error:
        raise Mistake(f"{error.filename or given.output}: {error.strerror or error}") from None
    except Exception as error:  # onnxruntime has a class for each code, and no common one
        raise Mistake(about_model(given.what, error)) from None
    if given.json:
        say_json("trace", traced.as_json())
        return FINE
    summary = traced.summary
    rows = [
        (name, f"{1000 * seconds:,.1f}", f"{1000 * seconds / max(summary.runs, 1):.3f}")
        for name, seconds in summary.part_seconds.items()
    ]
    show(TextTable((Column("part"), Column("ms", right=True), Column("ms per run on the NPU", right=True)), rows))
    for core, seconds in summary.core_seconds.items():
        say(f"{core} worked for {seconds / max(summary.seconds, 1e-9):.0%} of the {summary.seconds:.2f} s")
    if summary.failed:
        say(f"{summary.failed} of {summary.runs} runs failed", "warn")
    if traced.layers:
        _show_layers(traced.layers)
    if not summary.runs:
        say("nothing ran on an NPU; `ort-rknn doctor MODEL` says why", "warn")
    say(f"written: {os.path.abspath(summary.path)}; open it with https://ui.perfetto.dev")
    return FINE


def _show_layers(layers: Sequence[LayerTime]) -> None:
    """Print the slowest ones, marking those on the CPU, and the sums."""
    whole = sum(layer.us for layer in layers) or 1.0
    on_cpu = sum(layer.us for layer in layers if layer.target != "NPU")
    columns = (Column("layer"), Column("on"), Column("us", right=True), Column("share", right=True), Column("name"))
    rows = [
        (
            f"{layer.number} {layer.operator}",
            Cell(layer.target, "" if layer.target == "NPU" else "warn"),
            f"{layer.us:,.0f}",
            f"{layer.us / whole:.0%}",
            layer.name,
        )
        for layer in layers[:_SLOWEST]
    ]
    say()
    show(TextTable(columns, rows))
    more = f"; {len(layers) - _SLOWEST} quicker ones are left out" if len(layers) > _SLOWEST else ""
    say(f"{on_cpu / whole:.0%} of the layers' time is not on the NPU{more}")


def _program(given: argparse.Namespace, options: dict[str, object]) -> int:
    """Trace a program, with the command that runs programs under the import swap."""
    runner = next(
        (command for _, _, command in provided(COMMANDS, "ort_rknn_commands", _complain) if command.name == "run"), None
    )
    if runner is None or runner.takes_over is None:
        raise Mistake("the command `run`, which runs programs, is not installed")
    words = ["--trace", given.output]
    for key, value in options.items():
        words += ["--options", f"{key}={value}"]
    code: int = runner.takes_over([*words, given.what, *given.arguments])
    return code


def _complain(plugin: str, error: Exception) -> None:
    print(f"ort-rknn: plugin {plugin} does not load: {error}", file=sys.stderr)


COMMAND = Command(
    name="trace",
    summary="where the time goes: a file for ui.perfetto.dev",
    description="Runs a model, or a Python program with ort_rknn in place of onnxruntime, and writes a timeline of "
    "every run on the NPU: a track per core, context and calling thread, with waiting, setting inputs, the run and "
    "getting outputs, and the nodes that onnxruntime runs on the CPU.",
    add_arguments=_add_arguments,
    run=run,
    usage="ort-rknn trace [options] (MODEL | APP.py [ARGUMENT ...])",
    json_output=schemas.TRACE,
)
