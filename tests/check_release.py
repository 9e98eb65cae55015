"""Everything that can be checked before an upload; leaves sdist and wheel in dist/.

    python tests/check_release.py [--draft]

1. The version is defined in one place, and CHANGELOG.md has a dated entry for it (``--draft``: or only [Unreleased]).
2. sdist and wheel are built, inspected, and pass ``twine check --strict``.
3. The long description has no link that a package index cannot follow.
4. The wheel, installed in a fresh environment far from the checkout, runs the demo.

Needs the packages `build` and `twine`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

from check_wheel import ROOT, check_sdist, check_wheel, run, unpack

#: A released version's heading: "## [0.2.0] - 2026-03-01".
_HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)


def main(arguments: list[str]) -> int:
    draft = "--draft" in arguments
    version = the_version()
    problems = [
        *changelog_problems((ROOT / "CHANGELOG.md").read_text(), version, draft=draft),
        *other_versions(version),
    ]
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="ort-rknn-release-") as scratch:
        folder = Path(scratch)
        run(sys.executable, "-m", "build", "--outdir", dist, ROOT, cwd=folder)
        (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=folder)
        check_wheel(wheel)
        check_sdist(unpack(sdist, folder / "sdist"))
        problems += metadata_problems(wheel, version)
        python = folder / "venv" / "bin" / "python"
        run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        run(python, "-m", "pip", "install", "-q", f"{wheel}[demo,virtual]", cwd=folder)
        said = run(folder / "venv" / "bin" / "ort-rknn", "--version", cwd=folder, capture=True)
        if version not in said:
            problems.append(f"ort-rknn --version says {said.strip()!r}, expected {version}")
        run(folder / "venv" / "bin" / "ort-rknn", "demo", cwd=folder)
    for problem in problems:
        print("not ready:", problem)
    print(f"{version}: {len(problems)} problems; {', '.join(sorted(path.name for path in dist.iterdir()))} in dist/")
    return 1 if problems else 0


def the_version() -> str:
    text = (ROOT / "ort_rknn" / "_version.py").read_text()
    (version,) = re.findall(r'^package_version: Final = "([^"]+)"$', text, re.MULTILINE)
    return str(version)


def other_versions(version: str) -> list[str]:
    """Files of the product that carry the version as well."""
    files = [
        ROOT / "pyproject.toml",
        *(p for d in ("ort_rknn", "adapters", "compat") for p in (ROOT / d).rglob("*.py")),
    ]
    again = [p for p in files if p.name != "_version.py" and f'"{version}"' in p.read_text()]
    return [f"{path.relative_to(ROOT)} has the version {version} too" for path in again]


def changelog_problems(text: str, version: str, *, draft: bool = False) -> list[str]:
    """Why CHANGELOG.md is not ready for a release of ``version``; [] if it is."""
    headings = [(found["version"], found["date"]) for found in _HEADING.finditer(text)]
    names = [name for name, _ in headings]
    if not names or names[0] != "Unreleased":
        return ["CHANGELOG.md does not begin with [Unreleased]"]
    body = text.split(f"## [{version}]", 1)[-1].split("\n## [", 1)[0].split("\n", 1)[-1]
    if version not in names:
        if draft:
            return []
        return [f"CHANGELOG.md has no entry [{version}]: give what is under [Unreleased] its version and date"]
    if dict(headings)[version] is None:
        return [f"CHANGELOG.md: the entry [{version}] has no date, expected '## [{version}] - YYYY-MM-DD'"]
    if names[1] != version:
        return [f"CHANGELOG.md: {names[1]} stands above {version}"]
    return [] if body.strip() else [f"CHANGELOG.md: the entry [{version}] is empty"]


def metadata_problems(wheel: Path, version: str) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    found = [] if metadata["Version"] == version else [f"the wheel's version is {metadata['Version']}, not {version}"]
    links = re.findall(r"\]\((?!https?:|#)([^)]*)\)", metadata.get_payload())
    return found + [f"the long description links to {link}, which is not absolute" for link in links]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except subprocess.CalledProcessError as error:
        sys.exit(f"failed: {' '.join(map(str, error.cmd))}")
