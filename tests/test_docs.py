"""The pages describe what the code does."""

import importlib.util
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from ort_rknn import _options
from ort_rknn._options import RknnProviderOptions, read_options
from ort_rknn._options.declared import OPTIONS, Option
from ort_rknn._options.kinds import Integer

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
SNIPPETS = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^<!-- runnable -->\n```python\n(.*?)^```$", page.read_text(), re.M | re.S))
]


def test_there_are_snippets():
    assert len(SNIPPETS) >= 5


@pytest.mark.parametrize("code", SNIPPETS)
def test_the_snippet_runs(code, python, models, tmp_path, monkeypatch):
    """With a virtual NPU, in a folder with a model and its twin."""
    shutil.copy(models / "conv_f16.onnx", tmp_path / "model.onnx")
    shutil.copy(models / "conv_f16.rk3588.rknn", tmp_path / "model.rk3588.rknn")
    monkeypatch.chdir(tmp_path)
    python(code, env={"ORT_RKNN_DEVICE": "virtual:rk3588"}, quiet="fault(" not in code)  # onnxruntime logs errors


# docs/provider-options.md -----------------------------------------------------------------------------------------

OPTIONS_PAGE = (ROOT / "docs" / "provider-options.md").read_text()
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in OPTIONS_PAGE.splitlines()
    if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) == 5
}


def test_the_table_and_what_type_checkers_read_are_current():
    done = subprocess.run([sys.executable, ROOT / "docs" / "make_options.py", "--check"], timeout=60, cwd=ROOT)
    assert done.returncode == 0, "run python docs/make_options.py"
    assert list(ROWS) == list(_options.option_names())
    assert set(typing.get_type_hints(RknnProviderOptions)) == set(_options.option_names())


def test_a_new_option_is_written_everywhere(monkeypatch):
    """By one declaration: into the table, the typed dict, the fields and the keywords."""
    place = importlib.util.spec_from_file_location("make_options", ROOT / "docs" / "make_options.py")
    maker = importlib.util.module_from_spec(place)
    place.loader.exec_module(maker)
    added = Option("frobs", Integer(2), 7, "how many `frobs`, see [x.md](x.md)", honored_by="executor")
    monkeypatch.setattr(maker, "OPTIONS", (*maker.OPTIONS, added))
    assert "| `frobs` | int from 2 | `7` | how many `frobs`, see [x.md](x.md) | executor |\n" in maker.page(
        OPTIONS_PAGE
    )
    text = maker.module(maker.MODULE.read_text())
    for line in ("    frobs: int | str\n", "    frobs: int = 7\n", "    frobs: int | None = None,\n"):
        assert text.count(line) == 1


def test_the_readme_has_the_variables_of_options():
    table = (ROOT / "README.md").read_text().partition("## Environment variables")[2]
    for option in OPTIONS:
        assert f"| `{option.environment}" in table, option.name


@pytest.mark.parametrize("name", _options.option_names())
def test_the_values_are_accepted(name):
    """Those that the type column quotes."""
    for value in re.findall(r'`"([^"`]+)"`', ROWS[name][0]):
        companions = {"pad_axes": [2]} if (name, value) == ("on_missing_shape", "pad") else {}
        assert name in read_options({name: value, **companions}).given


def test_refused_options_are_listed():
    (line,) = (paragraph for paragraph in OPTIONS_PAGE.split("\n\n") if paragraph.startswith("Options that other RKNN"))
    assert set(re.findall(r"`(\w+)`", line)) == set(_options.REFUSED)
    for name in _options.REFUSED:
        with pytest.raises(_options.OptionError, match="not supported"):
            read_options({name: "1"})


# docs/virtual-npu.md ----------------------------------------------------------------------------------------------


def test_the_controls_are_there():
    from ort_rknn_virtual.control import VirtualNpu

    page = (ROOT / "docs" / "virtual-npu.md").read_text()
    told = re.findall(r"^\| `(\w+)", page, re.MULTILINE)
    assert told
    for name in told:
        assert hasattr(VirtualNpu, name), name


def test_the_page_about_speed_names_every_benchmark():
    """And tox runs each."""
    page = (ROOT / "docs" / "performance.md").read_text()
    tox = (ROOT / "tox.ini").read_text()
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"measure", "peer_pairing"}
    assert scripts == set(re.findall(r"benchmarks/(\w+)\.py", page))
    (ours, *_), (peers, *_) = (
        re.findall(rf"for s in ([\w ]+); do python benchmarks/{p}\$s.py", tox) for p in ("", "peer_")
    )
    alone = re.findall(r"^ +python benchmarks/(\w+)\.py$", tox, re.MULTILINE)
    assert scripts == {*ours.split(), *(f"peer_{name}" for name in peers.split()), *alone}
