"""A report as one self-contained HTML page: tables and plots as SVG, light and dark, no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .load import Measured
from .report import BenchReport, Result, of

#: The phases of a call, in order, with their CSS classes.
_PARTS = (
    ("wait", "wait_ms"),
    ("convert", "convert_ms"),
    ("run", "run_ms"),
    ("fetch", "fetch_ms"),
    ("other", "host_ms"),
)
_ROW, _LEFT, _WIDTH = 26, 330, 860

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --dim: #5b6575; --paper: #ffffff; --line: #d9dee6; --best: #1a7f4b;
  --bar: #4178be; --wait: #b8bfca; --convert: #e0a030; --run: #4178be; --fetch: #9a5fb5; --other: #d2695e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --dim: #9aa5b5; --paper: #14181f; --line: #333b48;
  --best: #4cc38a; --bar: #6fa3e6; --wait: #566070; --convert: #e5b454; --run: #6fa3e6; --fetch: #c08adb;
  --other: #e88b80; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p.advice { font-size: 1.1rem; border-left: 4px solid var(--best); padding-left: .8rem; }
pre { border: 1px solid var(--line); border-radius: 6px; padding: .7rem; overflow-x: auto; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.why { text-align: left; color: var(--dim); white-space: normal; }
tr.best td { color: var(--best); font-weight: 600; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg text.dim { fill: var(--dim); }
rect.bar { fill: var(--bar); } rect.best { fill: var(--best); } line, polyline { stroke: var(--line); fill: none; }
line.whisker { stroke: var(--ink); stroke-width: 1.5; }
polyline.speed { stroke: var(--bar); stroke-width: 2; } polyline.late { stroke: var(--other); stroke-width: 2; }
circle.speed { fill: var(--bar); } circle.late { fill: var(--other); }
""" + "".join(f"rect.{name} {{ fill: var(--{name}); }}\n" for name, _ in _PARTS)


def page(report: BenchReport) -> str:
    """The whole page."""
    measured = [r for r in report.results if r.measured is not None]
    lines = "\n".join(report.lines_to_paste())
    notes = [*report.notes]
    if report.split is not None:
        notes.append(report.split.sentence(report.cores))
    where = f"{report.device}, {report.cores} core{'s' * (report.cores != 1)}" if report.device else "no NPU"
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>ort-rknn bench: {_text(report.model)}</title>",
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{_text(report.model)}</h1><p>{_text(where)}</p>",
            f'<p class="advice">{_text(report.advice)}</p>',
            f"<pre>import ort_rknn\n{_text(lines)}</pre>",
            "".join(f"<p>{_text(note)}</p>" for note in notes),
            "<h2>Runs per second</h2>",
            _speeds(report, measured),
            "<h2>Where the time of a call goes</h2>",
            _times(measured),
            _by_callers(report),
            "<h2>Everything</h2>",
            _table(report),
            "</body></html>\n",
        )
    )


