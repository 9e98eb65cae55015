"""The benchmarks stay runnable: each runs for a moment, with bars that only something broken misses."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
#: Not the measuring itself, and what needs more than the tests do: the peer (tox -e peer), Ray (tox -e cluster).
SCRIPTS = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if path.stem not in ("measure", "cluster") and not path.stem.startswith("peer_")
)


def test_every_benchmark_is_known():
    assert SCRIPTS == [
        "callers",
        "cpu_overhead",
        "idle_sessions",
        "import_time",
        "keeping_busy",
        "latency",
        "memory",
        "npu_memory",
        "parts",
        "scaling",
        "stats",
    ]


@pytest.mark.wall_clock
@pytest.mark.parametrize("name", SCRIPTS)
def test_each_benchmark_runs(name):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", "--quick"], env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines
    assert all(line.startswith("ok ") and "(bar: " in line for line in lines)


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("measure", FOLDER / "measure.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "measure", module)
    spec.loader.exec_module(module)
    return module


def test_a_missed_bar_is_exit_code_1(measure, capsys):
    verdict = measure.Verdict()
    verdict.hold("a run takes 1 us", True, "at most 2 us")
    assert verdict.end() == 0
    verdict.hold("a run takes 3 us", False, "at most 2 us")
    assert verdict.end() == 1
    assert capsys.readouterr().out.splitlines()[1].startswith("MISSED a run takes 3 us")


@pytest.mark.wall_clock
def test_paired_shows_which_is_slower(measure):
    def slow():
        sum(range(20_000))

    def quick():
        sum(range(2_000))

    seen = measure.paired(slow, quick, turns=9, calls=20)
    assert seen.ratio > 3
    assert seen.ours > seen.least_ours * 0.99 > seen.least_reference
    assert seen.difference > 0
