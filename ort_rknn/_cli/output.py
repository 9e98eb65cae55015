"""What every command shares: exit codes, mistakes told in one line, and text that is safe to print."""

from __future__ import annotations

import os
import sys
from typing import Any

#: Exit codes: good; a finding, or a failure; wrong use.
FINE, FAILED, USAGE = 0, 1, 2


class Mistake(Exception):
    """What is told in one line on stderr, without a traceback."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def printable(text: str, stream: Any) -> str:
    """``text`` with whatever could not be printed, or would steer a terminal, written as an escape."""
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(line: str = "") -> None:
    """Print a line to stdout."""
    print(printable(line, sys.stdout))


def one_line(text: str) -> str:
    """``text`` with every run of white space made one space."""
    return " ".join(text.split())


def check_file(path: str) -> None:
    """onnxruntime says less about a file that is not there."""
    if os.path.isdir(path):
        raise Mistake(f"{path}: this is a folder, a model file is wanted")
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its other end
        raise Mistake(f"{path}: this is no regular file, a model file is wanted")
    try:
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:
        raise Mistake(f"{path}: {getattr(error, 'strerror', None) or error}") from None
