"""Where other programs, and our converter for models in parts, put compiled models of an ONNX."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .._rknpu import SOC_CORES, SOC_VARIANTS, soc_family, variants_of

__all__ = [
    "confined_path",
    "context_model_names",
    "find_context_models",
    "is_there",
    "onnx_of_place",
    "other_places",
    "pick_in_folder",
    "prefix_and_stem",
    "socs_in_name",
]

#: Suffix of the folder that Ultralytics exports to: ``<stem>_rknn_model/<stem>-<soc>.rknn`` (utils/export/rknn.py).
EXPORT_FOLDER = "_rknn_model"
#: Ending of the names of ONNX models with EPContext nodes: onnxruntime's own.
CONTEXT_ENDING = "_ctx.onnx"
#: The folder in which Immich keeps compiled models: ``rknpu/<soc>/model.rknn`` (immich_ml/models/base.py).
_IMMICH = "rknpu"
_WORD = re.compile(r"[a-z0-9]+", re.ASCII)


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether anything is at ``path``: a file, a link (even a broken one), a folder (containers create one if a file to
    mount does not exist), or something that this user may not access. Reading it gives the exact error."""
    try:
        os.lstat(path)
        return True
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def names_of(soc: str) -> tuple[str, ...]:
    """The SoC's name as given, its family's name, and those of the family's variants."""
    family = soc_family(soc)
    return tuple(dict.fromkeys((soc.lower(), family, *variants_of(family))))


def prefix_and_stem(onnx_path: str | os.PathLike[str]) -> tuple[str, str]:
    """The part of an ONNX's path before its name, and the name without suffix. Paths of files beside it are built from
    these as text, because every session checks some thirty, most of which do not exist. Raises ValueError for a path
    without a name."""
    return _split(os.fspath(onnx_path))


@functools.lru_cache(maxsize=8)
def _split(onnx_path: str) -> tuple[str, str]:
    path = Path(onnx_path)
    if not path.name:
        raise ValueError(f"{path!r} has an empty name")
    return os.fspath(path).removesuffix(path.name), path.stem


def other_places(onnx_path: str | os.PathLike[str], soc: str) -> tuple[str, ...]:
    """Where other programs put the compiled model of an ONNX: Ultralytics ``<stem>_rknn_model/<stem>-<soc>.rknn``,
    Immich ``rknpu/<soc>/<stem>.rknn`` and ``rknpu/<soc>/model.rknn``.

    The last one does not name its ONNX: it counts only if the folder contains no other ONNX.
    """
    prefix, stem = prefix_and_stem(onnx_path)
    paths = [f"{prefix}{stem}{EXPORT_FOLDER}/{stem}-{soc}.rknn", f"{prefix}{_IMMICH}/{soc}/{stem}.rknn"]
    shared = f"{prefix}{_IMMICH}/{soc}/model.rknn"
    if stem != "model" and is_there(shared) and _is_only_onnx(Path(onnx_path)):
        paths.append(shared)
    return tuple(paths)


def _is_only_onnx(path: Path) -> bool:
    try:
        others = [name for name in os.listdir(path.parent) if name.lower().endswith(".onnx")]
    except OSError:
        return False
    return all(name == path.name or name.lower().endswith(CONTEXT_ENDING) for name in others)


def context_model_names(onnx_path: str | os.PathLike[str], soc: str) -> tuple[Path, ...]:
    """Where the model with EPContext nodes of an ONNX is looked for: ``<stem>.<soc>_ctx.onnx``, then
    ``<stem>_ctx.onnx``, which is onnxruntime's default name."""
    own, default = _context_places(*prefix_and_stem(onnx_path), (soc,))
    return Path(own), Path(default)


def _context_places(prefix: str, stem: str, socs: Iterable[str]) -> list[str]:
    return [*(f"{prefix}{stem}.{soc}{CONTEXT_ENDING}" for soc in socs), f"{prefix}{stem}{CONTEXT_ENDING}"]


def find_context_models(onnx_path: str | os.PathLike[str], soc: str) -> list[Path]:
    """The existing ones of :func:`context_model_names`, including the SoC's other names."""
    places = _context_places(*prefix_and_stem(onnx_path), names_of(soc))
    return [Path(path) for path in places if is_there(path)]


def onnx_of_place(rknn_path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Where the ONNX is looked for, given a compiled model at one of :func:`other_places`; () for other models."""
    path = Path(os.path.abspath(rknn_path))
    if path.parent.name.endswith(EXPORT_FOLDER):
        stem = path.parent.name[: -len(EXPORT_FOLDER)]
        return (path.parent.parent / f"{stem}.onnx",) if stem else ()
    if path.parent.parent.name == _IMMICH:
        return (path.parent.parent.parent / f"{path.stem}.onnx",)
    return ()


def pick_in_folder(folder: str | os.PathLike[str], soc: str | None) -> Path | None:
    """The compiled model in a folder exported by Ultralytics: the one for ``soc`` if there is one, else any, which is
    then judged like every other. None if it is not such a folder, or contains none."""
    path = Path(folder)
    if not path.absolute().name.endswith(EXPORT_FOLDER) or not path.is_dir():
        return None
    found = sorted(p for p in path.glob("*.rknn") if is_there(p))
    mine = set(names_of(soc)) if soc else set()
    return next((p for p in found if mine & set(socs_in_name(p.name))), found[0] if found else None)


def socs_in_name(name: str) -> tuple[str, ...]:
    """The names of SoCs and variants that occur as words in a file name."""
    known = {*SOC_CORES, *SOC_VARIANTS}
    return tuple(word for word in _WORD.findall(name.lower()) if word in known)


class OutsideError(ValueError):
    """A path in a model leads out of the model's folder."""


def confined_path(model_path: str, relative: str) -> str:
    """The real path of a file named in a model, if it lies in the model's folder.

    Absolute paths, ``..`` and links out of the folder are refused, because a model is untrusted input. In a hub's
    cache, where both the model and the file are links, the folder is the one that both lead to. Raises OutsideError,
    and FileNotFoundError if there is no such file.
    """
    folder = os.path.realpath(os.path.dirname(os.path.abspath(model_path)))
    bad = not relative or "\0" in relative or os.path.isabs(relative) or ".." in relative.replace("\\", "/").split("/")
    path = "" if bad else os.path.realpath(os.path.join(folder, relative))
    beside = os.path.dirname(os.path.realpath(model_path))
    if bad or (os.path.commonpath([folder, path]) != folder and os.path.dirname(path) != beside):
        raise OutsideError(f"{relative!r} leads out of the model's folder; that is refused")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{relative!r} is not in {folder}")
    return path
