"""Shared by all commands: exit codes, one-line error messages, text that is safe to print, tables, and JSON.

Tables and colors use ``rich`` (extra ``cli``) if it is installed and stdout is a terminal. Otherwise a table is plain
text in columns, never truncated, so that it can be piped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console

#: Exit codes: success; a finding or a failure; a usage error.
FINE, FAILED, USAGE = 0, 1, 2

Style = Literal["", "good", "warn", "bad", "dim", "bold"]
_STYLES: Mapping[str, str] = {"good": "green", "warn": "yellow", "bad": "bold red", "dim": "dim", "bold": "bold"}


class Mistake(Exception):
    """An error reported in one line on stderr, without a traceback."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def printable(text: str, stream: Any) -> str:
    """``text`` with everything unprintable, or that would control a terminal, written as an escape."""
    text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(line: str = "", style: Style = "") -> None:
    """Print a line to stdout, in color if stdout is a terminal that supports it."""
    console = rich_console() if style else None
    if console is None:
        print(printable(line, sys.stdout))
    else:
        console.print(printable(line, sys.stdout), style=_STYLES[style], markup=False, highlight=False, soft_wrap=True)


def say_step(text: str) -> None:
    """Print a step of a long operation to stderr."""
    print(printable(text, sys.stderr), file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """``text`` with every run of whitespace replaced by one space."""
    return " ".join(text.split())


def os_error_text(error: OSError) -> str:
    """ "model.onnx: No such file or directory", without Python's "[Errno 2]"."""
    if error.strerror is None:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror


def check_file(path: str, *, or_export: bool = False) -> None:
    """Check for a file that cannot be opened: onnxruntime's message is less clear. ``or_export``: a session is created
    of it, which accepts the folder that Ultralytics exports to as well."""
    if os.path.isdir(path):
        from ..files.compiled_places import EXPORT_FOLDER

        if or_export and os.path.abspath(path).endswith(EXPORT_FOLDER):
            return
        raise Mistake(f"{path}: expected a model file, this is a folder")
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for its other end
        raise Mistake(f"{path}: expected a model file, this is not a regular file")
    try:
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:
        raise Mistake(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        path.encode()
    except UnicodeEncodeError:
        raise Mistake(f"{path}: the name is not UTF-8, and onnxruntime opens no such file: rename it") from None


def session_errors() -> tuple[type[Exception], ...]:
    """What a session may raise for a model or a device: onnxruntime's classes, which have no common one, and others."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    from ..adapter.contract import AdapterError

    theirs = [x for x in vars(state).values() if isinstance(x, type) and issubclass(x, Exception)]
    return (*theirs, AdapterError)


def about_model(path: str, error: Exception) -> str:
    """One line with the error of a session, which names the model once."""
    from .._errors import bare_message

    text = one_line(bare_message(error))
    return text if text.startswith((f"{path}: ", f"{os.path.basename(path)}: ")) else f"{path}: {text}"


def check_writable(path: str) -> None:
    """Raise Mistake if a report could not be written to ``path``, before time is spent on it."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.access(folder, os.W_OK):
        raise Mistake(f"{path}: cannot be written", USAGE)


def write_text(path: str, text: str) -> None:
    """Write a report. Raises Mistake if it cannot be written."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ValueError) as error:  # the latter: a NUL in the path
        raise Mistake(f"{path}: {getattr(error, 'strerror', None) or error}") from None


# Tables -----------------------------------------------------------------------------------------------------------


def rich_console() -> Console | None:
    """A rich console on stdout; None if rich is not installed, or stdout is not a terminal.

    ``NO_COLOR``, ``FORCE_COLOR``, ``TERM=dumb`` and ``COLUMNS`` are interpreted by rich.
    """
    if not (sys.stdout.isatty() or os.environ.get("FORCE_COLOR")):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=sys.stdout)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a :class:`TextTable`."""

    title: str
    right: bool = False
    """Right-aligned, for numbers."""
    keep: bool = False
    """Not wrapped on a narrow terminal."""
    spare: int = 0
    """If a terminal is too narrow for the table, columns with the highest number are omitted first, and listed below
    it. 0: never omitted."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell with a color. A plain ``str`` is a cell without one."""

    text: str
    style: Style = ""


Row = Sequence["str | Cell"]


@dataclass(frozen=True, slots=True)
class TextTable:
    """Rows in columns. :func:`show` prints it; :func:`renderable` converts it to rich's form for a live display."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""

    def plain(self) -> list[str]:
        """The table as lines of text: columns padded with spaces, nothing truncated, no trailing spaces."""
        body = [[_safe(cell) for cell in row] for row in self.rows]
        heads = [column.title for column in self.columns]
        widths = [max(len(row[i]) for row in [heads, *body]) for i in range(len(heads))]
        lines = [printable(self.title, sys.stdout)] if self.title else []
        for row in [heads, *body] if any(heads) else body:
            cells = (
                text.rjust(width) if column.right else text.ljust(width)
                for text, width, column in zip(row, widths, self.columns)
            )
            lines.append("  ".join(cells).rstrip())
        return lines


def _safe(cell: str | Cell) -> str:
    text = cell.text if isinstance(cell, Cell) else cell
    return printable(one_line(text), sys.stdout)


def renderable(table: TextTable, width: int = 1 << 20) -> Any:
    """``table`` as a ``rich.table.Table`` for a terminal of ``width`` columns. Needs rich."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = _fitting(table, width)
    left_out = ", ".join(column.title for index, column in enumerate(table.columns) if index not in shown)
    made = RichTable(
        box=box.SIMPLE,
        title=Text(printable(table.title, sys.stdout), "bold") if table.title else None,
        title_justify="left",
        caption=Text(f"left out, the terminal is too narrow: {left_out}", "dim") if left_out else None,
        caption_justify="left",
        show_header=True,
        pad_edge=False,
    )
    made.show_header = any(column.title for column in table.columns)
    for column in (table.columns[index] for index in shown):
        made.add_column(column.title, justify="right" if column.right else "left", no_wrap=column.keep, overflow="fold")
    for row in table.rows:
        cells = (row[index] for index in shown)
        made.add_row(*(Text(_safe(c), _STYLES.get(c.style, "") if isinstance(c, Cell) else "") for c in cells))
    return made


#: A wrappable text column needs this many characters to be legible; columns are separated by three spaces.
_LEGIBLE, _BETWEEN = 22, 3


def _fitting(table: TextTable, width: int) -> list[int]:
    """The columns that fit into a terminal of ``width``."""

    def needs(index: int) -> int:
        widest = max(len(_safe(cell)) for cell in (table.columns[index].title, *(row[index] for row in table.rows)))
        return _BETWEEN + (widest if table.columns[index].keep else min(widest, _LEGIBLE))

    shown = list(range(len(table.columns)))
    spare = [index for index in shown if table.columns[index].spare]
    for index in sorted(spare, key=lambda index: -table.columns[index].spare):
        if sum(map(needs, shown)) <= width:
            break
        shown.remove(index)
    return shown


def show(table: TextTable) -> None:
    """Print a table to stdout."""
    console = rich_console()
    if console is not None:
        console.print(renderable(table, console.width))
        return
    for line in table.plain():
        print(line)


@contextmanager
def live(first: TextTable) -> Iterator[Callable[[TextTable], None]]:
    """Display a table that changes in place: call the yielded function with each new version. The last one stays.

    If stdout is not a terminal, or rich is not installed, only the last version is shown, at the end.
    """
    console = rich_console()
    last = first
    if console is None:

        def keep(table: TextTable) -> None:
            nonlocal last
            last = table

        yield keep
        show(last)
        return
    from rich.live import Live

    with Live(renderable(first, console.width), console=console, auto_refresh=False) as display:
        yield lambda table: display.update(renderable(table, console.width), refresh=True)


# JSON -------------------------------------------------------------------------------------------------------------


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def say_json(command: str, data: Mapping[str, Any], version: int = 1) -> None:
    """Print the JSON object of ``--json``, as declared in the command's ``json_output``.

    Its first member is ``schema``: "ort-rknn/COMMAND/VERSION". The version increases if a member is removed or changes
    its meaning; members may be added at any time. Non-finite numbers become null.
    """
    whole = {"schema": f"ort-rknn/{command}/{version}", **data}
    print(json.dumps(_finite(whole), indent=1, ensure_ascii=True, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and value not in (float("inf"), float("-inf")) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