def _text(text: str) -> str:
    """Escaped for HTML; characters that are invalid there are written as escapes."""
    return (
        escape("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text))
        .encode("utf-8", "backslashreplace")
        .decode()
    )


def _svg(height: float, label: str, inside: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}" role="img"'
    return f'{head} aria-label="{_text(label)}">{"".join(inside)}</svg>'


def _name_of(result: Result, y: float) -> str:
    name = result.setting.name
    short = name if len(name) <= 48 else f"{name[:47]}…"
    return f'<text x="{_LEFT - 8}" y="{y + 15}" text-anchor="end">{_text(short)}<title>{_text(name)}</title></text>'


def _speeds(report: BenchReport, results: Sequence[Result]) -> str:
    most = max((of(r).runs_per_second for r in results), default=1.0)
    out = []
    for row, result in enumerate(results):
        y, speed = row * _ROW, of(result).runs_per_second
        width = (_WIDTH - _LEFT - 90) * speed / most
        kind = "best" if result is report.best_throughput else "bar"
        out += [
            _name_of(result, y),
            f'<rect class="{kind}" x="{_LEFT}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 8}" rx="2"/>',
            f'<text x="{_LEFT + width + 6:.1f}" y="{y + 15}">{speed:,.0f}</text>',
        ]
    return _svg(len(results) * _ROW + 4, "Runs per second of each setting", out)


def _parts_of(measured: Measured) -> list[tuple[str, float]]:
    parts = [(name, float(getattr(measured, attribute))) for name, attribute in _PARTS]
    if any(ms for _, ms in parts):
        return parts
    return [("other", measured.p50_ms)]  # the CPU reports no phases


def _times(results: Sequence[Result]) -> str:
    most = max((sum(ms for _, ms in _parts_of(of(r))) for r in results), default=1.0) or 1.0
    out = []
    for place, (name, _) in enumerate(_PARTS):
        at = _LEFT + place * 100
        out.append(f'<rect class="{name}" x="{at}" y="4" width="12" height="12"/>')
        out.append(f'<text x="{at + 18}" y="15">{name}</text>')
    for row, result in enumerate(results, 1):
        y = row * _ROW
        x = float(_LEFT)
        out.append(_name_of(result, y))
        parts = _parts_of(of(result))
        for name, ms in parts:
            width = (_WIDTH - _LEFT - 90) * ms / most
            title = f"<title>{name}: {ms:.3f} ms</title>"
            out.append(
                f'<rect class="{name}" x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 8}">{title}</rect>'
            )
            x += width
        out.append(f'<text x="{x + 6:.1f}" y="{y + 15}">{sum(ms for _, ms in parts):.2f} ms</text>')
    return _svg((len(results) + 1) * _ROW + 4, "Parts of a call's time, in milliseconds", out)


def _by_callers(report: BenchReport) -> str:
    """Runs per second and the 95th percentile, by number of callers, with the best setting's options."""
    best = report.best_throughput_on_npu
    if best is None:
        return ""
    options = best.setting.options
    found = {
        r.setting.callers: r.measured
        for r in report.results
        if r.setting.options == options and r.setting.samples == 1 and r.measured is not None
    }
    points = sorted(found.items())
    if len(points) < 3:
        return ""
    speeds = [(callers, m.runs_per_second) for callers, m in points]
    late = [(callers, m.p95_ms) for callers, m in points]
    names = best.setting.name.rpartition(", ")[0]
    text = f"runs per second and 95th percentile by the number of callers: {names}"
    inside = [
        '<circle class="speed" cx="64" cy="10" r="5"/><text x="76" y="14">runs/s</text>',
        '<circle class="late" cx="154" cy="10" r="5"/><text x="166" y="14">95th percentile</text>',
        f'<text class="dim" x="290" y="14">by callers, {_text(names)}</text>',
        '<line x1="60" y1="200" x2="800" y2="200"/>',
        *_curve(speeds, "speed", "{:,.0f}", -8),
        *_curve(late, "late", "{:.2f} ms", 18),
        *(f'<text class="dim" x="{_x(k, len(points)):.0f}" y="218">{c}</text>' for k, (c, _) in enumerate(points)),
    ]
    return "<h2>Callers</h2>" + _svg(226, text, inside)


def _x(place: int, number: int) -> float:
    return 80 + 680 * place / (number - 1)


def _curve(points: Sequence[tuple[int, float]], kind: str, form: str, offset: int) -> list[str]:
    most = max(value for _, value in points) or 1.0
    places = [(_x(k, len(points)), 195 - 150 * value / most) for k, (_, value) in enumerate(points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    out = [f'<polyline class="{kind}" points="{path}"/>']
    for (x, y), (_, value) in zip(places, points):
        out.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>')
        out.append(
            f'<text class="dim" x="{x:.1f}" y="{y + offset:.1f}" text-anchor="middle">{form.format(value)}</text>'
        )
    return out


_HEADS = (
    "setting", "runs/s", "p50 ms", "p95 ms", "p99 ms", "outliers", "CPU ms/run", "wait", "convert", "run", "fetch",
    "other", "create ms", "first ms", "memory MB",
)  # fmt: skip


def _table(report: BenchReport) -> str:
    rows = []
    for result in report.results:
        name = f"<td>{_text(result.setting.name)}</td>"
        if result.measured is None:
            rows.append(f'<tr>{name}<td class="why" colspan="{len(_HEADS) - 1}">{_text(result.skipped)}</td></tr>')
            continue
        m = result.measured
        times = (m.wait_ms, m.convert_ms, m.run_ms, m.fetch_ms, m.host_ms, result.create_ms, result.first_ms)
        cells = [
            f"{m.runs_per_second:,.0f}", f"{m.p50_ms:.2f}", f"{m.p95_ms:.2f}", f"{m.p99_ms:.2f}", f"{m.outliers}",
            f"{1000 * m.cpu_seconds_per_run:.2f}", *(f"{ms:.2f}" for ms in times), f"{result.memory_mb:.1f}",
        ]  # fmt: skip
        best = result in (report.best_throughput, report.best_latency)
        rows.append(f"<tr{' class=best' if best else ''}>{name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = "".join(f"<th>{head}</th>" for head in _HEADS)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
