"""Prepares the ONNX for the toolkit: inputs frozen and folded away, an opset that it reads, functions inlined.

The user's file is never changed. If nothing needs to be done, the toolkit gets the file itself, including external
data; else a copy in the scratch folder, whose external data are links to the user's files. The package ``onnx`` (extra
``convert``) is imported only if something needs to be done.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import OnnxFileError, OnnxModel, read_onnx

#: The newest opset that the toolkit reads: 2.5.0 says "Unsupport onnx opset 20, need <= 19!".
NEWEST_OPSET = 19
#: Attributes that the toolkit requires, with ONNX's defaults: without them 2.5.0 fails with KeyError:
#: 'LayerNormalization'.
_DEFAULTS: Mapping[str, Mapping[str, float | int]] = {
    "LayerNormalization": {"axis": -1, "epsilon": 1e-5, "stash_type": 1},
}
#: The newest IR version that the toolkit's onnx (1.18) checks without an error.
NEWEST_IR = 11


class PrepareError(Exception):
    """The ONNX cannot be converted to a form that the toolkit reads. The message names node, operator and remedy."""


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """What the toolkit gets."""

    path: str
    signature: OnnxModel
    """Of the prepared model, without frozen inputs."""
    notes: tuple[str, ...] = field(default=())
    independent: bool | None = None
    """Whether its samples are known to be independent. None: a session finds out by itself."""

    @property
    def fits(self) -> bool:
        """Whether the toolkit reads its opset and IR version."""
        return _fits(self.signature)


def _fits(signature: OnnxModel) -> bool:
    return signature.ir_version <= NEWEST_IR and signature.opsets.get("", 0) <= NEWEST_OPSET


def prepare(path: str, folder: str, *, freeze: Mapping[str, Any] | None = None, lower: bool = True) -> PreparedModel:
    """The model at ``path`` in a form that the toolkit reads; a copy, if one is needed, is written to ``folder``.

    ``freeze``: inputs that become constants, with their values. ``lower``: lower the opset. Raises OpsetError for a
    node that cannot be expressed in the toolkit's opset, PrepareError for a value that does not fit its input, and if
    the package ``onnx`` is needed and not installed.
    """
    freeze = freeze or {}
    signature = read_onnx(path)
    names = [value.name for value in signature.inputs]
    unknown = sorted(set(freeze) - set(names))
    if unknown:
        raise PrepareError(f"the model has no input {unknown[0]!r} to freeze; its inputs are {', '.join(names)}")
    if not freeze and (not lower or _fits(signature)) and not _wants_rewriting(path):
        return PreparedModel(path, signature)
    try:
        import onnx
    except ImportError as error:
        raise PrepareError(
            f"{os.path.basename(path)} must be rewritten first, which takes the package onnx: "
            "pip install 'ort-rknn[convert]'"
        ) from error
    model = onnx.load(path, load_external_data=False)
    spell_defaults(model)
    notes = _rewrite(model, freeze, lower)
    place = Path(folder) / os.path.basename(path)
    onnx.save(model, place)
    for name in signature.external_data:
        link(Path(path).parent / name, Path(folder) / name)
    return PreparedModel(str(place), read_onnx(place), tuple(notes))


def _wants_rewriting(path: str) -> bool:
    """Whether the model has functions, which the toolkit does not support, or nodes for :func:`spell_defaults`."""
    from ..files._onnx_part import read_nodes
    from ..files._source import open_source

    with open_source(path, OnnxFileError) as data:
        found = read_nodes(data)
        return bool(found.functions) or any(node.op_type in _DEFAULTS for node in found.nodes)


def needed_inputs(path: str, inputs: Iterable[str]) -> list[str]:
    """Those of ``inputs`` that an output of the ONNX needs: the toolkit refuses a model with the names of others. All
    of them if there are none, or if an output is itself an input."""
    from ..files._onnx_part import read_nodes
    from ..files._source import open_source

    with open_source(path, OnnxFileError) as data:
        graph = read_nodes(data)
    names, needed = list(inputs), set(graph.outputs)
    if not needed.isdisjoint(names):
        return names
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            needed.update(node.reads)
    return [name for name in names if name in needed] or names


def spell_defaults(model: Any) -> None:
    """Write out default attributes that the toolkit requires."""
    import onnx

    for node in model.graph.node:
        given = {attribute.name for attribute in node.attribute}
        for name, value in _DEFAULTS.get(node.op_type, {}).items():
            if not node.domain and name not in given:
                node.attribute.append(onnx.helper.make_attribute(name, value))


def _rewrite(model: Any, freeze: Mapping[str, Any], lower: bool) -> list[str]:
    from .freeze import freeze_inputs
    from .opset import lower_opset

    notes = []
    if model.functions:
        from onnx.inliner import inline_local_functions

        inlined = inline_local_functions(model)
        model.CopyFrom(inlined)
    try:
        if freeze:
            freeze_inputs(model, freeze)
            notes += [f"input {name!r} is the constant {value!r}" for name, value in freeze.items()]
        before = next((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), 0)
        if lower and lower_opset(model, NEWEST_OPSET):
            notes.append(f"opset {before} was brought down to {NEWEST_OPSET}; every node means the same in both")
    except ValueError as error:
        raise PrepareError(str(error)) from error
    model.ir_version = min(model.ir_version, NEWEST_IR)
    return notes


def link(source: Path, place: Path) -> None:
    """Link a file of weights, or copy it if the scratch folder is on another file system."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
