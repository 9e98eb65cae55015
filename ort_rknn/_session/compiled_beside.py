"""Compiled models beside an ONNX, for any SoC. What they say about it is true even if none of them can run here."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..adapter import SOC_CORES
from ..files import OnnxFileError, RknnFile, RknnFileError, find_twins, read_onnx, read_rknn
from ..files.compiled_places import confined_path, find_context_models


def wholes_beside(onnx: str) -> list[str]:
    """The twins of an ONNX for any SoC, those for a single SoC first."""
    found = (os.fspath(path) for soc in SOC_CORES for path in find_twins(onnx, soc))
    return sorted(dict.fromkeys(found), key=lambda path: path == os.path.splitext(onnx)[0] + ".rknn")


def parts_beside(onnx: str) -> Iterator[tuple[str, RknnFile]]:
    """The compiled parts beside an ONNX, with their names. Unreadable ones are skipped: a session that loads them
    reports why."""
    models = dict.fromkeys(os.fspath(path) for soc in SOC_CORES for path in find_context_models(onnx, soc))
    for model in models:
        try:
            nodes = read_onnx(model).ep_context_nodes
        except (OnnxFileError, OSError):
            continue
        for node in nodes:
            if node.embed_mode == 0 and node.cache_context is not None:
                try:
                    path = confined_path(model, node.cache_context.decode())
                    yield os.path.basename(path), read_rknn(path)
                except (RknnFileError, OSError, ValueError):
                    continue
