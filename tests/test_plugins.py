"""Adapters of other distributions: what does not load is reported by name, and does not affect the others."""

from __future__ import annotations

import logging
import sys

import pytest

from ort_rknn.adapter import plugins

GOOD = """
from ort_rknn.adapter import Survey, hookimpl

class Adapter:
    name, priority = "{name}", 0
    def find(self, query):
        return Survey()

class Plugin:
    @hookimpl
    def ort_rknn_adapters(self):
        return [Adapter()]

plugin = Plugin()
"""
MODULE = """
from ort_rknn.adapter import Survey, hookimpl

class Adapter:
    name, priority = "{name}", 0
    def find(self, query):
        return Survey()

@hookimpl
def ort_rknn_{hook}():
    return [Adapter()]
"""


@pytest.fixture
def installed(tmp_path, monkeypatch, caplog):
    """Installs modules with entry points in the group ort_rknn; returns the names of the adapters and what was
    logged."""

    def installed(modules, points):
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / "strangers-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
        lines = "".join(f"p{i} = {point}\n" for i, point in enumerate(points))
        (info / "entry_points.txt").write_text(f"[ort_rknn]\n{lines}")
        monkeypatch.syspath_prepend(tmp_path)
        plugins.installed_adapters.cache_clear()
        with caplog.at_level(logging.ERROR, "ort_rknn"):
            found = set(plugins.adapters()) - {"librknnrt", "lite2", "virtual"}
        return found, caplog.text

    yield installed
    plugins.installed_adapters.cache_clear()
    for name in [name for name in sys.modules if name.startswith("stranger_")]:
        del sys.modules[name]


def test_modules_and_objects(installed):
    modules = {"stranger_a": MODULE.format(name="a", hook="adapters"), "stranger_b": GOOD.format(name="b")}
    found, said = installed(modules, ["stranger_a", "stranger_b:plugin"])
    assert found == {"a", "b"}
    assert not said


@pytest.mark.parametrize(
    "module, point, text",
    [
        (MODULE.format(name="x", hook="adapter"), "stranger_x", "unknown hook 'ort_rknn_adapter'"),
        (MODULE.format(name="x", hook="adaptors"), "stranger_x", "unknown hook 'ort_rknn_adaptors'"),
        (GOOD.format(name="x"), "stranger_x:plugins", "has no attribute 'plugins'"),
        (GOOD.format(name="x"), "stranger_x:plugin.more", "has no attribute 'more'"),
        (GOOD.format(name="x"), "stranger_x", "has no function ort_rknn_adapters that is marked with hookimpl"),
        ("def ort_rknn_adapters():\n    return []\n", "stranger_x", "that is marked with hookimpl"),
        ("import nowhere_to_be_found\n", "stranger_x", "ModuleNotFoundError"),
        (MODULE.format(name="x", hook="adapters") + "    raise ValueError('broken')\n", "stranger_x", None),
        ("", "stranger_x.part", "ModuleNotFoundError"),
    ],
)
def test_what_is_misspelled_or_names_nothing(installed, module, point, text):
    module = module.replace("    return [Adapter()]\n    raise", "    raise")
    modules = {"stranger_x": module, "stranger_z": MODULE.format(name="z", hook="adapters")}
    found, said = installed(modules, [point, "stranger_z"])
    assert found == {"z"}
    assert f"plugin {point} of ort_rknn does not load and is ignored: " in said
    assert (text or "ValueError: broken") in said
    assert "stranger_z" not in said
