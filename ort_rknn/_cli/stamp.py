"""``ort-rknn stamp``: records in compiled models which ONNX they were made from."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..adapter.command import Command
from . import schemas
from .output import FAILED, FINE, Mistake, add_json_option, check_file, os_error_text, say, say_json


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("onnx", metavar="ONNX", help="an .onnx file")
    parser.add_argument("compiled", metavar="RKNN", nargs="+", help="the .rknn files that were compiled from it")
    parser.add_argument(
        "--independent",
        action="store_true",
        help="also record that the samples along the first axis are independent, so that a batch may be split",
    )
    add_json_option(parser)


def run(given: argparse.Namespace) -> int:
    """Stamp the files one after the other."""
    from .._compile.record import follow
    from ..files import OnnxFileError, RknnFileError, StampError, stamp
    from ..files.hashes import sha256_of

    check_file(given.onnx)
    for path in given.compiled:
        check_file(path)
    stamped = []
    for path in given.compiled:
        try:
            before = sha256_of(path)
            record = stamp(given.onnx, path, independent=True if given.independent else None)
            follow(Path(path), before)
        except OSError as error:
            raise Mistake(os_error_text(error), FAILED) from None
        except (StampError, RknnFileError, OnnxFileError) as error:
            raise Mistake(str(error), FAILED) from None
        stamped.append(
            {
                "path": path,
                "onnx": record.onnx_name,
                "size": record.size,
                "sha256": record.sha256,
                "independent": record.independent,
            }
        )
        if given.json:
            continue
        samples = "; its samples are independent" if record.independent else ""
        say(f"{path}: made from {record.onnx_name} ({record.size} bytes, sha256 {record.sha256[:12]}...){samples}")
    if given.json:
        say_json("stamp", {"stamped": stamped})
    return FINE


COMMAND = Command(
    name="stamp",
    summary="record in compiled models which ONNX they were compiled from",
    description="Records in each RKNN file that it was compiled from the current ONNX file, so that a session notices "
    "if the ONNX changes later. Each file is replaced atomically. `ort-rknn convert` does this automatically.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.STAMP,
)
