"""Runs all checks on every device, and reports."""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from .._interrupts import start_thread
from .._measure.doctor import doctor, without_personal
from .._planning.discovery import query_for, survey
from ..adapter.contract import Device
from ..adapter.json_output import device_as_json
from .checks import CHECKS
from .subject import Line, Subject

Progress = Callable[[Device, Line], None]
#: Timeout for one check. The longest takes some ten seconds.
SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Tested:
    """One device, through one adapter."""

    device: Device
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The result of :func:`selftest`."""

    tested: tuple[Tested, ...]
    """Empty if no adapter sees a device."""
    reason: str
    """Why there is no device; "" if there is one."""

    @property
    def virtual(self) -> bool:
        """Whether only virtual NPUs were tested, which says nothing about a board."""
        return all(each.device.virtual for each in self.tested)

    @property
    def failures(self) -> tuple[Line, ...]:
        """The checks that failed."""
        return tuple(line for each in self.tested for line in each.lines if line.state == "failure")

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.tested:
            return f"No NPU here: {self.reason}"
        failures = len(self.failures)
        where = "on the VIRTUAL NPU: that says nothing of a board" if self.virtual else "on the NPU"
        return f"{f'{failures} failed' if failures else 'passed'}, {where}"

    def as_json(self) -> dict[str, Any]:
        """The members of ``ort-rknn selftest --json``."""
        return {
            "virtual": self.virtual,
            "verdict": self.verdict,
            "failures": len(self.failures),
            "devices": [
                {
                    "device": device_as_json(each.device),
                    "lines": [asdict(line) for line in each.lines],
                }
                for each in self.tested
            ],
        }

    def report(self) -> str:
        """A text to send: every line, the versions, and the doctor's findings, without personal paths."""
        import onnxruntime

        from .._version import package_version

        lines = [
            f"ort-rknn {package_version}, onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}, "
            f"{platform.platform()}",
            f"selftest: {self.verdict}",
        ]
        for each in self.tested:
            kind = "virtual NPU" if each.device.virtual else "NPU"
            lines += ["", f"{each.device.name}: {kind}, adapter {each.device.adapter}, {each.device.runtime}"]
            lines += [f"  {key}: {value}" for key, value in each.device.details.items()]
            lines += [f"  {line.check:<9} {line.state:<8} {line.seen}" for line in each.lines]
        device = self.tested[0].device.name if self.tested else None
        return without_personal("\n".join(lines)) + "\n\n" + doctor(device=device).report()


def selftest(
    *, device: str | None = None, adapter: str | None = None, quick: bool = False, progress: Progress | None = None
) -> SelfTest:
    """Test what cannot be known without a board, with every adapter that finds a device: whether models load and
    compute what the ONNX computes, core masks, contexts, shapes, and the cost of each layout, core, context and part.
    Takes about a minute; some seconds with ``quick``.

    ``device`` and ``adapter``: as the provider options. ``progress`` is called with each line. ``docs/board.md`` says
    which open question each line answers. A check that takes two minutes is a failure, and later checks are skipped.
    Raises OptionError for a device or an adapter that does not exist.
    """
    from .._options import read_options

    given = {key: value for key, value in (("device", device), ("adapter", adapter)) if value is not None}
    options = read_options(given)
    report = survey(query_for(options), options.adapter)
    tested = []
    for found in report.found:
        lines = []
        for line in _lines(Subject(found, quick)):
            lines.append(line)
            if progress is not None:
                progress(found.device, line)
        tested.append(Tested(found.device, tuple(lines)))
    return SelfTest(tuple(tested), "" if tested else report.why_none().reason)


def _lines(subject: Subject) -> Iterator[Line]:
    if subject.compiled() is None:
        yield Line("numbers", "left out", f"no model for {subject.found.device.soc} comes with the package")
        return
    hangs = ""
    for name, check in CHECKS.items():
        if hangs:
            yield Line(name, "left out", f"{hangs} hangs")
            continue
        line = _bounded(name, check, subject)
        if line is None:
            hangs = name
            line = Line(name, "failure", f"did not come back within {SECONDS:g} s: a call of the runtime hangs")
        yield line


def _bounded(name: str, check: Callable[[Subject], Line], subject: Subject) -> Line | None:
    """The result of ``check``. None if it takes longer than :data:`SECONDS`: its thread is left running."""
    answers: list[Line] = []

    def ask() -> None:
        try:
            answers.append(check(subject))
        except Exception as error:  # any exception of a check on a board is its result
            answers.append(Line(name, "failure", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))

    thread = threading.Thread(target=ask, name=f"ort_rknn selftest {name}", daemon=True)
    start_thread(thread)
    thread.join(SECONDS)
    return answers[0] if answers else None
