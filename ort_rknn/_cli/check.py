"""``ort-rknn check``: compares the ONNX on the CPU with the compiled model."""

from __future__ import annotations

import argparse
import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._errors import FallbackWarning, OptionError
from ..adapter.command import Command
from . import schemas
from .arguments import add_device_options, device_options
from .output import (
    FAILED,
    FINE,
    USAGE,
    Mistake,
    about_model,
    add_json_option,
    check_file,
    check_writable,
    os_error_text,
    say,
    say_json,
    say_step,
    session_errors,
)

if TYPE_CHECKING:
    from .._checking.check import Checked, Feeds

_NUMBERS = {
    "npu": "the NPU's",
    "simulator": "the vendor's simulator's",
    "virtual": "the virtual NPU's, which are the ONNX's: plumbing only",
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an .onnx file that was converted")
    parser.add_argument("--data", metavar="DATA", help="samples, as for convert --int8 (default: random)")
    parser.add_argument(
        "--fit", choices=("stretch", "letterbox"), help="how images are resized (default: as in the conversion)"
    )
    parser.add_argument(
        "--mean",
        metavar="M[,M,M]",
        action="append",
        default=[],
        help="subtracted from the ONNX's pixels (default: as in the conversion)",
    )
    parser.add_argument(
        "--std",
        metavar="S[,S,S]",
        action="append",
        default=[],
        help="the ONNX's pixels are divided by it (default: as in the conversion)",
    )
    parser.add_argument("--shape", metavar="NAME=N,N,...", action="append", default=[], help="an input's shape")
    parser.add_argument(
        "--accuracy", metavar="A", type=float, default=0.99, help="the required accuracy (default: 0.99)"
    )
    parser.add_argument("--simulator", metavar="SOC", help="run the model compiled for SOC on the vendor's simulator")
    parser.add_argument(
        "--layers", action="store_true", help="with --simulator: compare every layer, and name the first bad one"
    )
    parser.add_argument("--toolkit", metavar="PYTHON", help="a Python interpreter that has rknn-toolkit2")
    parser.add_argument("--save", metavar="RUN.npz", help="save the feeds and the ONNX's outputs without comparing")
    parser.add_argument(
        "--against", metavar="RUN.npz", help="compare with a file written by --save instead of running the ONNX"
    )
    add_device_options(parser)
    add_json_option(parser)


def run(given: argparse.Namespace) -> int:
    """Compare, print a line per output and the verdict. 0: within the bound; 1: not, or nothing was compared."""
    from .._checking.check import NothingCompared, in_session, save, simulated
    from .._checking.saved import SavedRunError
    from .._compile.calibration import DataError
    from .._compile.converter import ConversionError
    from .._compile.prepare import PrepareError
    from .._compile.record import RecordError
    from .._compile.shapes import ShapeError
    from .._compile.toolkit import ToolkitError
    from ..files import OnnxFileError, read_onnx

    check_file(given.model)
    if not 0 < given.accuracy < 1:
        raise Mistake(f"--accuracy {given.accuracy:g}: expected a number between 0 and 1", USAGE)
    if given.simulator and (given.save or given.against):
        raise Mistake("--simulator runs the ONNX itself: it goes with neither --save nor --against", USAGE)
    if given.simulator and (given.shape or given.mean or given.std or given.fit):
        raise Mistake("--shape, --mean, --std and --fit are as they were in the conversion", USAGE)
    if given.layers and not given.simulator:
        raise Mistake("--layers goes with --simulator: only the vendor's simulator gives layers", USAGE)
    if given.save:
        check_writable(given.save)
    try:
        read_onnx(given.model)  # onnxruntime is less clear about a damaged file
        path, feeds = os.path.abspath(given.model), _feeds(given)
        if given.save:
            return _save(given, save(path, feeds, Path(given.save)))
        if given.simulator:
            found = simulated(
                path, feeds, given.accuracy, given.simulator, given.toolkit, say_step, layers=given.layers
            )
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FallbackWarning)  # NothingCompared reports it
                found = in_session(path, feeds, given.accuracy, device_options(given), given.against)
    except (DataError, SavedRunError, ShapeError, ToolkitError) as error:
        raise Mistake(str(error), USAGE) from None
    except OSError as error:
        raise Mistake(os_error_text(error), FAILED) from None
    except (ConversionError, NothingCompared, PrepareError, RecordError, OnnxFileError) as error:
        raise Mistake(str(error), FAILED) from None
    except OptionError:
        raise
    except session_errors() as error:
        raise Mistake(about_model(given.model, error), FAILED) from None
    return _print_report(given, found)


def _feeds(given: argparse.Namespace) -> Feeds:
    from .._checking.check import Feeds
    from .._compile.shapes import group_shapes, parse_shape
    from .convert import numbers

    groups = group_shapes([parse_shape(text) for text in given.shape])
    mean, std = (tuple(numbers(f"--{side}", text) for text in getattr(given, side)) for side in ("mean", "std"))
    return Feeds(given.data, groups, mean, std, given.fit)


def _print_report(given: argparse.Namespace, found: Checked) -> int:
    from .._compile.accuracy import lines_of

    if given.json:
        listed = [{**one.as_json(), "problem": one.problem(given.accuracy)} for one in found.outputs]
        say_json(
            "check",
            {
                "model": given.model,
                "numbers": found.numbers,
                "within": found.within,
                "verdict": found.verdict,
                "note": found.note,
                "saved": None,
                "outputs": listed,
                "layers": [asdict(layer) for layer in found.layers],
            },
        )
    else:
        _print_layers(found)
        for line in lines_of(found.outputs, given.accuracy):
            say(line)
        where = f" ({found.note})" if found.note else ""
        samples = f"{found.outputs[0].samples} {'random ' if found.random else ''}samples"
        say(f"compared the ONNX's numbers with {_NUMBERS[found.numbers]}{where}, {samples}")
        if found.random and not found.within:
            say("random values may lie far from real ones: give samples with --data")
        if found.unused_record:
            say(f"mean, std and fit of the conversion were not used: {found.unused_record}", "warn")
        say(f"verdict: {found.verdict} (bound {given.accuracy:g})", "good" if found.within else "bad")
    return FINE if found.within else FAILED


def _print_layers(found: Checked) -> None:
    if not found.layers:
        return
    say("layer: cosine with all before it as compiled, and by itself")
    for layer in found.layers:
        say(f"  {layer.op_type} {layer.name}: {layer.entire:.5f}, {layer.single:.5f}")
    bad = found.first_bad_layer
    say(f"first bad layer: {bad.op_type} {bad.name}" if bad else f"no layer is below {found.accuracy:g}")


def _save(given: argparse.Namespace, count: int) -> int:
    place = Path(given.save)
    if given.json:
        nothing: dict[str, Any] = {
            "numbers": None,
            "within": None,
            "verdict": "saved",
            "note": f"{count} samples",
            "outputs": [],
            "layers": [],
        }
        say_json("check", {"model": given.model, "saved": os.fspath(place), **nothing})
        return FINE
    say(f"{place}: {count} samples with the ONNX's outputs. On the board: ort-rknn check MODEL --against {place.name}")
    return FINE


COMMAND = Command(
    name="check",
    summary="compare the compiled model's outputs with the ONNX's",
    description="Feeds the same samples to MODEL on the CPU and to the model compiled from it. Reports how far the "
    "outputs differ and what computed them: the NPU, the vendor's simulator, or the virtual NPU.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.CHECK,
    epilog="Exit codes: 0 within the bound, 1 out of bound or nothing compared, 2 usage error.",
)
