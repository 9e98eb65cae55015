"""A toolkit that replays the vendor's answers: an interpreter with a fake ``rknn`` package."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ort_rknn._compile.toolkit import find_toolkit

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def toolkit_python(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toolkit") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "fake.pth").write_text(f"{HERE / 'fake_toolkit'}\n{sysconfig.get_path('purelib')}\n")
    info = site / "rknn_toolkit2-2.5.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rknn-toolkit2\nVersion: 2.5.0\n")
    return str(folder / "bin" / "python")


@pytest.fixture
def toolkit(toolkit_python, models, monkeypatch):
    monkeypatch.setenv("FAKE_TOOLKIT_MODELS", str(models))
    monkeypatch.delenv("ORT_RKNN_TOOLKIT", raising=False)
    return find_toolkit(toolkit_python)
