"""``ort_rknn.doctor()``: runs every check, in the order in which things fail."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..adapter.findings import Finding
from . import check_board, check_model, check_software


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result of :func:`doctor`."""

    findings: tuple[Finding, ...]
    """In the order in which things fail: start with the first failure."""
    model: str | None = None
    """The model that was checked."""

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that keep sessions off the NPU."""
        return tuple(finding for finding in self.findings if finding.state == "failure")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that cost speed or may cause trouble."""
        return tuple(finding for finding in self.findings if finding.state == "warning")

    def as_json(self) -> dict[str, Any]:
        """The members of ``ort-rknn doctor --json``."""
        return {
            "model": self.model,
            "failures": len(self.failures),
            "warnings": len(self.warnings),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def report(self) -> str:
        """A text to send to someone who helps: every finding and the versions, without personal paths."""
        import numpy
        import onnxruntime

        from .._version import package_version

        lines = [
            f"ort-rknn {package_version}, onnxruntime {onnxruntime.__version__}, numpy {numpy.__version__}",
            f"Python {platform.python_version()}, {platform.platform()}",
            "",
        ]
        for finding in self.findings:
            lines.append(f"{finding.state:<8} {finding.check}: {finding.seen}")
            lines += [f"         {text}" for text in (finding.remedy, f"$ {finding.command}") if text not in ("", "$ ")]
        return without_personal("\n".join(lines) + "\n", self.model)


def doctor(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    root: str | os.PathLike[str] = "/",
    machine: str | None = None,
) -> Diagnosis:
    """Find whatever keeps sessions off the NPU, or slows them down. Takes some seconds, changes nothing.

    ``model``: also check what would happen to this .onnx or .rknn file. ``device``: as the provider option. ``root``
    and ``machine`` ("aarch64"): another machine's files, for tests; adapters and sessions still use "/". Raises
    OptionError for a device that does not exist.
    """
    path = None if model is None else os.fspath(model)
    found = _findings(path, device, Path(root), machine or platform.machine())
    return Diagnosis(tuple(found), path)


def _findings(model: str | None, device: str | None, root: Path, machine: str) -> Iterator[Finding]:
    from .._options import read_options
    from .._planning.discovery import query_for, survey
    from ..adapter.plugins import adapters

    query = query_for(read_options({"device": device} if device else {}))
    virtual = (query.device or "").strip().lower().startswith("virtual")
    yield check_software.environment(os.environ)
    runtime = None
    if not virtual:
        first = check_board.machine(machine)
        yield first
        if first.state != "failure":
            for adapter in adapters().values():
                examine = getattr(adapter, "examine", None)
                for finding in examine(query) if examine is not None else ():
                    yield finding
                    if finding.check == "runtime opens" and finding.seen.startswith("version "):
                        runtime = finding.seen.removeprefix("version ")
    yield check_software.vendor_package()
    yield check_software.onnxruntime()
    report = survey(query)
    yield _device(report)
    if report.found and root == Path("/"):
        yield check_software.provider_registers(device)
    yield check_software.compiler()
    yield check_software.cache()
    if not virtual:
        yield check_board.clock(root)
        yield check_board.temperature(root)
        yield check_board.other_users(root)
    if model is not None:
        yield from check_model.examine(model, device, runtime)


def _device(report: Any) -> Finding:
    """The device that a session would use; the reason for none is the same as in the fallback warning."""
    for found in report.found:
        check = getattr(found.adapter, "check", None)
        problem = check(found.device) if check is not None else None
        kind = "virtual NPU" if found.device.virtual else "NPU"
        if problem is not None:
            return Finding("device", "failure", problem.reason, problem.remedy)
        seen = f"{found.device.name}: {kind} with {found.device.cores} core(s), adapter {found.device.adapter}"
        return Finding("device", "ok", seen)
    why = report.why_none()
    return Finding("device", "failure", f"no NPU: {why.reason}", why.remedy, "ort-rknn devices")


def without_personal(text: str, model: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    """``text`` with the user's name, the host's name and personal folders replaced."""
    environ = os.environ if environ is None else environ
    replaced: list[tuple[str, str]] = []
    if model is not None:
        replaced += [
            (folder, "<models>") for folder in (os.path.dirname(os.path.abspath(model)), os.path.dirname(model))
        ]
    replaced += [(environ.get(name, ""), sign) for name, sign in (("HOME", "~"), ("TMPDIR", "<tmp>"))]
    replaced += [(os.path.expanduser("~"), "~"), (os.getcwd(), "<here>")]
    for folder, sign in replaced:
        if len(folder) > 3 and folder.startswith("/"):
            text = re.sub(re.escape(folder.rstrip("/")) + r"(?=[/\s'\",:;)]|$)", sign, text)
    text = re.sub(r"/(home|Users)/[^/\s'\":;,]+", r"/\1/<user>", text)
    for word, sign in ((environ.get("USER", ""), "<user>"), (platform.node(), "<host>")):
        if len(word) > 2 and word != "root":
            text = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", sign, text)
    return text


def summary(diagnosis: Diagnosis) -> str:
    """The last line: the number of findings, and where to start."""
    failures, warnings = len(diagnosis.failures), len(diagnosis.warnings)
    if not failures and not warnings:
        return "Nothing is wrong."
    counts = [f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((failures, "failure"), (warnings, "warning")) if n]
    first = (diagnosis.failures or diagnosis.warnings)[0]
    return f"{' and '.join(counts)}. Begin with: {first.check}."


def listed(findings: Iterable[Finding]) -> Iterator[tuple[Finding, list[str]]]:
    """Each finding with the lines below it."""
    for finding in findings:
        below = [finding.remedy] if finding.remedy and finding.state != "ok" else []
        yield finding, below + ([f"$ {finding.command}"] if finding.command and finding.state != "ok" else [])
