"""What ``tox -e release`` checks: the changelog's entry, and the README on a package index."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def release(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    import check_release

    yield check_release
    for name in ("check_release", "check_wheel"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("## [Unreleased]\n\n## [1.2.0] - 2026-01-31\n\n- new\n", None),
        ("## [Unreleased]\n\n- new\n", "no entry [1.2.0]"),
        ("## [1.2.0] - 2026-01-31\n\n- new\n", "does not begin with [Unreleased]"),
        ("## [Unreleased]\n\n## [1.2.0]\n\n- new\n", "has no date"),
        ("## [Unreleased]\n\n## [1.2.0] - 2026-01-31\n\n## [1.1.0] - 2025-01-31\n\n- old\n", "is empty"),
        ("## [Unreleased]\n\n## [1.3.0] - 2026-02-01\n\n- x\n\n## [1.2.0] - 2026-01-31\n\n- y\n", "1.3.0 stands above"),
    ],
)
def test_the_changelog_is_judged(release, text, problem):
    found = release.changelog_problems(text, "1.2.0")
    assert (found == []) if problem is None else (len(found) == 1 and problem in found[0])


def test_a_draft_may_be_unreleased(release):
    assert release.changelog_problems("## [Unreleased]\n\n- new\n", "1.2.0", draft=True) == []


def test_our_changelog_is_fit_for_a_draft(release):
    assert release.changelog_problems((ROOT / "CHANGELOG.md").read_text(), release.the_version(), draft=True) == []


def test_the_version_is_in_one_place(release):
    import ort_rknn

    if not (ROOT / "ort_rknn").exists():
        pytest.skip("the sources are not beside the tests")
    assert release.the_version() == ort_rknn.package_version
    assert release.other_versions(release.the_version()) == []


README = "[a](docs/a.md#b) ![p](docs/p.svg) [c](https://example.org/c) [d](#d)"


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        (None, "a  [c](https://example.org/c) [d](#d)"),
        (
            "https://example.org/r/",
            "[a](https://example.org/r/blob/v1.2.0/docs/a.md#b) ![p](https://example.org/r/raw/v1.2.0/docs/p.svg)"
            " [c](https://example.org/c) [d](#d)",
        ),
    ],
)
def test_the_readme_on_an_index(repository, said):
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.for_an_index(README, repository, "1.2.0") == said
