"""``ort-rknn bench``: how fast a model is, and with which options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .._errors import OptionError, bare_message
from ..adapter.command import Command
from . import schemas
from .arguments import add_device, device_options
from .output import (
    FAILED,
    FINE,
    USAGE,
    Cell,
    Column,
    Mistake,
    TextTable,
    add_json_option,
    check_file,
    check_writable,
    live,
    one_line,
    say,
    say_json,
    write_text,
)

if TYPE_CHECKING:
    from .._bench.compare import Change
    from .._bench.report import BenchReport
    from .._bench.together import TogetherReport


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help="an .onnx or .rknn file; several: find which model gets which cores"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="approximate duration (default: 20)")
    add_device(parser)
    parser.add_argument("--html", metavar="FILE", help="write one HTML page with tables and plots")
    parser.add_argument(
        "--compare", metavar="OLD.json", help="compare with earlier --json output; exit code 1 if slower"
    )
    add_json_option(parser)


def run(given: argparse.Namespace) -> int:
    """Measure, and print the results."""
    for model in given.models:
        check_file(model)
    options = device_options(given)
    if len(given.models) > 1 and (given.html or given.compare):
        raise Mistake("--html and --compare take one model", USAGE)
    try:
        return _together(given, options) if len(given.models) > 1 else _alone(given, options)
    except (Mistake, OptionError, BrokenPipeError):  # the last: "ort-rknn bench model.onnx | head -1"
        raise
    except Exception as error:  # onnxruntime has a class for each code, and no common one
        raise Mistake(one_line(bare_message(error))) from None


def _alone(given: argparse.Namespace, options: dict[str, Any]) -> int:
    from .._bench.bench import bench

    before = _older(given.compare)
    if given.html:
        check_writable(given.html)
    model = given.models[0]
    if given.json:
        report = bench(model, seconds=given.seconds, options=options)
    else:
        with ExitStack() as stack:
            displays: list[Callable[[TextTable], None]] = []

            def progress(report: BenchReport) -> None:
                if not displays:  # before anything is measured
                    _introduce(report)
                    displays.append(stack.enter_context(live(_table(report))))
                displays[0](_table(report))

            report = bench(model, seconds=given.seconds, options=options, progress=progress)
    changes = _changes(report, before)
    if given.html:
        from .._bench.page import page

        write_text(given.html, page(report))
    if given.json:
        told_changes = [_change_as_json(change) for change in changes]
        say_json("bench", {"report": report.as_json(), "together": None, "changes": told_changes})
    else:
        _conclude(report, changes, given.html)
    slower = any(change.slower for change in changes)
    return FAILED if slower or report.best_throughput is None else FINE


def _introduce(report: BenchReport) -> None:
    where = f"{report.device}, {report.cores} core{'s' * (report.cores != 1)}" if report.device else "no NPU"
    say(f"{report.model} on {where}", "bold")
    for note in report.notes:
        say(note, "dim")
    if report.split is not None:
        say(report.split.sentence(report.cores))


_COLUMNS = (
    Column("setting"),
    *(Column(title, right=True, keep=True) for title in ("runs/s", "p50 ms")),
    *(
        Column(title, right=True, keep=True, spare=spare)
        for title, spare in (
            *(("p95", 2), ("p99", 4), ("CPU ms", 1), ("wait", 3), ("convert", 5), ("run", 6), ("fetch", 7)),
            *(("create", 9), ("first", 8), ("MB", 10)),
        )
    ),
)


def _table(report: BenchReport) -> TextTable:
    best = (report.best_throughput, report.best_latency)
    rows: list[list[str | Cell]] = []
    for result in report.results:
        m = result.measured
        name = Cell(result.setting.name, "good" if result in best else "")
        if m is None:
            rows.append([Cell(result.setting.name, "dim"), Cell("-", "dim"), *([""] * (len(_COLUMNS) - 2))])
            continue
        times = (m.p50_ms, m.p95_ms, m.p99_ms, 1000 * m.cpu_seconds_per_run, m.wait_ms, m.convert_ms, m.run_ms)
        more = (m.fetch_ms, result.create_ms, result.first_ms)
        figures = [f"{m.runs_per_second:,.0f}", *(f"{ms:.2f}" for ms in (*times, *more)), f"{result.memory_mb:.0f}"]
        rows.append([name, *figures])
    return TextTable(_COLUMNS, rows)


def _conclude(report: BenchReport, changes: list[Change], page: str | None) -> None:
    _tell_skipped((result.setting.name, result.skipped) for result in report.results)
    say()
    for line in report.lines_to_paste():
        say(line, "good")
    say()
    say(report.advice)
    disturbed = [r for r in report.results if r.measured and r.measured.outliers > 0.05 * r.measured.runs]
    if disturbed:
        settings = f"{len(disturbed)} setting{'s' if len(disturbed) > 1 else ''}"
        say(f"Many outliers in {settings}: something else uses this machine; measure again.", "warn")
    for change in changes:
        text = f"{change.name}: {change.before:,.0f} -> {change.now:,.0f} runs/s, {change.ratio:.2f} times"
        say(text, "bad" if change.slower else "")
    if page:
        say(f"written: {os.path.abspath(page)}")


def _tell_skipped(reasons: Iterable[tuple[str, str]]) -> None:
    """Below the table: in it, a long reason would push the figures far to the right."""
    for name, why in reasons:
        if why:
            say(f"{name}: {why}", "dim")


def _older(path: str | None) -> dict[str, float] | None:
    from .._bench.compare import read_report

    if path is None:
        return None
    try:
        return read_report(path)
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror or error}", USAGE) from None
    except ValueError as error:
        raise Mistake(f"{path}: {error}", USAGE) from None


def _changes(report: BenchReport, before: dict[str, float] | None) -> list[Change]:
    from .._bench.compare import compare

    return compare(report, before) if before is not None else []


def _change_as_json(change: Change) -> dict[str, Any]:
    names = ("name", "before", "now", "ratio", "slower")
    return {name: getattr(change, name) for name in names}


def _together(given: argparse.Namespace, options: dict[str, Any]) -> int:
    from .._bench.together import bench_together

    if given.json:
        report = bench_together(given.models, seconds=given.seconds, options=options)
        say_json("bench", {"report": None, "together": report.as_json(), "changes": []})
        return FINE if report.best is not None else FAILED
    columns = [Column("cores"), *(Column(os.path.basename(m), right=True) for m in given.models), Column("score", True)]
    with live(TextTable(columns, [])) as display:
        report = bench_together(
            given.models,
            seconds=given.seconds,
            options=options,
            progress=lambda report: display(TextTable(columns, _arrangement_rows(report))),
        )
    _tell_skipped((one.name, one.skipped) for one in report.arrangements)
    say()
    for line in report.lines_to_paste():
        say(line, "good")
    say("runs/s, and as a share of what the model does alone; score: the geometric mean of the shares", "dim")
    return FINE if report.best is not None else FAILED


def _arrangement_rows(report: TogetherReport) -> list[list[str | Cell]]:
    rows: list[list[str | Cell]] = [
        ["each alone, on all cores", *(f"{m.runs_per_second:,.0f}" for m in report.alone), ""]
    ]
    for one in report.arrangements:
        if one.skipped:
            rows.append([Cell(one.name, "dim"), Cell("-", "dim"), *([""] * len(report.models))])
        elif one.measured:
            cells = [f"{m.runs_per_second:,.0f} ({share:.0%})" for m, share in zip(one.measured, one.shares)]
            rows.append([Cell(one.name, "good" if one is report.best else ""), *cells, f"{one.score:.2f}"])
    return rows


COMMAND = Command(
    name="bench",
    summary="how fast a model is, and with which options",
    description="Compares the CPU, the default options, tp_mode, schedule, threads_per_core, 1 to 16 callers, batches "
    "and uint8 NHWC inputs, and ends with lines to paste and a sentence of advice. With several MODELs it finds which "
    "model gets which cores. Exit code 1 if nothing could be measured, or if --compare finds a setting that became "
    "slower.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.BENCH,
)
