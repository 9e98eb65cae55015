"""Twins: a compiled model beside its ONNX, recognized by name; and whether a compiled model may be used.

A twin is judged by what its file records. What the file does not record is no reason against it.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .._rknpu import SOC_CORES, SOC_VARIANTS, soc_family
from .compiled_places import find_context_models, is_there, names_of, onnx_of_place, other_places, prefix_and_stem
from .origin import Origin, is_stale
from .rknn import RknnFile

__all__ = [
    "NO_RECORD",
    "Verdict",
    "find_twins",
    "for_other_socs",
    "is_there",
    "judge_twin",
    "onnx_twin_names",
    "twin_names",
    "why_unreadable",
]

_SOC_NAME = re.compile(r"[a-z0-9]+", re.ASCII)
_VERSION = re.compile(r"\d+(?:\.\d+)+", re.ASCII)
#: The vendor's examples ship one file for both (folders named RK3566_RK3568).
_SAME_NPU = frozenset(("rk3566", "rk3568"))


#: The note's first words if a compiled model does not record which ONNX it was made from.
NO_RECORD = "the compiled model has no record of its origin"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a compiled model may be used here."""

    fit: bool
    reasons: tuple[str, ...] = ()
    """Why it does not fit, each with what to do about it. () if it fits."""
    notes: tuple[str, ...] = ()
    """What could not be checked, or is worth knowing."""


def twin_names(onnx_path: str | os.PathLike[str], soc: str) -> tuple[Path, ...]:
    """The paths where a compiled twin of an ONNX is looked for, in order: ``model.<soc>.rknn``, ``model-<soc>.rknn``,
    ``model_<soc>.rknn``, ``model.rknn``. Raises ValueError if ``soc`` is not the name of a SoC."""
    prefix, stem = prefix_and_stem(onnx_path)
    return tuple(map(Path, (*_named_after(prefix, stem, _checked(soc)), f"{prefix}{stem}.rknn")))


def _named_after(prefix: str, stem: str, soc: str) -> Iterator[str]:
    return (f"{prefix}{stem}{separator}{soc}.rknn" for separator in ".-_")


def find_twins(onnx_path: str | os.PathLike[str], soc: str) -> list[Path]:
    """The existing compiled models of an ONNX: those of :func:`twin_names` that are named after the SoC, then those in
    the places that other programs use (:func:`~ort_rknn.files.compiled_places.other_places`), ``model.rknn`` last.

    Files named after a variant of the SoC (``model.rk3588s.rknn``) come after those with its own name. A broken link
    and a folder count, because a twin was meant to be there: git-annex keeps files that were not fetched as such links,
    and containers create a folder if a file to mount does not exist. Reading it reports the problem. A twin belongs to
    the ONNX with its own full name, if that exists beside it: ``net_rk3588.rknn`` to ``net_rk3588.onnx``, not to
    ``net.onnx``.
    """
    names = names_of(_checked(soc))
    prefix, stem = prefix_and_stem(onnx_path)
    named = [path for name in names for path in _named_after(prefix, stem, name)]
    named += [path for name in names for path in other_places(onnx_path, name)]
    there = [Path(path) for path in (*named, f"{prefix}{stem}.rknn") if is_there(path)]
    return [p for p in there if p.stem == stem or not os.path.isfile(p.with_suffix(".onnx"))]


def why_unreadable(path: str | os.PathLike[str], error: Exception) -> str:
    """Why a model cannot be read, for people: if a permission is missing, which one, and what to do about it."""
    if not isinstance(error, PermissionError):
        return str(error)
    path = os.path.abspath(path)
    real = os.path.realpath(path)
    link = "" if real == path else f" (a link to {real})"
    folder = os.path.dirname(real)
    if os.access(folder, os.X_OK):
        return f"{path}{link} may not be read by this user: chmod a+r '{real}', or run as its owner"
    return f"{path}{link} lies in a folder that is closed to this user: open {folder} (chmod a+x), or copy the model"


def onnx_twin_names(rknn_path: str | os.PathLike[str], soc: str | None = None) -> tuple[Path, ...]:
    """The paths where the ONNX of a compiled model is looked for: the reverse of :func:`twin_names`.

    ``model.rk3588.rknn``, ``model-rk3588.rknn`` and ``model_rk3588.rknn`` belong to the ONNX with their own full stem
    if there is one, which therefore comes first; else to ``model.onnx``, as ``model.rknn`` does. Every SoC's name is
    recognized, and ``soc`` in addition.
    """
    path = Path(rknn_path)
    stem = path.stem
    for name in (*SOC_VARIANTS, *SOC_CORES, *((_checked(soc),) if soc else ())):
        short = stem[: -len(name) - 1]
        if short and stem.lower().endswith((f".{name}", f"-{name}", f"_{name}")):
            own, shared = path.with_name(f"{stem}.onnx"), path.with_name(f"{short}.onnx")
            first = (own, shared) if os.path.isfile(own) else (shared, own)
            return (*first, *onnx_of_place(path))
    return (path.with_name(f"{stem}.onnx"), *onnx_of_place(path))


