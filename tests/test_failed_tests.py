"""A test that fails does not take others with it."""

import pytest
from support.inner_pytest import run_pytest

LEAVES_SOMETHING = """
import gc
import pytest
gc.disable()
alive = []

class Context:
    def __init__(self):
        alive.append(1)
        self.me = self  # a cycle: only the collector finds it
    def __del__(self):
        alive.pop()

def fail():
    context = Context()
    raise AssertionError("it fails")

seen = []

def test_fails(counted):
    if {always} or not seen:
        seen.append(1)
        fail()

@pytest.fixture
def counted():
    assert not alive

def test_counts(counted):
    pass  # the fixture does
"""


@pytest.mark.parametrize("rerun", [False, True], ids=["once", "again"])
def test_what_a_failed_test_left_is_closed_before_the_next(tmp_path, rerun):
    pytest.importorskip("pytest_rerunfailures")
    again = ["--reruns", "1"] if rerun else ["-p", "no:rerunfailures"]
    file = tmp_path / "test_it.py"
    file.write_text(LEAVES_SOMETHING.format(always=not rerun))
    found, said = run_pytest(tmp_path, file, *again, "-p", "support.failed_tests")
    assert found["test_it"]["test_counts"] == "", said
    assert bool(found["test_it"]["test_fails"]) == (not rerun), said
    without, said = run_pytest(tmp_path, file, *again)
    assert any(without["test_it"].values()), f"without the hook it is closed too: {said}"
