"""The size and shape of the packages: ``python docs/house_report.py [ROOT ...]``, a column for each checkout."""

import ast
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
    return {
        **{f"modules of {name}": str(number) for name, number in sorted(packages.items())},
        "modules directly in ort_rknn": str(
            sum(
                name.count(".") == 1 and found[name].stem != "__init__"
                for name in found
                if name.startswith("ort_rknn.")
            )
        ),
        "lines": str(sum(lines.values())),
        "largest module": f"{largest} ({lines[largest]})",
        "longest function": f"{sizes[0][1]} ({sizes[0][0]})",
        "functions over 60 lines": str(sum(size > 60 for size, _ in sizes)),
    }


if __name__ == "__main__":
    roots = [Path(argument) for argument in sys.argv[1:]] or [Path(__file__).parent.parent]
    columns = [report(root) for root in roots]
    for row in dict.fromkeys(row for column in columns for row in column):
        print(f"| {row} | " + " | ".join(column.get(row, "-") for column in columns) + " |")
