"""The terminal output in docs/convert.md is what the commands print, with a toolkit that replays the vendor's answers.

WRITE_SCREENS=1 pytest tests/compile/test_convert_page.py    writes them again
"""

import os
import re
import shutil
from pathlib import Path

import pytest

from ort_rknn._cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "convert.md"
SCREEN = re.compile(r"<!-- screen -->\n```text\n(.*?)```\n", re.DOTALL)
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the pages are not here")


def screen(commands, capfd, folder):
    """What a terminal shows: each command and its output, without the test's folder and times."""
    shown = []
    for command in commands:
        program, *argv = command.split()
        assert program == "ort-rknn"
        capfd.readouterr()
        main(argv)
        out, err = capfd.readouterr()
        said = (err + out).replace(f"{folder}{os.sep}", "")
        shown.append(f"$ {command}\n{re.sub(r'[0-9]+[.][0-9] s', '2.1 s', said)}")
    return "\n".join(shown)


def test_the_screens_of_the_page(toolkit, models, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ORT_RKNN_TOOLKIT", toolkit.python)
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    shutil.copy(models / "conv_f16.onnx", "model.onnx")
    made = screen(["ort-rknn convert model.onnx --target rk3588"], capfd, tmp_path)
    text = PAGE.read_text()
    if os.environ.get("WRITE_SCREENS"):
        PAGE.write_text(SCREEN.sub(lambda _: f"<!-- screen -->\n```text\n{made}```\n", text))
        return
    (kept,) = SCREEN.findall(text)
    assert kept == made, "WRITE_SCREENS=1 pytest tests/compile/test_convert_page.py makes them again"
