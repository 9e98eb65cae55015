"""``ort_rknn.info``: the metadata of a .rknn or .onnx file, without any runtime."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..files import OnnxModel, OnnxValue, RknnFile, RknnTensor
    from ..files.operators import Where


@dataclass(frozen=True, slots=True)
class OperatorCount:
    """How often an operator occurs in a model, and where it runs."""

    operator: str
    """The compiled type ("ConvRelu"), or the ONNX's ("Conv", "com.microsoft:Gelu")."""
    count: int
    where: Where | None
    """"NPU"; "CPU": inside the runtime; "nowhere": no runtime has it; None: unknown. For an ONNX: where the operator
    runs if compiled alone."""
    splits: bool
    """Whether several cores share it under ``tp_mode``."""


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """The memory that a compiled model takes, according to its file."""

    weights: int
    """Bytes, shared by all contexts."""
    internal: int
    """Bytes of tensors, per context."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The result of :func:`info`."""

    model: str
    """The path that was given."""
    kind: Literal["rknn", "onnx"]
    size: int
    """Size of the file in bytes."""
    operators: tuple[OperatorCount, ...]
    """The most frequent first; for a dynamic .rknn those of its largest shape set; empty if they cannot be read."""
    memory: ModelMemory | None
    """None for an ONNX, and if it cannot be read."""
    rknn: RknnFile | None
    """The metadata of a compiled model (:class:`ort_rknn.files.RknnFile`)."""
    onnx: OnnxModel | None
    """The metadata of an ONNX (:class:`ort_rknn.files.OnnxModel`)."""
    twins: tuple[str, ...]
    """For an ONNX: the compiled models beside it with the SoCs that accept each, or why a model is not usable."""

    @property
    def nowhere(self) -> tuple[OperatorCount, ...]:
        """The operators that no runtime can run."""
        return tuple(each for each in self.operators if each.where == "nowhere")

    def as_json(self) -> dict[str, Any]:
        """The members of ``ort-rknn info --json``."""
        return {
            "model": self.model,
            "kind": self.kind,
            "size": self.size,
            "operators": [asdict(each) for each in self.operators],
            "memory": None if self.memory is None else asdict(self.memory),
            "rknn": None if self.rknn is None else _rknn_json(self.rknn),
            "onnx": None if self.onnx is None else _onnx_json(self.onnx, self.twins),
        }


def info(model: str | os.PathLike[str]) -> ModelInfo:
    """Read a .rknn or .onnx file (recognized by its content): its metadata, its operators, its memory.

    Needs no runtime and no NPU, and runs nothing. Raises :class:`ort_rknn.files.RknnFileError` or
    :class:`ort_rknn.files.OnnxFileError` (both are ValueErrors) for a file that is neither or is damaged, OSError for
    one that cannot be opened.
    """
    from ..files import is_onnx, is_rknn, read_onnx, read_rknn

    path = os.fspath(model)
    with open(path, "rb") as opened:
        head = opened.read(64)
    if is_rknn(head) or (path.lower().endswith(".rknn") and not is_onnx(head)):
        file = read_rknn(path)  # names what a damaged one lacks, where the ONNX reader would mislead
        counted, memory = _compiled_operators(path)
        return ModelInfo(path, "rknn", file.size, counted, memory, file, None, ())
    onnx = read_onnx(path)
    return ModelInfo(path, "onnx", onnx.size, _onnx_operators(path), None, None, onnx, tuple(_twins(path)))


def _counted(kinds: Counter[tuple[str, Where | None]]) -> tuple[OperatorCount, ...]:
    from ..files.operators import splits

    return tuple(
        OperatorCount(kind, number, where, splits(kind))
        for (kind, where), number in sorted(kinds.items(), key=lambda each: (-each[1], each[0][0]))
    )


def _compiled_operators(path: str) -> tuple[tuple[OperatorCount, ...], ModelMemory | None]:
    from ..files import RknnFileError
    from ..files.operators import read_operators

    try:
        found = read_operators(path)
    except RknnFileError:  # encrypted, or of another version: already reported as unknown
        return (), None
    memory = ModelMemory(found.weights, found.internal)
    return _counted(Counter((each.kind, each.where) for each in found.operators)), memory


