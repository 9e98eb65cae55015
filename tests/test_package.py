"""What is installed, and what the README promises."""

import importlib
import importlib.metadata
import os
import re
import sys
from pathlib import Path

import pytest

import ort_rknn

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it to Python 3.10

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def distribution():
    try:
        return importlib.metadata.distribution("ort-rknn")
    except importlib.metadata.PackageNotFoundError:
        if os.environ.get("CI"):
            raise
        pytest.skip("ort-rknn is not installed: pip install -e .")


# Metadata ---------------------------------------------------------------------------------------------------------


def test_one_version(distribution):
    from ort_rknn._ep import provider

    version = ort_rknn.package_version
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert distribution.version == version
    assert version.encode() == provider._VERSION
    assert re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_onnxruntimes_version_is_its_own():
    import onnxruntime

    assert ort_rknn.__version__ == onnxruntime.__version__


def test_licence(distribution):
    assert distribution.metadata["License-Expression"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert any(path.name == "LICENSE" for path in distribution.files)


def test_pythons_and_platforms(distribution):
    assert distribution.metadata["Requires-Python"] == ">=3.10"
    assert "Root-Is-Purelib: true" in distribution.read_text("WHEEL")
    assert "Tag: py3-none-any" in distribution.read_text("WHEEL")


def test_what_it_needs(distribution):
    needed = {re.split(r"[^\w-]", text)[0] for text in distribution.requires if "extra ==" not in text}
    assert needed == {"numpy", "onnxruntime", "pluggy"}
    assert set(distribution.metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_entry_points(distribution):
    declared = PROJECT["entry-points"]["ort_rknn"]
    points = {p.name: p for p in distribution.entry_points if p.group == "ort_rknn"}
    assert {name: p.value for name, p in points.items()} == declared
    assert {"librknnrt", "virtual"} <= set(declared)
    for point in points.values():
        brought = list(point.load().ort_rknn_adapters())
        assert brought and all(adapter.name for adapter in brought)
    (script,) = (p for p in distribution.entry_points if p.group == "console_scripts")
    assert script.name == "ort-rknn"
    assert script.load() is importlib.import_module("ort_rknn._cli.main").main


def test_every_package_is_typed(distribution):
    for name in ("ort_rknn", *PROJECT["entry-points"]["ort_rknn"].values()):
        (folder,) = importlib.import_module(name).__path__
        assert (Path(folder) / "py.typed").is_file(), name


# The front page ---------------------------------------------------------------------------------------------------


def test_the_two_commands():
    """CI runs the second one: .ci/run finds it by the mark and its first word."""
    for what, extra in (("demo", "demo"), ("tests", "test")):
        (command,) = re.findall(rf"^<!-- command: {what} -->\n```sh\n(python3 .*)\n```$", README, re.MULTILINE)
        assert command.startswith(f"python3 -m venv .venv && .venv/bin/pip install -q -e '.[{extra},virtual]' && ")
        assert extra in PROJECT["optional-dependencies"]
    assert "<!-- command: tests -->" in (ROOT / ".ci" / "run").read_text()


def test_every_environment_variable_is_documented():
    """Those that the code names are in the README's table, and no others."""
    told = set(re.findall(r"^\| `(ORT_RKNN_\w+)", README, re.MULTILINE))
    read = set()
    for package in ("ort_rknn", *PROJECT["entry-points"]["ort_rknn"].values()):
        for path in Path(importlib.import_module(package).__file__).parent.rglob("*.py"):
            read |= set(re.findall(r"""["'](ORT_RKNN_[A-Z_]+[A-Z])["']""", path.read_text()))
    assert told == read


# The repository ---------------------------------------------------------------------------------------------------

#: Folders without sources.
LEFT_OUT = {".git", ".tox", ".venv", "build", "dist", "__pycache__"}


def _files():
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            f for f in folders if f not in LEFT_OUT and not f.endswith(("_cache", ".egg-info")) and f != ".hypothesis"
        ]
        # .git is a file where the checkout is one of several work trees.
        yield from (Path(folder) / name for name in names if name != ".git")


def test_links_lead_somewhere():
    pages = [path for path in _files() if path.suffix == ".md"]
    assert len(pages) > 5
    for page in pages:
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.relative_to(ROOT)} links to {link}"


def test_nothing_of_a_machine_is_in_the_repository():
    """No host name of a registry, and no path of a developer's machine."""
    strange = [b"pypi" + b".org", b"files." + b"pythonhosted", b"/wo" + b"rk/", b"shar" + b"ed/", b"/roo" + b"t/."]
    searched = 0
    for path in _files():
        content = path.read_bytes()
        searched += 1
        for text in strange:
            assert text not in content, f"{path.relative_to(ROOT)} has {text.decode()!r}"
    assert searched > 100
