"""The page about adapters: its example is a complete plugin, and its table agrees with the lite2 adapter."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adapters.md").read_text()
(EXAMPLE,) = re.findall(r"^<!-- runnable: an adapter -->\n```python\n(.*?)^```$", PAGE, re.M | re.S)
MODELS = ROOT / "tests" / "models"

PROGRAM = """
import sys
sys.path.insert(0, {site!r})
import numpy as np, onnxruntime
import ort_rknn as ort
model = {model!r}
x = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
with ort.InferenceSession(model, provider_options={{"device": "twin"}}) as session:
    assert "adapter twin" in session.explain(), session.explain()
    (y,) = session.run(None, {{"x": x}})
(expected,) = onnxruntime.InferenceSession(model).run(None, {{"x": x}})
assert np.array_equal(y, expected)
try:
    ort.InferenceSession(model, provider_options={{"device": "twin", "layout": "nhwc"}}).run(
        None, {{"x": np.ascontiguousarray(x.transpose(0, 2, 3, 1))}}
    )
except Exception as error:
    print("takes NCHW only" in str(error))
"""


def test_the_example_works_as_an_installed_plugin(tmp_path, python):
    """As installed by pip: a module, and a metadata folder with the page's entry point."""
    (entry,) = re.findall(r"^```toml\n\[project\.entry-points\.ort_rknn\]\n(.*?)^```$", PAGE, re.M | re.S)
    info = tmp_path / "my_twin_adapter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-twin-adapter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ort_rknn]\n" + entry.replace('"', ""))
    (tmp_path / "my_twin_adapter.py").write_text(EXAMPLE)
    said = python(PROGRAM.format(site=str(tmp_path), model=str(MODELS / "conv_f16.onnx")), quiet=False)
    assert said == "True\n"


def test_the_table_has_every_built_in_adapter():
    from ort_rknn.adapter.plugins import adapters

    (header,) = re.findall(r"^\| \| (.*) \|$", PAGE, re.M)
    assert [cell.strip(" `") for cell in header.split("|")] == list(adapters())


@pytest.mark.parametrize("option", ["use_weight_from", "run_timeout_ms"])
def test_what_it_calls_refused_is_refused(option):
    (row,) = [line for line in PAGE.splitlines() if line.startswith("|") and f"(`{option}`)" in line]
    assert [cell.strip() for cell in row.strip("|").split("|")][2] == "refused"
    refused = (ROOT / "adapters" / "ort_rknn_lite2" / "_adapter.py").read_text()
    assert f'"{option}: ' in refused
