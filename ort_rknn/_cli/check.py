"""``ort-rknn check``: the ONNX on the CPU against what was compiled."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapter.command import Command
from . import schemas
from .devices import add_device_options, device_options
from .output import FAILED, FINE, USAGE, Mistake, add_json_option, check_file, say, say_json

if TYPE_CHECKING:
    from .._compile.accuracy import OutputAccuracy

_NUMBERS = {
    "npu": "the NPU's",
    "simulator": "the vendor's simulator's",
    "virtual": "the virtual NPU's, which are the ONNX's: plumbing only",
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an .onnx file, converted before")
    parser.add_argument("--data", metavar="DATA", help="samples, as for convert --int8 (default: random ones)")
    parser.add_argument(
        "--fit", choices=("stretch", "letterbox"), default="stretch", help="how pictures get their size"
    )
    parser.add_argument("--mean", metavar="M[,M,M]", action="append", default=[], help="for the ONNX's pixels")
    parser.add_argument("--std", metavar="S[,S,S]", action="append", default=[], help="for the ONNX's pixels")
    parser.add_argument("--shape", metavar="NAME=N,N,...", action="append", default=[], help="an input's shape")
    parser.add_argument("--accuracy", metavar="A", type=float, default=0.99, help="the bound (default 0.99)")
    parser.add_argument("--simulator", metavar="SOC", help="compare on the vendor's simulator what was made for SOC")
    parser.add_argument("--toolkit", metavar="PYTHON", help="an interpreter that has rknn-toolkit2")
    parser.add_argument("--save", metavar="RUN.npz", help="keep the feeds and the ONNX's outputs, and compare nothing")
    parser.add_argument("--against", metavar="RUN.npz", help="compare with such a file instead of running the ONNX")
    add_device_options(parser)
    add_json_option(parser)


def run(given: argparse.Namespace) -> int:
    """Compare, print a line per output and the verdict. 0: within the bound; 1: not, or nothing was compared."""
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
    try:
        read_onnx(given.model)  # onnxruntime says less about a damaged file
        if given.save:
            return _save(given)
        whose, outputs, note = _simulated(given) if given.simulator else _in_session(given)
    except (DataError, ShapeError, ToolkitError) as error:
        raise Mistake(str(error), USAGE) from None
    except (ConversionError, PrepareError, RecordError, OnnxFileError, OSError) as error:
        raise Mistake(str(error), FAILED) from None
    return _tell(given, whose, outputs, note)


def _tell(given: argparse.Namespace, whose: str, outputs: list[OutputAccuracy], note: str) -> int:
    from .._compile.accuracy import lines_of

    within = all(one.problem(given.accuracy) is None for one in outputs)
    if whose == "virtual":
        verdict = "plumbing only: names, shapes and dtypes fit" if within else "the plumbing is at fault"
    else:
        verdict = "accurate" if within else "NOT accurate"
    if given.json:
        listed = [{**one.as_json(), "problem": one.problem(given.accuracy)} for one in outputs]
        say_json(
            "check",
            {
                "model": given.model,
                "numbers": whose,
                "within": within,
                "verdict": verdict,
                "note": note,
                "saved": None,
                "outputs": listed,
            },
        )
    else:
        for line in lines_of(outputs, given.accuracy):
            say(line)
        where = f" ({note})" if note else ""
        say(f"compared the ONNX's numbers with {_NUMBERS[whose]}{where}, {outputs[0].samples} samples")
        say(f"verdict: {verdict} (bound {given.accuracy:g})", "good" if within else "bad")
    return FINE if within else FAILED


def _simulated(given: argparse.Namespace) -> tuple[str, list[OutputAccuracy], str]:
    from .._compile.check import on_simulator
    from .._compile.record import read_record, record_path
    from .._compile.toolkit import find_toolkit
    from .._rknpu import soc_family

    path = os.path.abspath(given.model)
    target = soc_family(given.simulator)
    record = read_record(record_path(os.path.dirname(path), Path(path).stem, target), path)
    if given.shape or given.mean or given.std:
        raise Mistake("--shape, --mean and --std are as they were in the conversion", USAGE)
    log = os.path.join(os.path.dirname(path), f"{Path(path).stem}.check.log")
    outputs = on_simulator(path, record, given.data, find_toolkit(given.toolkit), log, progress=_progress)
    return "simulator", outputs, f"built again for {target}"


def _in_session(given: argparse.Namespace) -> tuple[str, list[OutputAccuracy], str]:
    from .. import InferenceSession
    from .._compile.accuracy import OutputAccuracy
    from .._options import PROVIDER

    session = InferenceSession(given.model, providers=[(PROVIDER, device_options(given)), "CPUExecutionProvider"])
    state = session._npu
    plan = state.plan if state is not None else None
    if plan is None or plan.found is None or plan.where == "cpu" or state is None or not state.executors:
        why = plan.fallback if plan is not None else "ORT_RKNN_DISABLE=1"
        why = str(why).rstrip(".")
        raise Mistake(f"nothing that was compiled ran, so nothing was compared: {why}. --simulator SOC needs no NPU")
    device = plan.found.device
    _as_recorded(given, device.soc)
    found = [OutputAccuracy(output.name) for output in session.get_outputs()]
    runs = _saved(given.against, found) if given.against else _fresh(given)
    for feed, want in runs:
        for one, expected, got in zip(found, want, session.run(None, feed)):
            one.add(expected, got)
    return ("virtual" if device.virtual else "npu"), found, device.name


def _as_recorded(given: argparse.Namespace, soc: str) -> None:
    """Without ``--data``, an int8 model is fed what it was made with: random values lie outside of its scales."""
    from .._compile.record import RecordError, read_record, record_path

    if given.data is not None or given.against is not None:
        return
    path = os.path.abspath(given.model)
    try:
        record = read_record(record_path(os.path.dirname(path), Path(path).stem, soc), path)
    except RecordError:
        return
    if not record.samples:
        return
    if record.data is None or not os.path.exists(record.data):
        raise Mistake("it is int8, and what it was made with is not here: give samples with --data", USAGE)
    given.data, given.fit = record.data, record.fit
    for side in ("mean", "std"):
        if not getattr(given, side):
            setattr(given, side, [",".join(map(str, row)) for row in getattr(record, side)])


def _fresh(given: argparse.Namespace) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Feeds and the ONNX's outputs, a sample at a time."""
    from .._compile.check import MOST, on_cpu
    from .._compile.measure import spread
    from .._compile.shapes import compiled_shapes, group_shapes, parse_shape
    from ..files import read_onnx
    from .convert import numbers

    path = os.path.abspath(given.model)
    groups = group_shapes([parse_shape(text) for text in given.shape])
    shapes = compiled_shapes(read_onnx(path), groups).sets[0]
    sides = {side: tuple(numbers(f"--{side}", text) for text in getattr(given, side)) for side in ("mean", "std")}
    with tempfile.TemporaryDirectory(prefix="ort_rknn-check-") as scratch:
        samples, reference = on_cpu(path, shapes, given.data, scratch, {**sides, "fit": given.fit})
        for index in spread(samples.count, MOST):
            feed = samples.feed(index)
            yield feed, reference.run(feed)


