"""``ort-rknn convert``: compiles an ONNX."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from ..adapter.command import Command
from . import schemas
from .output import FAILED, FINE, USAGE, Mistake, add_json_option, check_file, os_error_text, say, say_json, say_step


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an .onnx file")
    parser.add_argument("--target", metavar="SOC,...", help="rk3588, rk3576 ... (default: this board's own)")
    parser.add_argument(
        "--shape",
        metavar="NAME=N,N,...",
        action="append",
        default=[],
        help="an input's shape; repeat for several shape sets",
    )
    parser.add_argument("--batch", metavar="N", type=int, help="samples per run")
    parser.add_argument("--freeze", metavar="NAME=VALUE", action="append", default=[], help="make an input a constant")
    parser.add_argument("--mean", metavar="M[,M,M]", action="append", default=[], help="subtracted from every pixel")
    parser.add_argument("--std", metavar="S[,S,S]", action="append", default=[], help="every pixel is divided by it")
    parser.add_argument(
        "--int8", metavar="DATA", help="quantize with samples: a folder of images or .npy files, or an .npz"
    )
    parser.add_argument("--fit", choices=("stretch", "letterbox"), default="stretch", help="how images are resized")
    parser.add_argument(
        "--accuracy", metavar="A", type=float, default=0.99, help="the accuracy required of int8 (default: 0.99)"
    )
    parser.add_argument(
        "--budget", metavar="MINUTES", type=float, default=10.0, help="time limit for the int8 search (default: 10)"
    )
    parser.add_argument("-o", "--out", metavar="DIR", help="write the models and a copy of the ONNX to this folder")
    parser.add_argument("--toolkit", metavar="PYTHON", help="a Python interpreter that has rknn-toolkit2")
    add_json_option(parser)


def run(given: argparse.Namespace) -> int:
    """Convert and print the report."""
    from .._compile.calibration import DataError
    from .._compile.convert import ConvertOptions, convert
    from .._compile.converter import ConversionError
    from .._compile.prepare import PrepareError
    from .._compile.shapes import ShapeError, group_shapes, parse_shape
    from .._compile.toolkit import ToolkitError, find_toolkit
    from ..files import OnnxFileError

    check_file(given.model)
    try:
        options = ConvertOptions(
            targets=_targets(given.target),
            shapes=tuple(group_shapes([parse_shape(text) for text in given.shape])),
            batch=given.batch,
            freeze=dict(_frozen(text) for text in given.freeze),
            mean=tuple(numbers("--mean", text) for text in given.mean),
            std=tuple(numbers("--std", text) for text in given.std),
            int8=given.int8,
            fit=given.fit,
            accuracy=_accuracy(given.accuracy),
            budget=given.budget,
            out=given.out,
        )
        toolkit = find_toolkit(given.toolkit)
        report = convert(given.model, options, toolkit=toolkit, progress=say_step)
    except (DataError, ShapeError, ToolkitError) as error:
        raise Mistake(str(error), USAGE) from None
    except OSError as error:
        raise Mistake(os_error_text(error), FAILED) from None
    except (ConversionError, PrepareError, OnnxFileError) as error:
        raise Mistake(str(error), FAILED) from None
    if given.json:
        say_json("convert", report.as_json())
        return FINE
    for line in report.lines():
        say(line)
    name = os.path.join(given.out or os.path.dirname(given.model), os.path.basename(report.model))
    say(f'run it: ort_rknn.InferenceSession("{name}")')
    return FINE


def _targets(text: str | None) -> tuple[str, ...]:
    from .._rknpu import SOC_CORES, soc_family

    if text is None:
        from .._planning.discovery import devices

        socs = tuple(dict.fromkeys(device.soc for device in devices()))
        if not socs:
            raise Mistake("no NPU here to compile for: say which with --target, for example --target rk3588", USAGE)
        return socs[:1]
    targets = tuple(dict.fromkeys(soc_family(word) for word in text.split(",") if word.strip()))
    unknown = [soc for soc in targets if soc not in SOC_CORES]
    if unknown or not targets:
        raise Mistake(f"--target {text}: expected one or more of {', '.join(SOC_CORES)}", USAGE)
    return targets


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Comma-separated numbers."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise Mistake(f"{option} {text}: expected numbers separated by commas", USAGE) from None


def _accuracy(value: float) -> float:
    if not 0 < value < 1:
        raise Mistake(f"--accuracy {value:g}: expected a number between 0 and 1", USAGE)
    return value


def _frozen(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise Mistake(f"--freeze {text}: expected NAME=VALUE", USAGE)
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        raise Mistake(f"--freeze {text}: expected a number, true, false, or a JSON list of them", USAGE) from None


COMMAND = Command(
    name="convert",
    summary="compile an ONNX for the NPU",
    description="Compiles MODEL with the vendor's toolkit, in a separate environment (see `ort-rknn toolkit`), and "
    "writes the compiled models beside it, where a session finds them.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.CONVERT,
)
