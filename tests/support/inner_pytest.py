"""pytest inside a test."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

TESTS = Path(__file__).resolve().parents[1]


def run_pytest(tmp_path, file, *arguments, **environment):
    """Run pytest on ``file`` in a separate process, without this project's settings. Returns the tests by class, each
    with its failure ("" if it passed); and the whole output."""
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--rootdir"]
    command += [str(tmp_path), "-c", os.devnull, f"--junitxml={report}", str(file), *arguments]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_RKNN_", "PYTEST_"))}
    environ |= {
        "PYTHONPATH": os.pathsep.join(p for p in [str(TESTS), *sys.path] if p),
        "TMPDIR": str(tmp_path),
        **environment,
    }
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=600)
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        tests = found.setdefault(case.get("classname").rpartition(".")[2], {})
        problems = [child for child in case if child.tag in ("failure", "error", "skipped")]
        tests[case.get("name")] = problems[0].get("message") if problems else ""
    return found, done.stdout + done.stderr