def _onnx_operators(path: str) -> tuple[OperatorCount, ...]:
    from ..files import OnnxFileError
    from ..files._onnx_part import read_nodes
    from ..files._source import open_source
    from ..files.operators import alone

    with open_source(path, OnnxFileError) as data:
        nodes = read_nodes(data).nodes
    return _counted(
        Counter(
            (f"{node.domain}:{node.op_type}" if node.domain else node.op_type, alone(node.op_type, node.domain))
            for node in nodes
        )
    )


def _rknn_json(file: RknnFile) -> dict[str, Any]:
    return {
        "encrypted": file.encrypted,
        "targets": list(file.targets),
        "toolkit": file.toolkit_version,
        "compiler": file.compiler,
        "framework": file.framework,
        "format_version": file.format_version,
        "custom_string": file.custom_string,
        "batch": file.batch,
        "inputs": [_rknn_tensor_json(tensor) for tensor in file.inputs],
        "outputs": [_rknn_tensor_json(tensor) for tensor in file.outputs],
        "shape_sets": [[list(shape) for shape in group] for group in file.shape_sets],
        "unknown": list(file.unknown),
    }


def _rknn_tensor_json(tensor: RknnTensor) -> dict[str, Any]:
    quantized = tensor.quantization
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "compiled": tensor.runtime_dtype,
        "layout": tensor.layout,
        "scale": None if quantized is None else quantized.scale,
        "zero_point": None if quantized is None else quantized.zero_point,
        "mean": tensor.mean,
        "std": tensor.std,
    }


def _onnx_json(model: OnnxModel, twins: Sequence[str]) -> dict[str, Any]:
    def values(those: Iterable[OnnxValue]) -> list[dict[str, Any]]:
        return [{"name": v.name, "type": v.dtype or v.type_text, "dims": v.dims} for v in those]

    return {
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "domain": model.domain,
        "graph": model.graph_name,
        "opsets": {domain or "ai.onnx": version for domain, version in model.opsets.items()},
        "nodes": model.node_count,
        "initializers": len(model.initializers),
        "external_data": list(model.external_data),
        "inputs": values(model.inputs),
        "outputs": values(model.outputs),
        "overridable": values(model.overridable),
        "ep_context": [{"node": node.name, "source": node.source or ""} for node in model.ep_context_nodes],
        "metadata": dict(model.metadata),
        "twins": list(twins),
    }


def _twins(path: str) -> list[str]:
    """The compiled models beside an ONNX, and the SoCs that accept each."""
    from .._rknpu import SOC_CORES
    from ..files import RknnFileError, find_twins, judge_twin, read_rknn

    looked_for_by: dict[str, list[str]] = {}
    for soc in SOC_CORES:
        for twin in find_twins(path, soc):
            looked_for_by.setdefault(os.fspath(twin), []).append(soc)
    lines = []
    for twin_path, socs in looked_for_by.items():
        name = os.path.basename(twin_path)
        try:
            file = read_rknn(twin_path)
        except (RknnFileError, OSError) as error:
            lines.append(f"{name} is not usable: {error}")
            continue
        verdicts = {soc: judge_twin(file, soc=soc, onnx_path=path) for soc in socs}
        fit = [soc for soc, verdict in verdicts.items() if verdict.fit]
        if fit:
            lines.append(f"{name}, for {', '.join(fit)}")
        else:
            lines.append(f"{name} is not usable: {'; '.join(verdicts[socs[0]].reasons)}")
    return lines + _in_parts(path)


def _in_parts(path: str) -> list[str]:
    """The models in parts beside an ONNX, and the SoCs that accept each."""
    from .._planning.in_parts import judge_parts
    from .._rknpu import SOC_CORES
    from ..files import read_onnx
    from ..files.compiled_places import find_context_models

    onnx = read_onnx(path)
    fit: dict[str, list[str]] = {}
    problems: dict[str, str] = {}
    for soc in SOC_CORES:
        for place in map(os.fspath, find_context_models(path, soc)):
            candidate = judge_parts(place, soc, path, onnx)
            if candidate is not None:
                fit.setdefault(place, []).extend([soc] if candidate.fit else [])
                problems.setdefault(place, "; ".join(candidate.reasons))
    return [
        f"{os.path.basename(place)}, in parts, for {', '.join(socs)}"
        if socs
        else f"{os.path.basename(place)} is not usable: {problems[place]}"
        for place, socs in fit.items()
    ]
