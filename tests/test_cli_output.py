"""Tables and JSON of the command line: with and without rich, on a terminal and in a pipe."""

import argparse
import contextlib
import io
import json
import re
import sys

import pytest

from ort_rknn._cli import output
from ort_rknn._cli.arguments import add_device_options, device_options, key_values
from ort_rknn._cli.output import (
    Cell,
    Column,
    Mistake,
    TextTable,
    check_writable,
    live,
    os_error_text,
    rich_console,
    say,
    say_json,
    show,
    write_text,
)
from ort_rknn._errors import OptionError


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def on_terminal(monkeypatch):
    """Calls a function with a terminal of 60 columns as stdout; returns what it printed."""
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def call(function, *args):
        stream = Terminal()
        with contextlib.redirect_stdout(stream):
            function(*args)
        return stream.getvalue()

    return call


TABLE = TextTable(
    (Column("name"), Column("runs/s", right=True)),
    [("a", "7"), (Cell("bb\x1b[2J", "bad"), "1,200")],
    title="speed",
)


def test_plain_columns_line_up_and_hold_no_escape(capsys):
    show(TABLE)
    assert capsys.readouterr().out == ("speed\nname       runs/s\na               7\nbb\\x1b[2J   1,200\n")


def test_a_long_cell_is_not_cut_in_a_pipe(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    show(TextTable((Column(""), Column("")), [("x" * 300, "end")]))
    assert capsys.readouterr().out == "x" * 300 + "  end\n"


def test_a_terminal_gets_color_and_its_width(on_terminal):
    text = on_terminal(show, TextTable((Column("name"), Column("what")), [("n", Cell("word " * 40, "bad"))]))
    assert "\x1b[1;31m" in text
    assert max(len(line) for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()) <= 60


def test_columns_that_a_narrow_terminal_has_no_room_for_are_left_out_and_named(on_terminal):
    figures = [Column(f"figure {n}", right=True, keep=True, spare=n) for n in range(4)]
    table = TextTable(
        (Column("setting"), *figures), [("schedule=0,1,2, threads_per_core=2, 6 callers", *["1,234.56"] * 4)]
    )
    lines = re.sub(r"\x1b\[[\d;]*m", "", on_terminal(show, table)).splitlines()
    assert max(map(len, lines)) <= 60
    assert sum("1,234.56" in line for line in lines) == 1  # numbers are not truncated or wrapped
    assert [line.strip() for line in lines if "left out" in line] == ["left out, the terminal is too narrow: figure 3"]
    assert "left out" not in "\n".join(table.plain()) and "figure 3" in table.plain()[0]


def test_figures_of_a_bench_are_whole_at_80_columns(on_terminal, monkeypatch):
    from ort_rknn._cli.bench import _COLUMNS

    monkeypatch.setenv("COLUMNS", "80")
    row = ("schedule=0,1,2, threads_per_core=2, 16 callers", "12,345", *["1234.56"] * (len(_COLUMNS) - 2))
    text = re.sub(r"\x1b\[[\d;]*m", "", on_terminal(show, TextTable(_COLUMNS, [row])))
    assert max(map(len, text.splitlines())) <= 80
    (line,) = [line for line in text.splitlines() if "12,345" in line]
    assert line.count("1234.56") >= 3 and "left out" in text


@pytest.mark.parametrize("width", ["80", "60"])
def test_top_keeps_model_and_core_on_a_narrow_terminal(on_terminal, monkeypatch, width):
    from ort_rknn._cli.top import _COLUMNS

    monkeypatch.setenv("COLUMNS", width)
    row = ("12345", "python3.11", "yolov8n.rk3588.rknn", "rk3588 core 1", "35%", "1,160.4", "10", "0")
    text = re.sub(r"\x1b\[[\d;]*m", "", on_terminal(show, TextTable(_COLUMNS, [row])))
    (line,) = [line for line in text.splitlines() if "12345" in line]
    assert "yolov8n.rk3588.rknn" in line and "rk3588 core 1" in line and "35%" in line and "left out" in text


def test_errors_of_the_system_name_the_file():
    error = FileNotFoundError(2, "No such file or directory", "run.npz")
    assert os_error_text(error) == "run.npz: No such file or directory"
    assert os_error_text(OSError("odd")) == "odd"


def test_a_cells_own_escapes_stay_escaped_on_a_terminal(on_terminal):
    text = on_terminal(show, TABLE)
    assert "\x1b[2J" not in text
    assert "\\x1b[2J" in text


def test_no_color(on_terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = on_terminal(say, "failed [bold]", "bad") + on_terminal(show, TABLE)
    assert "\x1b[1;31m" not in text
    assert "failed [bold]" in text


def test_without_rich_a_terminal_gets_plain_text(on_terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert on_terminal(rich_console) == "" and "\x1b" not in on_terminal(say, "x", "bad") + on_terminal(show, TABLE)


def test_live_shows_the_last_table_once_in_a_pipe(capsys):
    with live(TABLE) as update:
        update(TextTable((Column("n"),), [("1",)]))
        update(TextTable((Column("n"),), [("2",)]))
    assert capsys.readouterr().out == "n\n2\n"


def test_json_has_its_schema_first_and_only_what_json_can_hold(capsys):
    say_json("bench", {"a": float("nan"), "b": [float("inf"), (1, 2)], "c": {"d": "é\n"}})
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "schema": "ort-rknn/bench/1",
        "a": None,
        "b": [None, [1, 2]],
        "c": {"d": "é\n"},
    }
    assert next(iter(json.loads(text))) == "schema"
    assert output.printable(text, sys.stdout) == text


# Arguments and files ----------------------------------------------------------------------------------------------


def test_provider_options_on_the_command_line():
    assert key_values("--option", ["schedule=0,1", "device=", "rknn_model=a=b.rknn", "schedule=2"]) == {
        "schedule": "2",
        "device": "",
        "rknn_model": "a=b.rknn",
    }
    for bad in ("schedule", "=2", "", "="):
        with pytest.raises(OptionError, match=f"--option '{bad}': expected KEY=VALUE"):
            key_values("--option", [bad])


def test_a_device_that_was_not_given_is_no_option():
    parser = argparse.ArgumentParser()
    add_device_options(parser)
    assert device_options(parser.parse_args([])) == {}
    assert device_options(parser.parse_args(["--device", "rk3588"])) == {"device": "rk3588"}


@pytest.mark.parametrize("name", ["", "none/report.txt", "a\0b"])
def test_a_report_that_cannot_be_written(tmp_path, name):
    with pytest.raises(Mistake, match=r"(Is a directory|No such file or directory|null)"):
        write_text(f"{tmp_path}/{name}", "x")


def test_a_report_is_refused_before_it_is_made(tmp_path):
    check_writable(str(tmp_path / "report.txt"))
    for path in (tmp_path, tmp_path / "none" / "report.txt"):
        with pytest.raises(Mistake, match="cannot be written"):
            check_writable(str(path))
