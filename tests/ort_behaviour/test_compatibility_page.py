"""docs/compatibility.md is what its script writes."""

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_the_page_is_current():
    text = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    if f"made with onnxruntime {onnxruntime.__version__}." not in text:
        pytest.skip(f"the page lists the names of another release than {onnxruntime.__version__}")
    script = DOCS / "make_compatibility.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
