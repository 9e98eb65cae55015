"""Loads and saves an ONNX's graph without holding its weights: large ones stay in the file."""

from __future__ import annotations

import os
from pathlib import Path

import onnx

from ..files import read_onnx
from ..files.between import Original
from ..files.left_out import Disagreement
from .prepare import link

#: A smaller file is loaded as it is, in bytes.
_LARGE = 32 << 20


def load_graph(path: str) -> onnx.ModelProto:
    """The ONNX at ``path``. Weights in files of their own stay there, and those of a large ONNX stay in it: they are
    external data in the ONNX itself, which onnxruntime maps. Nodes that no output needs are left out then.
    """
    if os.path.getsize(path) < _LARGE or os.path.islink(path):
        return onnx.load(path, load_external_data=False)
    signature = read_onnx(path)
    original = Original(path)
    try:
        small = original.between(signature.inputs, signature.outputs)
    except Disagreement:
        return onnx.load(path, load_external_data=False)
    finally:
        original.close()
    return onnx.load_from_string(small)


def save_linked(model: onnx.ModelProto, folder: str, place: Path) -> None:
    """Write ``model`` to ``place``, and link its files of weights, which lie in ``folder``, beside it."""
    onnx.save(model, place)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (place.parent / entry.value).exists():
                link(Path(folder) / entry.value, place.parent / entry.value)
