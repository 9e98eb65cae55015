"""Samples for int8: pictures, arrays or a callable, written to a scratch folder one at a time.

A sample is what a session is fed: before ``mean`` and ``std``, which the toolkit compiles in. The ONNX gets it after
them.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Fit = Literal["stretch", "letterbox"]
Data = str | os.PathLike[str] | Callable[[], Iterable[Any]]
_PICTURES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"))
#: Below this number the scales are a matter of luck. The vendor's guide asks for 20 to 100 and more.
FEW = 20
#: Around a letterboxed picture: the gray that detectors are trained with.
_GRAY = 114


class DataError(ValueError):
    """A sample that cannot be read or does not fit the model. The text names the file and the reason."""


@dataclass(frozen=True, slots=True)
class InputForm:
    """What one input takes."""

    shape: tuple[int, ...]
    """As compiled, in the ONNX's order."""
    dtype: np.dtype[Any]
    """The ONNX's own."""
    mean: tuple[float, ...] | None = None
    """Per channel, in units of the sample."""
    std: tuple[float, ...] | None = None

    def normalized(self, sample: Array) -> Array:
        """What the ONNX gets for ``sample``."""
        if self.mean is not None or self.std is not None:
            axes = (1, -1) + (1,) * (len(self.shape) - 2) if len(self.shape) > 1 else (-1,)
            sample = sample.astype(np.float32) - np.reshape(np.asarray(self.mean or (0.0,), np.float32), axes)
            sample = sample / np.reshape(np.asarray(self.std or (1.0,), np.float32), axes)
        return np.ascontiguousarray(sample, self.dtype)


@dataclass(slots=True)
class Samples:
    """Samples in a folder: a ``.npy`` per sample and input."""

    folder: Path
    forms: Mapping[str, InputForm]
    count: int = 0
    digests: list[str] = field(default_factory=list)
    """SHA-256 of each sample's contents."""

    def path(self, index: int, name: str) -> Path:
        """Where input ``name`` of sample ``index`` lies."""
        return self.folder / f"{index}-{list(self.forms).index(name)}.npy"

    def raw(self, index: int) -> dict[str, Array]:
        """Sample ``index`` as a session is fed it, by input."""
        return {name: np.load(self.path(index, name), allow_pickle=False) for name in self.forms}

    def feed(self, index: int) -> dict[str, Array]:
        """Sample ``index`` as the ONNX is fed it."""
        return {name: self.forms[name].normalized(value) for name, value in self.raw(index).items()}

    def add(self, sample: Mapping[str, Array]) -> None:
        """Take one more."""
        digest = hashlib.sha256()
        for name in self.forms:
            value = sample[name]
            digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
            np.save(self.path(self.count, name), value, allow_pickle=False)
        self.digests.append(digest.hexdigest())
        self.count += 1

    @property
    def notes(self) -> list[str]:
        """What a user should know about them."""
        if self.count >= FEW:
            return []
        return [f"{self.count} samples are few: {FEW} to 100 that look like real inputs give better scales"]


def read_samples(data: Data, forms: Mapping[str, InputForm], folder: str, *, fit: Fit = "stretch") -> Samples:
    """Read ``data`` into ``folder``.

    ``data``: a folder of pictures or of ``.npy`` (one sample a file; one input), a ``.npz`` with an array per input
    whose first axis counts the samples, or a callable that gives samples: a mapping by input name, or the array of the
    one input. ``fit``: how a picture gets the input's size. Raises DataError.
    """
    samples = Samples(Path(folder), forms)
    samples.folder.mkdir(parents=True, exist_ok=True)
    for where, given in _samples_of(data, forms, fit):
        samples.add(_checked(where, given, forms))
    if not samples.count:
        raise DataError(f"{data}: there is no sample in it")
    return samples


def _samples_of(data: Data, forms: Mapping[str, InputForm], fit: Fit) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if callable(data):
        for index, given in enumerate(data()):
            yield f"sample {index}", given if isinstance(given, Mapping) else {_only(forms, "an array"): given}
        return
    path = Path(data)
    if path.suffix == ".npz" and path.is_file():
        yield from _of_npz(path, forms)
        return
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder of pictures or .npy files, or a .npz file")
    files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    arrays = [p for p in files if p.suffix == ".npy"]
    pictures = [p for p in files if p.suffix.lower() in _PICTURES]
    if arrays and pictures:
        raise DataError(f"{path}: it holds both .npy files and pictures; expected one of the two")
    for file in arrays:
        name = _only(forms, "a folder of .npy files")
        yield str(file), {name: _load(file)}
    for file in pictures:
        name = _only(forms, "a folder of pictures")
        yield str(file), {name: _picture(file, forms[name], fit)}
    if not arrays and not pictures:
        raise DataError(f"{path}: neither a picture nor a .npy file is in it")


