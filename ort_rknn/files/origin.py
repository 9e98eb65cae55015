"""The record of a compiled model's origin: which ONNX it was made from, and whether that ONNX has changed since.

It is stored in the .rknn's custom string, as JSON under a key of its own. The toolkit accepts custom strings shorter
than 1,024 (seen with rknn-toolkit2 2.5.0); the record is ASCII, so that characters and bytes are the same.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .hashes import sha256_of
from .onnx_model import OnnxFileError, read_onnx

__all__ = ["CUSTOM_STRING_LIMIT", "FileRecord", "Origin", "is_stale"]

#: A custom string must be shorter than this.
CUSTOM_STRING_LIMIT = 1024
_KEY = "ort_rknn_origin"
_VERSION = 1
#: More external data files than this are recorded as one.
_EXTERNAL_LIMIT = 4
_HASH_LENGTH = 64


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The recorded state of a file: name relative to the ONNX's folder, size in bytes, mtime in ns, sha256 in hex."""

    name: str
    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Origin:
    """The ONNX that a compiled model was made from, in its state at that time."""

    onnx_name: str
    """The file name without its folder."""
    size: int
    mtime_ns: int
    sha256: str
    """Of the file's contents, 64 lower-case hex digits."""
    external: tuple[FileRecord, ...] = ()
    """The files that hold its weights. More than four are combined into one record with the name "": the sum of their
    sizes, the sum of their mtimes, and the sha256 over each file's name and sha256."""
    toolkit: str = ""
    """Version of the converter: "2.5.0"."""
    options: str = ""
    """The conversion's options, or their hash; for people and as part of a cache key, never interpreted here."""
    independent: bool | None = None
    """Whether the samples along the first axis are independent, so that a call may be split into runs, as stated by
    whoever made the record. None: not stated."""
    version: int = _VERSION
    """Version of the record's format."""

    @classmethod
    def of(
        cls,
        onnx_path: str | os.PathLike[str],
        *,
        toolkit: str = "",
        options: str = "",
        independent: bool | None = None,
    ) -> Origin:
        """The record of an ONNX in its current state. Reads it, and its external data, completely.

        Raises OSError if a file cannot be read, OnnxFileError if it is not an ONNX model or names external data outside
        its folder.
        """
        path = Path(onnx_path)
        own = _record(path, path.name)
        names = read_onnx(path).external_data
        for name in names:
            if not _is_inside(name):
                raise OnnxFileError(f"{path}: its external data {name!r} lies outside the model's folder")
        external = tuple(_record(path.parent / name, name) for name in names)
        if len(external) > _EXTERNAL_LIMIT:
            external = (_combine(external),)
        return cls(own.name, own.size, own.mtime_ns, own.sha256, external, toolkit, options, independent)

    def to_custom_string(self, others: Mapping[str, object] | None = None) -> str:
        """The record as a custom string for the converter. ``others``: further content of the custom string.

        Raises ValueError if it would not be shorter than 1,024 characters; the message says what to shorten.
        """
        import json

        record: dict[str, object] = {
            "v": self.version,
            "onnx": [self.onnx_name, self.size, self.mtime_ns, self.sha256],
        }
        if self.external:
            record["external"] = [[file.name, file.size, file.mtime_ns, file.sha256] for file in self.external]
        if self.toolkit:
            record["toolkit"] = self.toolkit
        if self.options:
            record["options"] = self.options
        if self.independent is not None:
            record["independent"] = self.independent
        text = json.dumps({**(others or {}), _KEY: record}, separators=(",", ":"))
        if len(text) >= CUSTOM_STRING_LIMIT:
            longest = max(
                (len(json.dumps(self.options)), f"the options (give their hash instead): {self.options[:40]!r}..."),
                (len(json.dumps(self.onnx_name)), f"the ONNX's file name: {self.onnx_name[:40]!r}..."),
                *((len(json.dumps(file.name)) + 1, f"the file name {file.name[:40]!r}...") for file in self.external),
            )[1]
            raise ValueError(
                f"the record of the model's origin has {len(text)} characters, a custom string must have fewer than "
                f"{CUSTOM_STRING_LIMIT}; shorten {longest}"
            )
        return text

    @staticmethod
    def parse(custom_string: str | None) -> Origin | None:
        """The record in a custom string; None if there is none that can be read. Never raises."""
        if not custom_string or len(custom_string) > 4 * CUSTOM_STRING_LIMIT or _KEY not in custom_string:
            return None
        from .._json import JsonError, parse_json

        try:
            whole = parse_json(custom_string)
        except JsonError:
            return None
        record = whole.get(_KEY) if isinstance(whole, dict) else None
        if not isinstance(record, dict) or record.get("v") != _VERSION:
            return None
        own = _parse_file(record.get("onnx"))
        entries = record.get("external", [])
        if own is None or not own.name or not isinstance(entries, list):
            return None
        external = tuple(file for file in map(_parse_file, entries) if file is not None)
        if len(external) != len(entries) or (len(external) > 1 and not all(file.name for file in external)):
            return None
        toolkit, options = record.get("toolkit", ""), record.get("options", "")
        independent = record.get("independent")
        if not isinstance(toolkit, str) or not isinstance(options, str) or not isinstance(independent, bool | None):
            return None
        return Origin(own.name, own.size, own.mtime_ns, own.sha256, external, toolkit, options, independent)

    @staticmethod
    def others_in(custom_string: str | None) -> dict[str, object] | None:
        """The content of a custom string besides the record; None if it is not a JSON object, so that no record can be
        added."""
        from .._json import JsonError, parse_json

        if not custom_string:
            return {}
        try:
            whole = parse_json(custom_string)
        except JsonError:
            return None
        return {key: value for key, value in whole.items() if key != _KEY} if isinstance(whole, dict) else None


