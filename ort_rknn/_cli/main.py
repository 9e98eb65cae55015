"""The command line: ``ort-rknn`` or ``python -m ort_rknn``.

A command is a module of this package, or comes from another package (see :mod:`ort_rknn.adapter.hookspecs`). Exit
codes: 0 success, 1 failure, 2 usage error (an unknown command, a bad option). A user's mistake is reported in one line
on stderr.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence

from .._errors import OptionError, bare_message
from .output import FAILED, USAGE, Mistake, printable
from .parser import make_parser
from .registry import commands

#: What writing to a full disk or a broken one raises.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _plug_streams() -> None:
    """Give streams that were closed (``ort-rknn doctor >&-``) somewhere to write: Python sets them to None."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _discard_output() -> None:
    """Discard what is left in stdout's buffer: the interpreter would try to write it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; ``argv`` without the program's name, None means ``sys.argv``. Returns the exit code.

    Never raises for a user's mistake.
    """
    argv = sys.argv[1:] if argv is None else argv
    _plug_streams()
    try:
        known = commands()
    except OptionError as error:  # an environment variable
        print(f"ort-rknn: {printable(bare_message(error), sys.stderr)}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return 130
    chosen = known.get(argv[0]) if argv else None
    if chosen is not None and chosen.takes_over is not None:
        return chosen.takes_over(argv[1:])
    try:
        given = make_parser(known).parse_args(argv)
        run: Callable[[argparse.Namespace], int] = given.run_command
        code = run(given)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse's: it has already reported what is wrong
        return stop.code if isinstance(stop.code, int) else USAGE
    except OptionError as error:
        print(f"ort-rknn: {printable(bare_message(error), sys.stderr)}", file=sys.stderr)
        return USAGE
    except Mistake as mistake:
        print(f"ort-rknn: {printable(str(mistake), sys.stderr)}", file=sys.stderr)
        return mistake.code
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "onnx":
            raise
        print(f"ort-rknn: {argv[0]} takes the package onnx: pip install 'ort-rknn[convert]'", file=sys.stderr)
        return USAGE
    except BrokenPipeError:  # "ort-rknn info model.rknn | head -1"
        _discard_output()
        return FAILED
    except OSError as error:
        if error.filename is not None or error.errno not in _UNWRITABLE:
            raise
        _discard_output()
        print(f"ort-rknn: the output cannot be written: {error.strerror}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 130
    return code
