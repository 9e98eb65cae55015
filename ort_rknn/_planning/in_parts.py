"""A model in parts beside its ONNX (``model.rk3588_ctx.onnx``), and whether it may replace the ONNX."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .._regular import open_regular
from .._rknpu import soc_family
from ..adapter.contract import ModelSource
from ..files import (
    EpContextNode,
    OnnxFileError,
    OnnxModel,
    OnnxValue,
    RknnFile,
    RknnFileError,
    judge_twin,
    read_onnx,
    read_rknn,
    why_unreadable,
)
from ..files.compiled_places import OutsideError, confined_path
from .candidate import Candidate
from .request import OUR_NAMES


def judge_parts(path: str, soc: str, onnx_path: str, onnx: OnnxModel) -> Candidate | None:
    """The model with EPContext nodes at ``path``, as a candidate to replace ``onnx``; None if it has no nodes of ours.

    It fits if its inputs and outputs are the ONNX's, and if each part was compiled for ``soc`` from this version of the
    ONNX. Reads a few kB of each part.
    """
    source, name = ModelSource(path=path), os.path.basename(path)
    try:
        model = read_onnx(path)
    except (OnnxFileError, OSError) as error:
        return Candidate(source, name, None, False, (why_unreadable(path, error),))
    nodes = [node for node in model.ep_context_nodes if node.source in OUR_NAMES]
    if not nodes:
        return None
    reasons = _differences("input", model.inputs, onnx.inputs) + _differences("output", model.outputs, onnx.outputs)
    notes: list[str] = []
    judged: set[tuple[str, ...]] = set()
    for node in nodes:
        part = node.partition_name or node.name or "a part"
        try:
            file = part_of(path, node)
        except (RknnFileError, OSError, ValueError) as error:
            reasons.append(f"{part}: {error}")
            continue
        facts = (*file.targets, node.hardware_architecture, file.toolkit_version or "", file.custom_string or "")
        if facts in judged:
            continue  # from the same build: the same answer
        judged.add(facts)
        verdict = judge_twin(file, soc=soc, runtime_version=None, onnx_path=onnx_path, rknn_path=path)
        problems = list(verdict.reasons)
        if not file.targets and node.hardware_architecture and soc_family(node.hardware_architecture) != soc:
            problems.append(f"it was compiled for {node.hardware_architecture}, this is {soc}: convert the ONNX again")
        reasons += [f"{part}: {reason}" for reason in problems]
        notes += [f"{part}: {note}" for note in verdict.notes]
    notes.insert(0, f"{name} has {len(nodes)} part{'s' if len(nodes) > 1 else ''} for the NPU")
    return Candidate(source, name, None, not reasons, tuple(dict.fromkeys(reasons)), tuple(notes), model)


def part_of(source: str | bytes, node: EpContextNode) -> RknnFile:
    """The compiled model of an EPContext node in the model at ``source`` (a path, or the model's bytes).

    Raises ValueError for a node that holds no compiled model or names one outside the model's folder, RknnFileError or
    OSError if the compiled model cannot be read.
    """
    if not node.main_context:
        raise ValueError("main_context=0 is not supported: the node must hold its model")
    if node.embed_mode == 0:
        if isinstance(source, bytes):
            raise ValueError("it names a file, but the model was loaded from memory")
        relative = (node.cache_context or b"").decode(errors="replace")
        try:
            return read_rknn(confined_path(source, relative))
        except (OutsideError, FileNotFoundError) as error:
            raise ValueError(f"its compiled model {error}") from None
    if isinstance(source, bytes):
        return read_rknn(source[node.cache_offset : node.cache_offset + node.cache_size])
    with open_regular(source) as file:
        return read_rknn(os.pread(file.fileno(), node.cache_size, node.cache_offset))


def _differences(what: str, have: Sequence[OnnxValue], want: Sequence[OnnxValue]) -> list[str]:
    """What would keep a program written for the ONNX from running on this model."""
    if [v.name for v in have] != [v.name for v in want]:
        return [f"its {what}s are {[v.name for v in have]}, the ONNX has {[v.name for v in want]}: convert it again"]
    return [
        f"its {what} {a.name!r} is {a.type_text} {list(a.dims or ())}, in the ONNX it is {b.type_text} "
        f"{list(b.dims or ())}: convert it again"
        for a, b in zip(have, want)
        if a.type_text != b.type_text or not _agree(a, b)
    ]


def _agree(a: OnnxValue, b: OnnxValue) -> bool:
    if a.dims is None or b.dims is None:
        return True
    return len(a.dims) == len(b.dims) and all(
        not isinstance(m, int) or not isinstance(n, int) or m == n for m, n in zip(a.dims, b.dims)
    )
