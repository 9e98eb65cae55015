"""Compiles when a session is created: once per ONNX, SoC, toolkit and shapes, into the user's cache.

A result is shared by all processes: the others wait for the lock of the one that compiles. It appears atomically, as a
folder. A refusal by the toolkit is stored too, because it would be the same next time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .._regular import open_regular
from .._version import package_version
from ..files import OnnxFileError, read_onnx
from ..files.compiled_places import CONTEXT_ENDING
from ..files.hashes import sha256_of
from .toolkit import Toolkit, ToolkitError, check_owner, find_toolkit, toolkit_folder

#: In a result's folder: why there is no compiled model.
_REFUSED = "refused.txt"
_LONGEST_REFUSAL = 1 << 16

Say = Callable[[str], None]


class NotCompiled(Exception):
    """There is no compiled model. The message says why, and what to do."""


def compile_on_load(path: str, soc: str, shapes: Mapping[str, tuple[int, ...]], say: Say) -> str:
    """The path of the compiled model of the ONNX at ``path`` for ``soc``: a ``.rknn`` or a model in parts.

    Compiles it if it is not in the cache, which takes from seconds to many minutes; ``say`` is called with each step.
    ``shapes``: of inputs with free axes other than the batch. Raises NotCompiled.
    """
    try:
        toolkit = find_toolkit()
        cache = _cache()
        place = cache / _key(path, soc, shapes, toolkit)
        if not place.is_dir():
            with _locked(cache / f"{place.name}.lock", say):
                if not place.is_dir():
                    _compile(path, soc, shapes, toolkit, place, say)
    except (ToolkitError, OnnxFileError, OSError) as error:
        raise NotCompiled(str(error)) from error
    refusal = place / _REFUSED
    try:
        with open_regular(refusal) as file:
            said = file.read(_LONGEST_REFUSAL).decode(errors="replace")
        raise NotCompiled(f"{said} (remembered: remove {place} to try again)")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise NotCompiled(f"{refusal}: {error}: remove {place} to try again") from error
    for name in (f"*.{soc}.rknn", f"*.{soc}{CONTEXT_ENDING}"):
        for found in place.glob(name):
            return str(found)
    raise NotCompiled(f"{place} holds no compiled model: remove it to try again")


def _cache() -> Path:
    folder = toolkit_folder().parent / "compiled"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_owner(folder)
    return folder


def _key(path: str, soc: str, shapes: Mapping[str, tuple[int, ...]], toolkit: Toolkit) -> str:
    """A key of everything that determines a result: the ONNX with its data files, the target, and the conversion
    settings."""
    folder = os.path.dirname(os.path.abspath(path))
    data = {name: sha256_of(os.path.join(folder, name)) for name in sorted(read_onnx(path).external_data)}
    decides = [
        sha256_of(path),
        os.path.basename(path),
        data,
        soc,
        toolkit.version,
        package_version,
        sorted(shapes.items()),
    ]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    return f"{digest[:32]}.{soc}"


@contextmanager
def _locked(place: Path, say: Say) -> Iterator[None]:
    """Held by one process at a time; the system releases it if that process dies."""
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is compiling it: waiting for that")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compile(
    path: str, soc: str, shapes: Mapping[str, tuple[int, ...]], toolkit: Toolkit, place: Path, say: Say
) -> None:
    """Put the result, or the toolkit's refusal, at ``place``. Requires the lock."""
    try:
        from .convert import ConvertOptions, convert
    except ImportError as error:
        raise NotCompiled(f"compiling takes the package onnx ({error}): pip install 'ort-rknn[convert]'") from error
    from .converter import ConversionError
    from .prepare import PrepareError
    from .shapes import ShapeError

    for left in place.parent.glob(f".{place.name}-*"):  # left by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    fresh = tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent)
    try:
        options = ConvertOptions((soc,), shapes=(dict(shapes),) if shapes else (), out=fresh, with_onnx=False)
        try:
            convert(path, options, toolkit=toolkit, progress=say)
        except ConversionError as refusal:
            if not refusal.log:  # not refused by the toolkit
                raise
            text = " ".join(str(refusal).replace(fresh, str(place)).split())
            Path(fresh, _REFUSED).write_text(text)
        os.replace(fresh, place)
    except ShapeError as error:
        text = str(error).partition(": --shape")[0]
        raise NotCompiled(f"{text}; give it with the provider option convert_shapes") from error
    except (ConversionError, PrepareError) as error:
        raise NotCompiled(str(error)) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
