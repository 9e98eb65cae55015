"""Samples for int8: images, arrays or a callable, written to a scratch folder one at a time.

A sample is what a session is fed, before ``mean`` and ``std``, which the toolkit compiles in. The ONNX is fed the
normalized sample.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._arrays import ArrayError, Head, names_in, open_npz, read_head, read_numbers
from .._regular import open_regular
from .shapes import channels

Array = NDArray[Any]
Fit = Literal["stretch", "letterbox"]
Data = str | os.PathLike[str] | Callable[[], Iterable[Any]]
_PICTURES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"))
#: Formats that Pillow may try; by default it would run an external program for some.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_MOST_PIXELS = 1 << 26
#: The maximum number of samples: an archive that is mostly zeros may contain any number.
_MOST_SAMPLES = 100_000
#: Below this number the scales are a matter of luck. The vendor's guide asks for 20 to 100 or more.
FEW = 20
#: The border of a letterboxed image: the gray that detectors are trained with.
_GRAY = 114


class DataError(ValueError):
    """A sample that cannot be read or does not fit the model. The message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class InputForm:
    """What one input accepts."""

    shape: tuple[int, ...]
    """As compiled, in the ONNX's order."""
    dtype: np.dtype[Any]
    """The ONNX's own."""
    mean: tuple[float, ...] | None = None
    """Per channel, in units of the sample."""
    std: tuple[float, ...] | None = None

    @property
    def fed(self) -> tuple[tuple[int, ...], ...]:
        """The shapes that a sample may have: a leading axis of 1 may be missing."""
        return (self.shape, self.shape[1:]) if self.shape[:1] == (1,) else (self.shape,)

    def normalized(self, sample: Array) -> Array:
        """``sample`` as the ONNX is fed it."""
        if self.mean is not None or self.std is not None:
            axes = (1, -1) + (1,) * (len(self.shape) - 2) if len(self.shape) > 1 else (-1,)
            sample = sample.astype(np.float32) - np.reshape(np.asarray(self.mean or (0.0,), np.float32), axes)
            sample = sample / np.reshape(np.asarray(self.std or (1.0,), np.float32), axes)
        return np.asarray(sample, self.dtype, order="C")  # ascontiguousarray would give a scalar an axis


@dataclass(slots=True)
class Samples:
    """Samples in a folder: one ``.npy`` per sample and input."""

    folder: Path
    forms: Mapping[str, InputForm]
    count: int = 0
    digests: list[str] = field(default_factory=list)
    """SHA-256 of each sample's contents."""

    def path(self, index: int, name: str) -> Path:
        """The file of input ``name`` of sample ``index``."""
        return self.folder / f"{index}-{list(self.forms).index(name)}.npy"

    def raw(self, index: int) -> dict[str, Array]:
        """Sample ``index`` as a session is fed it, by input."""
        return {name: np.load(self.path(index, name), allow_pickle=False) for name in self.forms}

    def feed(self, index: int) -> dict[str, Array]:
        """Sample ``index`` as the ONNX is fed it."""
        return {name: self.forms[name].normalized(value) for name, value in self.raw(index).items()}

    def add(self, sample: Mapping[str, Array]) -> None:
        """Add a sample."""
        digest = hashlib.sha256()
        for name in self.forms:
            value = sample[name]
            digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
            np.save(self.path(self.count, name), value, allow_pickle=False)
        self.digests.append(digest.hexdigest())
        self.count += 1

    @property
    def notes(self) -> list[str]:
        """What a user should know about the samples."""
        if self.count >= FEW:
            return []
        return [f"{self.count} samples are few: {FEW} to 100 that look like real inputs give better scales"]


def read_samples(data: Data, forms: Mapping[str, InputForm], folder: str, *, fit: Fit = "stretch") -> Samples:
    """Read ``data`` into ``folder``.

    ``data``: a folder of images or ``.npy`` files (one sample per file; one input), a ``.npz`` with an array per input
    whose first axis counts the samples, or a callable that returns samples: a mapping by input name, or the array of
    the only input. ``fit``: how an image is resized to the input's size. Raises DataError.
    """
    samples = Samples(Path(folder), forms)
    samples.folder.mkdir(parents=True, exist_ok=True)
    for where, given in _samples_of(data, forms, fit):
        if samples.count == _MOST_SAMPLES:
            raise DataError(f"{data}: it has more than {_MOST_SAMPLES} samples")
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
    try:
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}: it cannot be read: {error.strerror or error}") from error
    arrays = [p for p in files if p.suffix == ".npy"]
    pictures = [p for p in files if p.suffix.lower() in _PICTURES]
    if arrays and pictures:
        raise DataError(f"{path}: it holds both .npy files and pictures; expected one of the two")
    for file in arrays:
        name = _only(forms, "a folder of .npy files")
        yield str(file), {name: _load(file, name, forms[name])}
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


