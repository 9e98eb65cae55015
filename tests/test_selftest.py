"""``selftest`` on virtual NPUs: it passes there and says so, and fails where the contract is broken."""

import json
import re
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from support.command_json import validate
from support.virtual_sessions import reset_rk3588

import ort_rknn
from ort_rknn._cli.main import main
from ort_rknn._selftest.checks import CHECKS
from ort_rknn._selftest.selftest import selftest
from ort_rknn._selftest.subject import MODELS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def ours_only(monkeypatch):
    monkeypatch.setenv("ORT_RKNN_NO_PLUGINS", "1")


npu = pytest.fixture(reset_rk3588)


def lines(found):
    (tested,) = found.tested
    return {line.check: line for line in tested.lines}


@pytest.mark.parametrize("soc", ["rk3588", "rk3576", "rk3562", "rk3566", "rk3568", "rv1126b"])
def test_it_passes_on_a_virtual_npu_and_says_so(soc):
    found = ort_rknn.selftest(device=f"virtual:{soc}", quick=True)
    assert found.failures == ()
    assert list(lines(found)) == list(CHECKS)
    assert found.virtual and found.verdict == "passed, on the VIRTUAL NPU: that says nothing of a board"
    assert (lines(found)["cores"].state == "left out") == (soc not in ("rk3588", "rk3576"))
    assert (lines(found)["shapes"].state == "left out") == (soc != "rk3588")
    assert "child and parent work" in lines(found)["forked"].seen


def test_nothing_stays_open(npu):
    selftest(device="virtual:rk3588", quick=True)
    counters = npu.counters()
    assert (counters.contexts, counters.models, counters.misuses) == (0, 0, 0)


def test_masks_and_contexts_are_reported(npu):
    found = lines(selftest(device="virtual:rk3588", quick=True))
    assert "0x5 code -5" in found["masks"].seen and "0x7 runs" in found["masks"].seen
    assert "9: " in found["contexts"].seen
    assert "low runs" in found["priority"].seen


def test_a_crossing_is_what_one_more_part_costs_and_not_the_call(npu, monkeypatch):
    seen = []

    def rounds_ms(self, calls):
        counted = [sum(npu.counters().runs)]
        for call in calls:
            call()
            counted.append(sum(npu.counters().runs))
        seen.append([after - before for before, after in pairwise(counted)])
        return [[1.5, 5.9, 1.0]] * 3  # 0.5 ms of a call are not a part's

    monkeypatch.setattr("ort_rknn._selftest.subject.Subject.rounds_ms", rounds_ms)
    line = lines(selftest(device="virtual:rk3588", quick=True))["crossing"]
    assert line.seen.startswith("one more part 1.100 ms, 100 us above the runtime's own 1.000 ms; setting inputs takes")
    assert seen == [[1, 5, 1]]


def test_a_core_that_does_not_run_is_a_failure(npu):
    npu.fault("rknn_set_core_mask", -5)
    found = selftest(device="virtual:rk3588", quick=True)
    assert lines(found)["masks"].state == "failure"
    assert found.verdict.endswith("failed, on the VIRTUAL NPU: that says nothing of a board")


def test_a_call_that_hangs_ends_the_test_and_not_the_program(npu, monkeypatch):
    monkeypatch.setattr("ort_rknn._selftest.selftest.SECONDS", 1.0)
    npu.run_time_us = 3_000_000
    try:
        found = lines(selftest(device="virtual:rk3588", quick=True))
    finally:
        npu.run_time_us = 0
    states = [found[name].state for name in CHECKS]
    assert states.count("failure") == 1
    first = states.index("failure")
    assert "did not come back within 1 s" in found[list(CHECKS)[first]].seen
    assert set(states[first + 1 :]) == {"left out"}
    left = [thread for thread in threading.enumerate() if thread.name.startswith("ort_rknn selftest")]
    for thread in left:
        thread.join(60)
    assert left and not any(thread.is_alive() for thread in left)


def test_wrong_numbers_are_a_failure(npu, monkeypatch):
    """The pattern of a virtual NPU without the ONNX: the signature is right and the numbers are not."""
    monkeypatch.setenv("ORT_RKNN_VIRTUAL_COMPUTE", "pattern")
    found = lines(selftest(device="virtual:rk3588", quick=True))
    assert found["numbers"].state == "failure" and "away from the ONNX's numbers" in found["numbers"].seen
    for name in ("contexts", "shapes", "layouts", "priority", "stamped"):
        assert found[name].state == "failure", name


def test_the_report_is_one_file_without_personal_paths(npu, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "board.txt"
    assert main(["selftest", "--device", "virtual:rk3588", "--quick", "--report", str(path)]) == 0
    text = path.read_text()
    assert "selftest: passed, on the VIRTUAL NPU" in text and "device" in text
    assert str(tmp_path) not in text
    out = capsys.readouterr().out
    assert "VIRTUAL" in out.splitlines()[-2] and str(path) in out.splitlines()[-1]


def test_without_a_device_it_is_a_finding(monkeypatch, capsys):
    monkeypatch.setenv("ORT_RKNN_RUNTIME_LIBRARY", "/nowhere/librknnrt.so")
    assert main(["selftest", "--json"]) == 1
    found = validate("selftest", capsys.readouterr().out)
    assert found["devices"] == [] and found["verdict"].startswith("No NPU here: ")
    assert json.dumps(found)


def test_the_page_names_the_line_that_answers_each_question():
    page = (ROOT / "docs" / "board.md").read_text()
    named = set(re.findall(r"\| `(\w+)` \|$", page.replace("| `selftest` |", ""), re.MULTILINE))
    assert named and named <= set(CHECKS)
    for name in CHECKS:
        assert f"`{name}`" in page or name == "numbers", name


def test_the_models_are_the_tests_own():
    for path in MODELS.iterdir():
        again = ROOT / "tests" / "models" / path.name
        assert not again.exists() or again.read_bytes() == path.read_bytes(), path.name
