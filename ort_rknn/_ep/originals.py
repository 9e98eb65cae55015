"""The original ONNX of a model in parts: for each node, the part of the original between the node's inputs and outputs.

A virtual NPU computes with it, and it provides facts that a compiled model does not record: whether samples are
independent, what a converter left out, and how to run calls with other shapes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._executor.cpu_fallback import CpuFallback, gives_the_same_form, session_of_pinned
from .._executor.declared import Declared
from .._executor.executor import Executor
from .._tensors import DTYPES
from ..files import Origin, RknnFile, is_stale, read_onnx
from ..files.between import Original
from ..files.compiled_places import confined_path
from ..files.pinned import PinnedModel
from . import handoff

log = logging.getLogger("ort_rknn")


@dataclass(frozen=True, slots=True)
class PartOfOriginal:
    """The ONNX of one node's compiled model."""

    twin: str | bytes | None = None
    """The original's path if the node covers all of it, else a small model; None if it is unknown."""
    folder: str | None = None
    """The folder of the weights, for a small model."""
    cpu_session: Callable[..., Any] | None = None
    path: str = ""
    """The original's path."""

    def while_gone(self, executor: Executor) -> CpuFallback | None:
        """What runs the node while the device is gone: the current original, which is held open. None if it is unknown
        or unsuitable."""
        if self.twin is None or not gives_the_same_form(executor.signature, executor.options):
            return None
        make = self.cpu_session
        if make is None:
            from .._planning.session_options import cpu_session

            make = partial(cpu_session, None, any_shape=True)
        try:
            pinned = PinnedModel(os.path.realpath(self.path), read_onnx(self.path).external_data)
        except (OSError, ValueError) as error:
            log.info("%s: no CPU while the device is gone: %s", executor.label, error)
            return None
        part = self.twin if isinstance(self.twin, bytes) else None
        return CpuFallback(partial(session_of_pinned, pinned, part, make), pinned=pinned)


@dataclass(frozen=True, slots=True)
class _SignatureValue:
    """A tensor for the writer."""

    name: str
    elem_type: int | None
    dims: Sequence[int | str | None] | None


class Originals:
    """The originals of a session's nodes, each read once. :meth:`close` closes their files."""

    def __init__(self) -> None:
        self._open: dict[str, Original] = {}

    def close(self) -> None:
        """Close the files. Idempotent."""
        while self._open:
            self._open.popitem()[1].close()

    def part_of(
        self,
        name: str,
        file: RknnFile,
        model_path: str,
        inputs: Sequence[Declared],
        outputs: Sequence[Declared],
        label: str,
    ) -> PartOfOriginal:
        """The part of the original that a node with these tensors covers. The original is the one the session names,
        else the ONNX ``name`` beside the model at ``model_path``. If it cannot be used, a log record says why."""
        making = handoff.making()
        try:
            path = making.original if making is not None and making.original else _beside(model_path, name)
            if path is None:
                return PartOfOriginal()
            origin = Origin.parse(file.custom_string)
            stale = is_stale(origin, path) if origin is not None else None
            if stale is not None:
                raise ValueError(f"it has changed: {stale}")
            original = self._open.get(path)
            if original is None:
                original = self._open[path] = Original(path)
            make = making.cpu_session if making is not None else None
            if original.is_whole([v.name for v in inputs], [v.name for v in outputs]):
                return PartOfOriginal(original.path, None, make, original.path)
            if make is None:
                from .._planning.session_options import cpu_session

                make = partial(cpu_session, None)
            compiled = {tensor.name: tensor.shape for tensor in file.inputs if tensor.shape is not None}
            in_parts = read_onnx(model_path).inputs if os.path.isfile(model_path) else ()
            twin = original.between([_value(v) for v in inputs], [_value(v) for v in outputs], compiled, in_parts)
            return PartOfOriginal(twin, original.folder, partial(make, folder=original.folder), original.path)
        except (OSError, ValueError) as error:
            log.warning("%s: the ONNX that it was compiled from is not used: %s", label, error)
            return PartOfOriginal()


def _beside(model_path: str, name: str) -> str | None:
    """The ONNX that a node names; None if it names none, or the model came from memory.

    Raises ValueError for a name that is not a file beside the model: it is untrusted input.
    """
    if not name or not model_path:
        return None
    if os.path.basename(name) != name:
        raise ValueError(f"onnx_model_filename {name!r} is not the name of a file beside the model")
    try:
        path = confined_path(model_path, name)
    except FileNotFoundError:
        return None
    if os.path.samefile(path, model_path):
        return None
    # Not resolved: a hub's cache contains links.
    return os.path.join(os.path.dirname(os.path.abspath(model_path)), name)


def _value(value: Declared) -> _SignatureValue:
    dims = None if value.dims is None else [d if isinstance(d, int) else None for d in value.dims]
    return _SignatureValue(value.name, DTYPES[value.dtype][0], dims)