def is_stale(origin: Origin, onnx_path: str | os.PathLike[str]) -> str | None:
    """Why the ONNX is no longer what it was when ``origin`` was recorded; None if it is unchanged.

    Compares sizes and mtimes. Only if the sizes are equal, and an mtime differs or is in whole seconds, is the file
    read and hashed, once (see :mod:`ort_rknn.files.hashes`). The names of the ONNX and of its folder do not matter.
    """
    path = Path(onnx_path)
    try:
        own = FileRecord(origin.onnx_name, origin.size, origin.mtime_ns, origin.sha256)
        reason = _difference(own, path)
        if reason is not None:
            return reason
        if len(origin.external) == 1 and not origin.external[0].name:
            return _combined_difference(origin.external[0], path)
        for file in origin.external:
            reason = _difference(file, path.parent / file.name)
            if reason is not None:
                return reason
    except (OSError, ValueError) as problem:
        return f"it cannot be compared with the ONNX that it was made from: {problem}"
    return None


def _difference(file: FileRecord, path: Path) -> str | None:
    info = _regular(path)
    if info.st_size != file.size:
        return f"{path.name} has {info.st_size} bytes, it had {file.size} when the compiled model was made"
    if not (_same_time(info, file) or sha256_of(path) == file.sha256):
        return f"{path.name} has other contents than when the compiled model was made (same size, another sha256)"
    return None


def _same_time(info: os.stat_result, file: FileRecord) -> bool:
    return info.st_mtime_ns == file.mtime_ns and not _whole_seconds(info)


def _whole_seconds(info: os.stat_result) -> bool:
    """Whether the mtime may have been set: archives and image builders give the same one to every version."""
    return info.st_mtime_ns % 10**9 == 0


def _combined_difference(combined: FileRecord, path: Path) -> str | None:
    names = read_onnx(path).external_data
    if not all(map(_is_inside, names)):
        return f"{path.name} names external data outside its folder"
    infos = [_regular(path.parent / name) for name in names]
    size = sum(info.st_size for info in infos)
    if size != combined.size:
        return f"the external data of {path.name} has {size} bytes, it had {combined.size}"
    exact = not any(map(_whole_seconds, infos))
    if exact and sum(info.st_mtime_ns for info in infos) == combined.mtime_ns:
        return None
    if _combine([_record(path.parent / name, name) for name in names]).sha256 != combined.sha256:
        return f"the external data of {path.name} has other contents than when the compiled model was made"
    return None


def _record(path: Path, name: str) -> FileRecord:
    info = _regular(path)
    return FileRecord(name, info.st_size, info.st_mtime_ns, sha256_of(path))


def _combine(files: Sequence[FileRecord]) -> FileRecord:
    from hashlib import sha256

    digest = sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + file.sha256.encode() + b"\0")
    mtimes = sum(file.mtime_ns for file in files)
    return FileRecord("", sum(file.size for file in files), mtimes, digest.hexdigest())


def _regular(path: Path) -> os.stat_result:
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise OSError(f"{path} is not a regular file")
    return info


def _is_inside(name: str) -> bool:
    """Whether ``name`` is a relative path that stays in its folder, judging by its spelling."""
    parts = name.replace("\\", "/").split("/")
    return bool(name) and "\0" not in name and not os.path.isabs(name) and parts[0] != "" and ".." not in parts


def _parse_file(value: object) -> FileRecord | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    name, size, mtime_ns, digest = value
    if not isinstance(name, str) or (name and not _is_inside(name)):
        return None
    if type(size) is not int or type(mtime_ns) is not int or size < 0:
        return None
    if not isinstance(digest, str) or len(digest) != _HASH_LENGTH or digest.strip("0123456789abcdef"):
        return None
    return FileRecord(name, size, mtime_ns, digest)