def _save(given: argparse.Namespace) -> int:
    """Feeds and outputs, one array in memory at a time: "INDEX/in/NAME" and "INDEX/out/NAME"."""
    import numpy as np

    from ..files import read_onnx

    names = [value.name for value in read_onnx(given.model).outputs]
    place = Path(given.save)
    fresh = place.with_name(f".{place.name}.new")
    count = 0
    try:
        with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
            for feed, outputs in _fresh(given):
                sides = [("in", feed.items()), ("out", zip(names, outputs))]
                for side, values in sides:
                    for name, value in values:
                        with archive.open(f"{count}/{side}/{name}.npy", "w", force_zip64=True) as file:
                            np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
                count += 1
        os.replace(fresh, place)
    finally:
        fresh.unlink(missing_ok=True)
    if given.json:
        nothing: dict[str, Any] = {
            "numbers": None,
            "within": None,
            "verdict": "saved",
            "note": f"{count} samples",
            "outputs": [],
        }
        say_json("check", {"model": given.model, "saved": os.fspath(place), **nothing})
        return FINE
    say(f"{place}: {count} samples with the ONNX's outputs. On the board: ort-rknn check MODEL --against {place.name}")
    return FINE


def _saved(path: str, found: list[OutputAccuracy]) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            keys = [key.split("/", 2) for key in file.files]
            indices = sorted({int(key[0]) for key in keys if len(key) == 3})
            if not indices:
                raise Mistake(f"{path}: it was not made by `ort-rknn check --save`", USAGE)
            for index in indices:
                inputs = [key[2] for key in keys if key[:2] == [str(index), "in"]]
                yield (
                    {name: file[f"{index}/in/{name}"] for name in inputs},
                    [file[f"{index}/out/{one.name}"] for one in found],
                )
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Mistake(f"{path}: it is no run of this model: {error}", USAGE) from None


def _progress(text: str) -> None:
    print(text, file=sys.stderr)


COMMAND = Command(
    name="check",
    summary="compare what was compiled with the ONNX",
    description="Feeds the same samples to MODEL on the CPU and to what was compiled from it, and says how far the "
    "outputs are apart and whose numbers they are: the NPU's, the vendor's simulator's, or the virtual NPU's.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.CHECK,
    epilog="Exit codes: 0 within the bound, 1 not, or nothing could be compared, 2 used wrongly.",
)