def for_other_socs(onnx_path: str | os.PathLike[str], soc: str) -> list[Path]:
    """Compiled models of an ONNX that are named after other SoCs than this one."""
    here = soc_family(_checked(soc))
    others = [other for other in SOC_CORES if other != here]
    found = [path for other in others for path in find_twins(onnx_path, other)]
    found += [path for other in others for path in find_context_models(onnx_path, other)]
    mine = {*find_twins(onnx_path, soc), *find_context_models(onnx_path, soc)}
    return [path for path in dict.fromkeys(found) if path not in mine]


def judge_twin(
    file: RknnFile,
    *,
    soc: str,
    runtime_version: str | None = None,
    onnx_path: str | os.PathLike[str] | None = None,
    rknn_path: str | os.PathLike[str] | None = None,
) -> Verdict:
    """Whether this compiled model may run on ``soc`` with this runtime, in place of the ONNX at ``onnx_path``.

    ``runtime_version`` is the runtime's own text ("2.3.2 (429f97ae6b@...)"); None: unknown. Checks the target, the
    toolkit's version (a newer major.minor than the runtime's does not fit: such runtimes answer "Invalid RKNN model
    version", airockchip/rknn-toolkit2 issues 254 and 281), and, if the model has a record of its origin, whether the
    ONNX is unchanged. ``rknn_path``: where ``file`` was read from, for the advice if it has no record.
    """
    reasons: list[str] = []
    notes: list[str] = []

    targets = tuple(dict.fromkeys(map(soc_family, file.targets)))
    here = soc_family(soc)
    if not targets:
        notes.append("the file does not record its target SoC")
    elif here not in targets:
        if here in _SAME_NPU and _SAME_NPU.intersection(targets):
            notes.append(f"compiled for {', '.join(file.targets)}, whose NPU is the same as that of {soc}")
        else:
            reasons.append(
                f"it was compiled for {', '.join(file.targets)}, this is {soc}: "
                f"convert the ONNX again with target_platform='{here}'"
            )

    _judge_version(file, runtime_version, reasons, notes)

    if onnx_path is not None:
        origin = Origin.parse(file.custom_string)
        if origin is None:
            remedy = f"ort-rknn stamp {_word(onnx_path)} {_word(rknn_path or 'MODEL.rknn')}"
            notes.append(f"{NO_RECORD}: cannot tell whether its ONNX has changed since; `{remedy}` writes one")
        elif (stale := is_stale(origin, onnx_path)) is not None:
            reasons.append(f"it is stale: {stale}; convert the ONNX again")
    return Verdict(not reasons, tuple(reasons), tuple(notes))


def _word(path: str | os.PathLike[str]) -> str:
    """A path quoted for a shell's command line."""
    return shlex.quote(os.fspath(path))


def _judge_version(file: RknnFile, runtime_version: str | None, reasons: list[str], notes: list[str]) -> None:
    made_with = version_of(file.toolkit_version)
    runs_with = version_of(runtime_version)
    if runs_with is None:
        if runtime_version is not None:
            notes.append(f"the runtime's version is not understood: {runtime_version!r}")
        return
    if made_with is None:
        notes.append("the file does not record the version of its toolkit")
    elif made_with[:2] > runs_with[:2]:
        reasons.append(
            f"it was made with rknn-toolkit2 {dotted(made_with)}, newer than the runtime's {dotted(runs_with)}: "
            f"install librknnrt.so {dotted(made_with)} or newer, or convert the ONNX with rknn-toolkit2 "
            f"{dotted(runs_with)}"
        )
        return
    # Container version 6 was introduced with 1.5.2; 1.5.0 refuses it (rockchip-linux/rknn-toolkit2 issue 316).
    if file.format_version == 6 and runs_with < (1, 5, 2):
        reasons.append(
            f"its container version is 6, which the runtime {dotted(runs_with)} refuses: "
            "install librknnrt.so 1.5.2 or newer"
        )


def version_of(text: str | None) -> tuple[int, ...] | None:
    """The first version in a text, as numbers; None if there is none."""
    match = _VERSION.search(text[:256]) if text else None
    return tuple(map(int, match.group().split("."))) if match else None


def dotted(version: tuple[int, ...]) -> str:
    """A version as text."""
    return ".".join(map(str, version))


def _checked(soc: str) -> str:
    name = soc.lower()
    if not _SOC_NAME.fullmatch(name):
        raise ValueError(f"{soc!r} is not a SoC's name such as 'rk3588'")
    return name
