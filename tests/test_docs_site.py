"""The site of docs/: everything listed exists, and everything that exists is listed. ``tox -e docs`` builds it."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


# docs/errors.md ---------------------------------------------------------------------------------------------------

ERRORS = re.findall(r"^\| `([^`]+)` \|.*\|.*\|$", (DOCS / "errors.md").read_text().split("\n## ", 1)[1], re.MULTILINE)


@cache
def _texts() -> list[list[str]]:
    """Every text of the product: the literal parts of each string in source order, without docstrings."""
    found = []
    for folder in ("ort_rknn", "adapters", "compat"):
        for path in (ROOT / folder).rglob("*.py") if (ROOT / folder).exists() else _installed(folder):
            tree = ast.parse(path.read_text())
            left_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            joined = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
            inside = {id(part) for node in joined for part in node.values}
            found += [[part.value for part in node.values if isinstance(part, ast.Constant)] for node in joined]
            found += [
                [node.value]
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in left_out
                and id(node) not in inside
            ]
    return found


def _installed(folder: str) -> list[Path]:
    """The installed sources, if there are none beside the tests."""
    import ort_rknn

    where = Path(ort_rknn.__file__).parent
    if folder == "ort_rknn":
        return list(where.rglob("*.py"))
    return [path for package in where.parent.glob("ort_rknn_*") for path in package.rglob("*.py")]


def _says(parts: list[str], wanted: list[str]) -> bool:
    """Whether the literal parts contain the given pieces in this order."""
    text, at = "\0".join(parts), 0
    for piece in wanted:
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


def test_there_are_texts():
    assert len(ERRORS) > 50
    assert len(set(ERRORS)) == len(ERRORS)


@pytest.mark.parametrize("text", ERRORS)
def test_the_text_is_in_the_code(text):
    pieces = [piece for piece in (part.strip() for part in text.split("…")) if len(piece) > 1]
    assert pieces, "nothing but dots"
    assert any(_says(parts, pieces) for parts in _texts())


def test_a_text_that_is_never_printed_is_found():
    assert not any(_says(parts, ["the NPU has no device node", "and a cat"]) for parts in _texts())


# docs/reference/ --------------------------------------------------------------------------------------------------


def test_the_reference_has_every_name_of_ours():
    import ort_rknn

    page = (DOCS / "reference" / "ort_rknn.md").read_text()
    told = set(re.findall(r"^\.\. auto\w+:: (\w+)$", page, re.MULTILINE))
    own = {"InferenceSession", "devices", "get_available_providers", "get_all_providers"}
    ours = {*own, *ort_rknn._OURS, *ort_rknn._BROUGHT}
    assert told == ours, f"docs/reference/ort_rknn.md: {sorted(told ^ ours)}"


def test_the_reference_has_every_method_of_ours():
    import onnxruntime

    import ort_rknn

    page = (DOCS / "reference" / "ort_rknn.md").read_text()
    (told,) = re.findall(r"InferenceSession\n   :members: (.*)$", page, re.MULTILINE)
    theirs = set(dir(onnxruntime.InferenceSession))
    new = {name for name in dir(ort_rknn.InferenceSession) if not name.startswith("_")} - theirs
    assert new <= set(told.split(", ")), new
    for name in told.split(", "):
        assert getattr(ort_rknn.InferenceSession, name).__doc__, name


@pytest.mark.parametrize("door", ["adapter", "files"])
def test_the_reference_has_the_door(door):
    """autodoc uses a module's ``__all__``: each name has a docstring, or is a constant."""
    import importlib

    assert f".. automodule:: ort_rknn.{door}\n   :members:" in (DOCS / "reference" / f"{door}.md").read_text()
    module = importlib.import_module(f"ort_rknn.{door}")
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) and getattr(value, "__module__", "").startswith("ort_rknn"):
            assert value.__doc__, name


# Pictures and pages -----------------------------------------------------------------------------------------------


def test_the_picture_is_the_script_s():
    done = subprocess.run([sys.executable, DOCS / "make_architecture.py", "--check"], timeout=60)
    assert done.returncode == 0, "run python docs/make_architecture.py"


def test_every_page_is_in_the_site():
    told = set(re.findall(r"^([\w/*-]+)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.glob("*.md")} - {"index"}
    pages |= {path.relative_to(DOCS).with_suffix("").as_posix() for path in (DOCS / "reference").glob("*.md")}
    assert pages <= told, f"docs/index.md lacks {sorted(pages - told)}"


def test_every_example_is_in_its_page():
    told = set(re.findall(r"\.\./examples/([\w/.]+)\)", (DOCS / "examples.md").read_text()))
    there = {
        p.relative_to(ROOT / "examples").as_posix() for p in (ROOT / "examples").rglob("*.*") if p.suffix != ".pyc"
    }
    assert told == there


@pytest.mark.parametrize("name", ["architecture.svg", "bench.svg"])
def test_a_picture_loads_nothing_from_elsewhere(name):
    text = (DOCS / "pictures" / name).read_text()
    assert not re.search(r"url\((?!#)|href=\"(?!#)|@import|@font-face|<script|<image", text)
