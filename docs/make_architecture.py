"""Draws docs/pictures/architecture.svg: the path of a call, and what is beside it.

python docs/make_architecture.py [--check]

One file for light and dark mode: colors follow the reader's preference, and the picture has its own background.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

TARGET = Path(__file__).parent / "pictures" / "architecture.svg"

WIDTH, ROW, GAP, TOP = 920, 52, 20, 24
#: The middle column: name, where it lives, what it does. From the user's call down to the hardware.
WAY = (
    ("your program", "", "import ort_rknn as ort"),
    ("session", "ort_rknn/_session", "an onnxruntime.InferenceSession that plans first"),
    ("onnxruntime", "the installed one", "validation, IOBinding, profiling, nodes on the CPU"),
    ("execution provider", "ort_rknn/_ep", "claims the nodes for the NPU, in ctypes"),
    ("executor", "ort_rknn/_executor", "cores, contexts, batches, shapes, counters"),
    ("adapter", "adapters/", "a plugin that owns one NPU runtime"),
)
MIDDLE, WIDE = 230, 420
#: Left and right of the way: row, name, what it is, and which way the arrow points.
LEFT = ((0, "ort-rknn convert", "ONNX to .rknn", None), (1, "plan", "what runs where, and why", "out"))
RIGHT = (
    (0, "other APIs", "compat/: RKNNLite, EZ", None),
    (2, "CPU", "onnxruntime's kernels", "to"),
    (4, "another adapter", "found with pluggy", None),
)
BOTTOM = (
    ("librknnrt.so", "Rockchip's NPU"),
    ("virtual NPU", "the same C interface, for CI"),
)
STYLE = """
  svg { --back: #ffffff; --box: #f3f6fa; --line: #8a97a8; --text: #17202c; --soft: #566273; --main: #dceafb; }
  @media (prefers-color-scheme: dark) {
    svg { --back: #12161c; --box: #1d242d; --line: #6d7a8c; --text: #e8edf3; --soft: #a6b2c1; --main: #1d3a5c; }
  }
  .back { fill: var(--back); }
  .box { fill: var(--box); stroke: var(--line); }
  .main { fill: var(--main); stroke: var(--line); }
  .arrow { stroke: var(--line); stroke-width: 1.5; fill: none; marker-end: url(#tip); }
  .tip { fill: var(--line); }
  text { font-family: system-ui, "DejaVu Sans", sans-serif; fill: var(--text); font-size: 14px; }
  .name { font-weight: 600; }
  .soft { fill: var(--soft); font-size: 12px; }
"""


def y(row: int) -> int:
    """The upper edge of a row."""
    return TOP + row * (ROW + GAP)


def box(left: int, row: int, width: int, name: str, text: str, where: str = "", kind: str = "box") -> list[str]:
    lines = [f'<rect class="{kind}" x="{left}" y="{y(row)}" width="{width}" height="{ROW}" rx="8"/>']
    lines.append(f'<text class="name" x="{left + 14}" y="{y(row) + 22}">{escape(name)}</text>')
    lines.append(f'<text class="soft" x="{left + 14}" y="{y(row) + 41}">{escape(text)}</text>')
    if where:
        end = left + width - 14
        lines.append(f'<text class="soft" x="{end}" y="{y(row) + 22}" text-anchor="end">{escape(where)}</text>')
    return lines


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="arrow" d="M {x1:g} {y1:g} L {x2:g} {y2:g}"/>'


def picture() -> str:
    last = len(WAY)
    height = y(last) + ROW + TOP
    parts = [f'<rect class="back" width="{WIDTH}" height="{height}" rx="12"/>']
    for row, (name, where, text) in enumerate(WAY):
        parts += box(MIDDLE, row, WIDE, name, text, where, "box" if name in ("your program", "onnxruntime") else "main")
        if row:
            parts.append(arrow(MIDDLE + WIDE / 2, y(row) - GAP, MIDDLE + WIDE / 2, y(row) - 3))
    side = 190
    right = MIDDLE + WIDE + 40
    # Converting leaves a file, which the plan finds; the session asks the plan.
    for row, name, text, _ in LEFT:
        parts += box(10, row, 185, name, text)
    parts.append(arrow(105, y(0) + ROW, 105, y(1) - 3))
    parts.append(arrow(MIDDLE, y(1) + ROW / 2, 198, y(1) + ROW / 2))
    for row, name, text, way in RIGHT:
        parts += box(right, row, side, name, text)
        if way == "to":
            parts.append(arrow(MIDDLE + WIDE, y(row) + ROW / 2, right - 3, y(row) + ROW / 2))
    # The faces for other APIs are built on the executor; another adapter replaces ours.
    parts.append(
        f'<path class="arrow" d="M {right + side / 2:g} {y(0) + ROW} L {right + side / 2:g} {y(1) + ROW / 2:g} '
        f'L {right - 20} {y(1) + ROW / 2:g} L {right - 20} {y(4) + 12} L {MIDDLE + WIDE + 3} {y(4) + 12}"/>'
    )
    parts.append(arrow(MIDDLE + WIDE, y(4) + 38, right - 3, y(4) + 38))
    half = (WIDE - 20) // 2
    for i, (name, text) in enumerate(BOTTOM):
        left = MIDDLE + i * (half + 20)
        parts += box(left, last, half, name, text)
        parts.append(arrow(left + half / 2, y(last) - GAP, left + half / 2, y(last) - 3))
    body = "\n".join(f"  {part}" for part in parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-labelledby="title">\n'
        '  <title id="title">From a program through session, onnxruntime, provider, executor and adapter to the NPU'
        f"</title>\n  <style>{STYLE}  </style>\n"
        '  <defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M 0 0 L 8 4 L 0 8 z"/></marker></defs>\n'
        f"{body}\n</svg>\n"
    )


def main() -> int:
    text = picture()
    if "--check" in sys.argv[1:]:
        return 0 if TARGET.exists() and TARGET.read_text() == text else 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
