"""Whether a compiled model is still good, in onnxruntime's terms (``OrtCompiledModelCompatibility``).

``session.fail_on_suboptimal_compiled_model`` makes the second value as bad as the third. onnxruntime's Python sessions
never ask a provider, so our sessions judge when a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from .rknn import RknnFile
from .twins import dotted, judge_twin, version_of

__all__ = [
    "FAIL_ON_SUBOPTIMAL",
    "NOT_APPLICABLE",
    "OPTIMAL",
    "PREFER_RECOMPILATION",
    "UNSUPPORTED",
    "Compatibility",
    "compatibility",
    "info_text",
    "parse_info",
]

FAIL_ON_SUBOPTIMAL = "session.fail_on_suboptimal_compiled_model"
NOT_APPLICABLE, OPTIMAL, PREFER_RECOMPILATION, UNSUPPORTED = range(4)
_WORDS = ("EP_NOT_APPLICABLE", "EP_SUPPORTED_OPTIMAL", "EP_SUPPORTED_PREFER_RECOMPILATION", "EP_UNSUPPORTED")
_SCHEME = "rknn"
#: Required by runtimes of newer toolkits: airockchip/rknn-toolkit2 issue 138.
_OLDEST_DRIVER = (0, 9, 6)
_SINCE_TOOLKIT = (2, 0)
_LONGEST = 1024


@dataclass(frozen=True, slots=True)
class Compatibility:
    """A verdict: its number in onnxruntime, and what prevents a better one."""

    level: int
    reasons: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """onnxruntime's name for it: "EP_SUPPORTED_OPTIMAL"."""
        return _WORDS[self.level]

    def __str__(self) -> str:
        return f"{self.word}: {'; '.join(self.reasons)}" if self.reasons else self.word


def compatibility(
    file: RknnFile, *, soc: str, runtime: str | None = None, driver: str | None = None, loaded: bool = False
) -> Compatibility:
    """The verdict on a compiled model for ``soc``, given what is known about the versions of the runtime and the
    driver.

    ``loaded``: the runtime accepted it, so a version mismatch is only a reason to recompile it.
    """
    target = judge_twin(file, soc=soc)
    if not target.fit:
        return Compatibility(UNSUPPORTED, target.reasons)
    verdict = judge_twin(file, soc=soc, runtime_version=runtime)
    if not verdict.fit and not loaded:
        return Compatibility(UNSUPPORTED, verdict.reasons)
    reasons = list(verdict.reasons)
    made_with, runs_with, has_driver = (version_of(text) for text in (file.toolkit_version, runtime, driver))
    if (
        verdict.fit
        and made_with is not None
        and runs_with is not None
        and made_with[0] > 0
        and made_with[:2] < runs_with[:2]
    ):
        reasons.append(
            f"it was made with rknn-toolkit2 {dotted(made_with)}, older than the runtime {dotted(runs_with)}: convert "
            "the ONNX again with the runtime's version"
        )
    if has_driver is not None and has_driver < _OLDEST_DRIVER and made_with is not None and made_with >= _SINCE_TOOLKIT:
        reasons.append(
            f"the NPU's driver is {dotted(has_driver)}, and models of rknn-toolkit2 2.0 and later want "
            f"{dotted(_OLDEST_DRIVER)}: update the board's system"
        )
    return Compatibility(PREFER_RECOMPILATION if reasons else OPTIMAL, tuple(reasons))


def info_text(file: RknnFile) -> str:
    """The text that onnxruntime keeps in a written model's metadata, to be read by :func:`parse_info`."""
    fields = {"target": ",".join(file.targets), "toolkit": dotted(version_of(file.toolkit_version) or ())}
    fields["container"] = str(file.format_version)
    return ";".join((_SCHEME, *(f"{key}={value}" for key, value in fields.items() if value)))


def parse_info(text: str) -> RknnFile | None:
    """The inverse of :func:`info_text`; None for a text that is not ours."""
    scheme, *pairs = text[:_LONGEST].split(";")
    if scheme.strip() != _SCHEME:
        return None
    fields = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    container = fields.get("container", "")
    return RknnFile(
        size=0,
        format_version=int(container) if container.isascii() and container.isdigit() and len(container) < 9 else None,
        encrypted=False,
        targets=tuple(name for name in fields.get("target", "").lower().split(",") if name),
        toolkit_version=fields.get("toolkit"),
        compiler=None,
        framework=None,
        custom_string=None,
        batch=1,
        dynamic=False,
        inputs=(),
        outputs=(),
        shape_sets=(),
        output_shape_sets=(),
        unknown=(),
    )