def _only(forms: Mapping[str, InputForm], what: str) -> str:
    if len(forms) != 1:
        raise DataError(
            f"{what} feeds one input, and the model has {', '.join(forms)}: give a .npz with one array each"
        )
    return next(iter(forms))


def _load(file: Path) -> Array:
    try:
        value = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{file}: it cannot be read as .npy: {error}") from error
    if not isinstance(value, np.ndarray):
        raise DataError(f"{file}: expected one array")
    return value


def _checked(where: str, given: Mapping[str, Any], forms: Mapping[str, InputForm]) -> dict[str, Array]:
    missing = [name for name in forms if name not in given]
    if missing:
        raise DataError(f"{where}: there is no array for input {missing[0]!r}; it has {', '.join(map(str, given))}")
    sample = {}
    for name, form in forms.items():
        value = np.asarray(given[name])
        if form.shape[:1] == (1,) and value.shape == form.shape[1:]:
            value = value[np.newaxis]
        if value.shape != form.shape:
            raise DataError(f"{where}: input {name!r} takes {list(form.shape)}, and this is {list(value.shape)}")
        if value.dtype.kind not in "biuf":
            raise DataError(f"{where}: expected numbers for input {name!r}, and this is {value.dtype}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise DataError(f"{where}: input {name!r} has values that are infinite or not a number")
        sample[name] = value if form.dtype.kind in "bi" and value.dtype == form.dtype else value.astype(np.float32)
    return sample


def _of_npz(path: Path, forms: Mapping[str, InputForm]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Sample by sample: the arrays are never held whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {n[:-4] for n in archive.namelist() if n.endswith(".npy")}
            missing = [name for name in forms if name not in names]
            if missing:
                raise DataError(f"{path}: no array for input {missing[0]!r}; it has {', '.join(sorted(names))}")
            streams = {name: archive.open(f"{name}.npy") for name in forms}
            try:
                heads = {name: _head(stream, f"{path}: {name}") for name, stream in streams.items()}
                counts = {name: shape[0] for name, (shape, _) in heads.items()}
                if len(set(counts.values())) != 1:
                    raise DataError(f"{path}: the inputs differ in their number of samples: {counts}")
                for index in range(next(iter(counts.values()))):
                    yield f"{path}, sample {index}", {n: _next(streams[n], *heads[n]) for n in forms}
            finally:
                for stream in streams.values():
                    stream.close()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise DataError(f"{path}: it cannot be read as .npz: {error}") from error


def _head(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except ValueError as error:
        raise DataError(f"{where}: not an array: {error}") from error
    if not shape or fortran or dtype.hasobject:
        raise DataError(f"{where}: expected numbers in C order whose first axis counts the samples")
    return tuple(shape), dtype


def _next(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("the array is cut off")
    return np.frombuffer(data, dtype).reshape(shape[1:])


def _picture(file: Path, form: InputForm, fit: Fit) -> Array:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError("pictures need Pillow: pip install 'ort-rknn[convert]'") from error
    shape = form.shape
    last = len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)
    channels = shape[3 if last else 1] if len(shape) == 4 else 0
    if channels not in (1, 3) or shape[0] != 1:
        raise DataError(f"{file}: pictures feed an input [1, 3, H, W] or [1, H, W, 3], and this one is {list(shape)}")
    height, width = (shape[1], shape[2]) if last else (shape[2], shape[3])
    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB" if channels == 3 else "L")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise DataError(f"{file}: it cannot be read as a picture: {error}") from error
    picture = _letterboxed(picture, width, height) if fit == "letterbox" else picture.resize((width, height))
    pixels: Array = np.asarray(picture, np.uint8).reshape(1, height, width, channels)
    return pixels if last else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _letterboxed(picture: Any, width: int, height: int) -> Any:
    from PIL import Image

    scale = min(width / picture.width, height / picture.height)
    inner = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    whole = Image.new(picture.mode, (width, height), (_GRAY,) * 3 if picture.mode == "RGB" else _GRAY)
    whole.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return whole


def forms_of(
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype[Any]],
    mean: Sequence[tuple[float, ...]] | None,
    std: Sequence[tuple[float, ...]] | None,
) -> dict[str, InputForm]:
    """The form of every input; ``mean`` and ``std`` in the order of the inputs."""
    return {
        name: InputForm(shape, dtypes[name], mean[i] if mean else None, std[i] if std else None)
        for i, (name, shape) in enumerate(shapes.items())
    }
