"""Tests share code in ``tests/support``, and nowhere else."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCES = sorted(
    path for path in TESTS.rglob("*.py") if "fake_toolkit" not in path.parts and "downstream" not in path.parts
)
#: Also inside programs that a test starts.
IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+import\b|import\s+([\w., ]+))", re.MULTILINE)
#: Programs that are run by name, and imported by files in their folder.
PROGRAMS = {"check_release", "check_wheel", "make_onnx", "setup_root"}
#: What a conftest.py may define in addition to fixtures: pytest hooks, and what a hook or a fixture needs.
FOR_FIXTURES = {"Boards"}


def imported(text):
    """The first names of all modules that a source imports, strings included."""
    names = set()
    for one, several in IMPORT.findall(text):
        names.update(name.strip().partition(".")[0].partition(" ")[0] for name in (one or several).split(","))
    return names


def test_the_reader_sees_imports_of_programs_too():
    text = 'import a, b.c\nfrom d.e import f\nCODE = """\n    import g as h\n"""\n'
    assert imported(text) == {"a", "b", "d", "g"}


def test_files_of_tests_import_from_support_only():
    ours = {path.stem for path in SOURCES} - {"__init__"} - PROGRAMS
    wrong = {
        f"{path.relative_to(TESTS)} imports {name}"
        for path in SOURCES
        for name in imported(path.read_text()) & ours
        if name != "support"
    }
    assert not wrong, wrong


def test_no_two_files_of_tests_have_one_name():
    names = [path.name for path in SOURCES if path.name.startswith("test_")]
    assert sorted(set(names)) == sorted(names)


def test_no_tests_in_support():
    assert not list((TESTS / "support").glob("test_*"))


@pytest.mark.parametrize("path", sorted(TESTS.rglob("conftest.py")), ids=lambda path: path.parent.name)
def test_a_conftest_defines_fixtures_and_hooks(path):
    found = [each for each in ast.parse(path.read_text()).body if isinstance(each, (ast.FunctionDef, ast.ClassDef))]
    others = {
        each.name
        for each in found
        if not each.name.startswith("pytest_") and not any("fixture" in ast.dump(d) for d in each.decorator_list)
    }
    assert others <= FOR_FIXTURES, others
