"""Tests that pass only when run again are counted."""

import subprocess
import sys
from pathlib import Path

import pytest

FLAKY = """
import pytest
seen = set()
@pytest.mark.parametrize("n", range({count}))
{mark}
def test_flaky(n):
    if n not in seen:
        seen.add(n)
        raise AssertionError
"""


@pytest.mark.parametrize(
    ("count", "mark", "code"), [(2, "", 0), (3, "", 1), (3, "@pytest.mark.wall_clock", 0)], ids=["2", "3", "timed"]
)
def test_more_than_two_fail_the_run(tmp_path, count, mark, code):
    pytest.importorskip("pytest_rerunfailures")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = wall_clock: timed\n")
    (tmp_path / "test_it.py").write_text(FLAKY.format(count=count, mark=mark))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "support.counted_reruns", "--reruns", "1", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parent)}, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert f"{count} passed" in done.stdout
    assert ("tests were run again" in done.stdout) == (not mark)
