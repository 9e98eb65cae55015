"""Saves models with EPContext nodes: where their compiled models are stored, and what the nodes of a model in parts
contain."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .._regular import new_beside
from . import _onnx_proto as proto
from . import _onnx_write as onnx
from ._wire import BYTES, WireError, WireReader, bytes_field
from .onnx_model import OnnxFileError

__all__ = ["Content", "compiled_file", "put", "with_contents"]

_REPLACED = frozenset(("embed_mode", "ep_cache_context"))


class _HasPath(Protocol):
    @property
    def path(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Content:
    """The content of an EPContext node."""

    embed: bool
    context: bytes
    """The compiled model, or its path relative to the model."""


def compiled_file(target: str, source: _HasPath, content: Callable[[], bytes], name: str) -> bytes:
    """The path of a compiled model relative to the model ``target`` that names it: its own path if it lies in that
    folder, else that of a copy ``<target's stem>.<name>.rknn``. Raises OSError if it cannot be written."""
    folder = os.path.dirname(target)
    if source.path is not None:
        relative = os.path.relpath(os.path.realpath(source.path), os.path.realpath(folder))
        if not relative.startswith(os.pardir):
            return relative.replace(os.sep, "/").encode("utf-8", "surrogateescape")
    word = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[-60:]
    place = f"{os.path.splitext(os.path.basename(target))[0]}.{word}.rknn"
    put(os.path.join(folder, place), content(), replace=True)
    return place.encode("utf-8", "surrogateescape")


def put(place: str, content: bytes, *, replace: bool) -> None:
    """Write a file completely or not at all. Raises FileExistsError if it exists and is not to be replaced."""
    descriptor, fresh = new_beside(place, f".{os.path.basename(place)}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(fresh, 0o644)
        if replace:
            os.replace(fresh, place)
        else:
            os.link(fresh, place)
    finally:
        if os.path.exists(fresh):
            os.unlink(fresh)


def with_contents(data: bytes, contents: Sequence[Content]) -> bytes:
    """The model ``data`` with ``contents`` in the EPContext nodes of its main graph, in the file's order.

    Raises OnnxFileError for a damaged model, ValueError if the number of such nodes differs.
    """
    left = list(contents)
    reader = WireReader(data, proto.FIELD_LIMIT)
    out: list[bytes] = []
    try:
        for number, kind, begin, first, last in reader.whole_fields(0, len(data)):
            if number == proto.MODEL_GRAPH and kind == BYTES:
                out.append(bytes_field(number, _graph(reader, data, first, last, left)))
            else:
                out.append(data[begin:last])
    except WireError as problem:
        raise OnnxFileError(f"a damaged ONNX model; {problem}") from None
    if left:
        raise ValueError(f"{len(left)} EPContext nodes are not in the main graph, which cannot be saved again")
    return b"".join(out)


def _graph(reader: WireReader, data: bytes, start: int, end: int, left: list[Content]) -> bytes:
    out: list[bytes] = []
    for number, kind, begin, first, last in reader.whole_fields(start, end):
        if number == proto.GRAPH_NODE and kind == BYTES and _is_context(reader, first, last):
            if not left:
                raise ValueError("it has more EPContext nodes than were loaded")
            out.append(bytes_field(number, _node(reader, data, first, last, left.pop(0))))
        else:
            out.append(data[begin:last])
    return b"".join(out)


def _is_context(reader: WireReader, start: int, end: int) -> bool:
    found = {
        number: reader.take(first, min(last, first + 64))
        for number, kind, first, last in reader.fields(start, end)
        if kind == BYTES and number in (proto.NODE_OP_TYPE, proto.NODE_DOMAIN)
    }
    return found.get(proto.NODE_OP_TYPE) == b"EPContext" and found.get(proto.NODE_DOMAIN) == b"com.microsoft"


def _node(reader: WireReader, data: bytes, start: int, end: int, content: Content) -> bytes:
    out: list[bytes] = []
    for number, kind, begin, first, last in reader.whole_fields(start, end):
        name = ""
        if number == proto.NODE_ATTRIBUTE and kind == BYTES:
            parts = reader.fields(first, last)
            name = next((reader.text(a, b) for n, k, a, b in parts if n == proto.ATTRIBUTE_NAME and k == BYTES), "")
        if name not in _REPLACED:
            out.append(data[begin:last])
    attributes = (
        onnx.int_attribute("embed_mode", int(content.embed)),
        onnx.string_attribute("ep_cache_context", content.context),
    )
    return b"".join((*out, *(bytes_field(proto.NODE_ATTRIBUTE, each) for each in attributes)))