def _load(file: Path, name: str, form: InputForm) -> Array:
    try:
        with open_regular(file) as stream:
            head = read_head(stream)
            if head.shape not in form.fed:
                raise _misfit(str(file), name, form, head.shape)
            return read_numbers(stream, head.shape, head)
    except DataError:
        raise
    except (ArrayError, OSError) as error:
        raise DataError(f"{file}: it cannot be read as .npy: {error}") from error


def _checked(where: str, given: Mapping[str, Any], forms: Mapping[str, InputForm]) -> dict[str, Array]:
    missing = [name for name in forms if name not in given]
    if missing:
        raise DataError(f"{where}: there is no array for input {missing[0]!r}; it has {', '.join(map(str, given))}")
    sample = {}
    for name, form in forms.items():
        try:
            value = np.asarray(given[name])
        except ValueError as error:
            raise DataError(f"{where}: expected an array for input {name!r}: {error}") from error
        if value.shape not in form.fed:
            raise _misfit(where, name, form, value.shape)
        if value.dtype.kind not in "biuf":
            raise DataError(f"{where}: expected numbers for input {name!r}, and this is {value.dtype}")
        value = value.reshape(form.shape)
        if not (form.dtype.kind in "bi" and value.dtype == form.dtype):
            with np.errstate(over="ignore", invalid="ignore"):  # values too large for float32 become infinite
                value = value.astype(np.float32)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise DataError(f"{where}: input {name!r} has values that are infinite or not a number")
        sample[name] = value
    return sample


def _misfit(where: str, name: str, form: InputForm, shape: Sequence[int]) -> DataError:
    return DataError(f"{where}: input {name!r} takes {list(form.shape)}, and this is {list(shape)}")


def _of_npz(path: Path, forms: Mapping[str, InputForm]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Reads one sample at a time; the arrays are never held as a whole."""
    try:
        with open_npz(path) as archive:
            names = names_in(archive)
            missing = [name for name in forms if name not in names]
            if missing:
                raise DataError(f"{path}: no array for input {missing[0]!r}; it has {', '.join(sorted(names))}")
            with ExitStack() as opened:
                streams = {name: opened.enter_context(archive.open(f"{name}.npy")) for name in forms}
                heads = {name: _head(stream, f"{path}: {name}") for name, stream in streams.items()}
                counts = {name: head.shape[0] for name, head in heads.items()}
                if len(set(counts.values())) != 1:
                    raise DataError(f"{path}: the inputs differ in their number of samples: {counts}")
                for name, head in heads.items():
                    if head.shape[1:] not in forms[name].fed:
                        raise _misfit(f"{path}, a sample", name, forms[name], head.shape[1:])
                for index in range(next(iter(counts.values()))):
                    yield (
                        f"{path}, sample {index}",
                        {n: read_numbers(streams[n], heads[n].shape[1:], heads[n]) for n in forms},
                    )
    except (ArrayError, OSError) as error:
        if isinstance(error.__cause__, DataError):  # which open_npz takes for an error of the archive
            raise error.__cause__ from None
        raise DataError(f"{path}: it cannot be read as .npz: {error}") from error


def _head(stream: IO[bytes], where: str) -> Head:
    try:
        head = read_head(stream)
    except ArrayError as error:
        raise DataError(f"{where}: not an array: {error}") from error
    if not head.shape or head.fortran:
        raise DataError(f"{where}: expected numbers in C order whose first axis counts the samples")
    return head


def _picture(file: Path, form: InputForm, fit: Fit) -> Array:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("pictures need Pillow: pip install 'ort-rknn[convert]'") from error
    shape = form.shape
    last = len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)
    channels = shape[3 if last else 1] if len(shape) == 4 else 0
    if channels not in (1, 3) or shape[0] != 1:
        raise DataError(f"{file}: pictures feed an input [1, 3, H, W] or [1, H, W, 3], and this one is {list(shape)}")
    height, width = (shape[1], shape[2]) if last else (shape[2], shape[3])
    try:
        with open_regular(file) as stream, Image.open(stream, formats=_FORMATS) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise DataError(f"{file}: {opened.width} x {opened.height} pixels; at most {_MOST_PIXELS} are read")
            picture = opened.convert("RGB" if channels == 3 else "L")
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise anything for a damaged image
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
    """The form of every input; ``mean`` and ``std`` in the order of the inputs. Raises DataError if one of them has
    neither one value nor one per channel."""
    for values, what in ((mean, "mean"), (std, "std")):
        for (name, shape), row in zip(shapes.items(), values or ()):
            count = channels(shape)
            if len(row) not in (1, count):
                raise DataError(f"{what}: input {name!r} has {count} channels, and {len(row)} values are given")
    return {
        name: InputForm(shape, dtypes[name], mean[i] if mean else None, std[i] if std else None)
        for i, (name, shape) in enumerate(shapes.items())
    }
