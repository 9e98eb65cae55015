"""The size and shape of the packages: ``python docs/house_report.py [--times] [ROOT ...]``, a column for each checkout.

``--times`` measures the import and the making of a session too, with the packages that the running Python has.
"""

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path


def modules(root: Path) -> dict[str, Path]:
    """Module name -> source file, of all packages of a checkout."""
    found = {}
    for base in (root, root / "adapters", root / "compat"):
        for top in base.glob("ort_rknn*"):
            for path in top.rglob("*.py"):
                parts = path.relative_to(base).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, found: dict[str, Path]) -> set[str]:
    """The modules of ours that a module imports, including imports inside functions and for type checkers."""
    package = found[name].stem == "__init__"
    here = name.split(".") if package else name.split(".")[:-1]
    out: set[str] = set()
    for node in ast.walk(ast.parse(found[name].read_text())):
        if isinstance(node, ast.Import):
            out.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            out.update(f"{source}.{a.name}" if f"{source}.{a.name}" in found else source for a in node.names)
    # A module of a package imports the package itself only to get at another module of it.
    return {m for m in out if m in found and m != name and not name.startswith(m + ".")}


def groups(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of a graph, each after those that it leads to (Tarjan)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    out: list[list[str]] = []

    def walk(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                walk(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == number[node]:
            at = stack.index(node)
            out.append(stack[at:])
            del stack[at:]

    for node in sorted(graph):
        if node not in number:
            walk(node)
    return out


def folder_of(name: str) -> str:
    """What a reader sees as one part: a folder of ``ort_rknn``, a module directly in it, or another package."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "ort_rknn" else parts[0]


def levels_and_cycles(graph: dict[str, set[str]]) -> tuple[int, int]:
    """The longest way down through imports, and the number of groups that import each other in a ring."""
    level: dict[str, int] = {}
    rings = 0
    for group in groups(graph):
        below = {other for name in group for other in graph[name]} - set(group)
        level.update(dict.fromkeys(group, 1 + max((level[other] for other in below), default=0)))
        rings += len(group) > 1
    return max(level.values()), rings


_IMPORT = """
import time, onnxruntime
began = time.process_time()
import ort_rknn
print(1e3 * (time.process_time() - began))
"""
_SESSION = """
import os, sys, time, ort_rknn
assert ort_rknn.__file__.startswith(os.path.realpath(sys.argv[1])), ort_rknn.__file__
given = [("RKNNExecutionProvider", {"device": "virtual:rk3588"})]
times = []
for _ in range(200):
    began = time.process_time()
    ort_rknn.InferenceSession(os.path.join(sys.argv[1], "tests/models/conv_f16.onnx"), providers=given)
    times.append(time.process_time() - began)
print(1e3 * sorted(times)[len(times) // 4])
"""


def milliseconds(root: Path, program: str, times: int) -> str:
    """The minimum of the times that a program prints for a checkout, as text; "-" if it does not run."""
    told = []
    paths = [str(root.resolve() / folder) for folder in ("", "adapters", "compat")]
    for _ in range(times):
        ended = subprocess.run(  # noqa: S603 - this Python, on programs of this file
            [sys.executable, "-c", program, str(root.resolve())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            return "-"
        told.append(float(ended.stdout))
    return f"{min(told):.1f}"


def functions(trees: dict[str, ast.Module]) -> list[tuple[int, str]]:
    """(lines, name) of every function."""
    return [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}.{node.name}")
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def report(root: Path) -> dict[str, str]:
    """What is measured of one checkout, by row."""
    found = modules(root)
    texts = {name: path.read_text() for name, path in found.items()}
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    sizes = sorted(functions({name: ast.parse(text) for name, text in texts.items()}), reverse=True)
    largest = max(lines, key=lambda name: lines[name])
    packages = Counter(name.split(".")[0] for name in found)
    graph = {name: imports(name, found) for name in found}
    folders: dict[str, set[str]] = {folder_of(name): set() for name in found}
    for name, others in graph.items():
        folders[folder_of(name)] |= {folder_of(other) for other in others} - {folder_of(name)}
    levels, cycles = levels_and_cycles(graph)
    between, rings = levels_and_cycles(folders)
    return {
        **{f"modules of {name}": str(number) for name, number in sorted(packages.items())},
        "modules directly in ort_rknn": str(
            sum(
                name.count(".") == 1 and found[name].stem != "__init__"
                for name in found
                if name.startswith("ort_rknn.")
            )
        ),
        "levels of imports between modules": str(levels),
        "cycles of imports between modules": str(cycles),
        "levels of imports between folders": str(between),
        "cycles of imports between folders": str(rings),
        "lines": str(sum(lines.values())),
        "largest module": f"{largest} ({lines[largest]})",
        "modules over 400 lines": str(sum(count > 400 for count in lines.values())),
        "longest function": f"{sizes[0][1]} ({sizes[0][0]})",
        "functions over 60 lines": str(sum(size > 60 for size, _ in sizes)),
    }


def times(root: Path) -> dict[str, str]:
    """What takes time, by row: processor time, so that other programs count little."""
    return {
        "import, above onnxruntime's (ms)": milliseconds(root, _IMPORT, 9),
        "to make a session on the virtual NPU (ms)": milliseconds(root, _SESSION, 3),
    }


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--times"]
    roots = [Path(argument) for argument in arguments] or [Path(__file__).parent.parent]
    columns = [{**report(root), **(times(root) if "--times" in sys.argv else {})} for root in roots]
    for row in dict.fromkeys(row for column in columns for row in column):
        print(f"| {row} | " + " | ".join(column.get(row, "-") for column in columns) + " |")
