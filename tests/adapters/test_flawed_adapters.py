"""The contract's tests find every flaw of the flawed adapters, and none in a correct one."""

from pathlib import Path

import pytest
from support.flawed_suites import FLAWS
from support.inner_pytest import run_pytest

TESTS = Path(__file__).resolve().parents[1]
#: A machine that is busy with other things too.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The result of each test, by flaw."""
    found, _ = run_pytest(tmp_path_factory.mktemp("flawed"), TESTS / "support" / "flawed_suites.py")
    assert len(found) == len(FLAWS)
    return {flaw: found[f"Test{number}"] for number, flaw in enumerate(FLAWS)}


def test_a_sound_adapter_passes(results):
    assert len(results[""]) > 30 and set(results[""].values()) == {""}, results[""]


@pytest.mark.parametrize("flaw", [flaw for flaw in FLAWS if flaw])
def test_a_flaw_is_found(results, flaw):
    for test in FLAWS[flaw]:
        assert results[flaw][test], f"{test} passed"


def test_every_promise_has_a_flaw_that_breaks_it():
    """So that every test of the contract can fail."""
    from ort_rknn.adapter.testing import AdapterContract

    tests = {name for name in vars(AdapterContract) if name.startswith("test_")}
    broken = {test.partition("[")[0] for tests in FLAWS.values() for test in tests}
    assert tests == broken


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pass", "has no cases: an adapter is tested with at least one"),
        ("cases = [DOUBLES]", "needs a fixture 'adapter' that gives the adapter"),
        (
            "cases = [DOUBLES]\n    query = Query(device='doubling')\n"
            "    adapter = pytest.fixture(lambda self: FlawedAdapter())",
            "needs left_open(), which counts what is open",
        ),
    ],
    ids=["cases", "adapter", "left_open"],
)
def test_what_a_subclass_must_say(tmp_path, body, said):
    (tmp_path / "test_mine.py").write_text(
        "import pytest\nfrom support.flawed_adapter import FlawedAdapter\nfrom support.flawed_suites import DOUBLES\n"
        "from ort_rknn.adapter import Query\nfrom ort_rknn.adapter.testing import AdapterContract\n"
        f"class TestMine(AdapterContract):\n    {body}\n"
    )
    _, output = run_pytest(tmp_path, tmp_path / "test_mine.py")
    assert said in output
