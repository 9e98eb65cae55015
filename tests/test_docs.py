"""The pages tell what the code does."""

import re
import shutil
import typing
from dataclasses import fields
from pathlib import Path

import pytest

from ort_rknn import _options
from ort_rknn._options import Options, RknnProviderOptions, read_options

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
    """On a machine whose NPU is virtual, beside a model and its twin."""
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


def test_every_option_has_a_row():
    assert list(ROWS) == list(_options._READERS)


def test_the_typed_dict_and_the_maker_know_the_same():
    import inspect

    assert set(typing.get_type_hints(RknnProviderOptions)) == set(_options._READERS)
    assert set(inspect.signature(_options.make_provider_options).parameters) - {"misspelt"} == set(_options._READERS)


@pytest.mark.parametrize("name", [f.name for f in fields(Options) if f.name != "given"])
def test_the_default_is_right(name):
    assert ROWS[name][1] == f"`{getattr(Options(), name)!r}`"


@pytest.mark.parametrize("name", list(_options._READERS))
def test_the_values_are_accepted(name):
    """Those that the type column quotes."""
    for value in re.findall(r'`"([^"`]+)"`', ROWS[name][0]):
        companions = {"pad_axes": [2]} if (name, value) == ("on_missing_shape", "pad") else {}
        assert name in read_options({name: value, **companions}).given


def test_refused_options_are_told():
    (line,) = (paragraph for paragraph in OPTIONS_PAGE.split("\n\n") if paragraph.startswith("Options that other RKNN"))
    assert set(re.findall(r"`(\w+)`", line)) == set(_options._REFUSED)
    for name in _options._REFUSED:
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
