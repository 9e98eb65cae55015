"""``ort-rknn info``: what a .rknn or .onnx file says of itself, without any runtime."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..adapter.command import Command
from . import schemas
from .output import (
    FAILED,
    FINE,
    Cell,
    Column,
    Mistake,
    Table,
    add_json_option,
    check_file,
    one_line,
    say,
    say_json,
    show,
)

if TYPE_CHECKING:
    from ..files import OnnxModel, OnnxValue, RknnFile, RknnTensor

#: Of lists that a file may make long; the rest is counted.
_LISTED = 40
_TEXT_SHOWN = 300


def run(given: argparse.Namespace) -> int:
    from ..files import OnnxFileError, RknnFileError, is_rknn, read_onnx, read_rknn

    path: str = given.model
    check_file(path)
    lines: Iterable[str]
    told: dict[str, Any]
    try:
        with open(path, "rb") as opened:
            head = opened.read(64)
        if is_rknn(head):
            file = read_rknn(path)
            counted, memory = _compiled_operators(path)
            told, lines = {"kind": "rknn", "size": file.size, "rknn": _rknn_json(file), "onnx": None}, _rknn_lines(file)
        else:
            model = read_onnx(path)
            twins, counted, memory = _twins(path), _onnx_operators(path), None
            told = {"kind": "onnx", "size": model.size, "rknn": None, "onnx": _onnx_json(model, twins)}
            lines = _onnx_lines(model, twins)
    except (RknnFileError, OnnxFileError) as error:
        raise Mistake(one_line(str(error))) from None
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror or error}") from None
    nowhere = [one for one in counted if one["where"] == "nowhere"]
    if given.json:
        say_json("info", {"model": path, **told, "operators": counted, "memory": memory})
        return FAILED if nowhere else FINE
    for line in lines:
        say(line)
    if memory is not None:
        say(_row("memory", f"weights {memory['weights']:,} bytes, tensors of a context {memory['internal']:,} bytes"))
    _show_operators(counted, told["kind"])
    return FAILED if nowhere else FINE


def _counted(kinds: Counter[tuple[str, str | None]]) -> list[dict[str, Any]]:
    from ..files.operators import splits

    return [
        {"operator": kind, "count": number, "where": where, "splits": splits(kind)}
        for (kind, where), number in sorted(kinds.items(), key=lambda each: (-each[1], each[0][0]))
    ]


def _compiled_operators(path: str) -> tuple[list[dict[str, Any]], dict[str, int] | None]:
    from ..files import RknnFileError
    from ..files.operators import read_operators

    try:
        found = read_operators(path)
    except RknnFileError:  # encrypted, or of another version: what is not understood is told already
        return [], None
    memory = {"weights": found.weights, "internal": found.internal}
    return _counted(Counter((each.kind, each.where) for each in found.operators)), memory


def _onnx_operators(path: str) -> list[dict[str, Any]]:
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


_WHERE = {
    "NPU": Cell("NPU", "good"),
    "CPU": Cell("CPU, inside the runtime", "warn"),
    "nowhere": Cell("nowhere: the runtime has no such operator", "bad"),
    None: Cell("not known: a trial build tells", "dim"),
}


def _show_operators(counted: Sequence[dict[str, Any]], kind: str) -> None:
    if not counted:
        return
    columns = (Column("operator"), Column("count", right=True), Column("runs on"), Column("tp_mode"))
    rows = [
        (one["operator"], str(one["count"]), _WHERE[one["where"]], "splits" if one["splits"] else "one core")
        for one in counted[:_LISTED]
    ]
    title = "operators, each as if it were compiled alone:" if kind == "onnx" else "operators:"
    show(Table(columns, rows, title))
    if len(counted) > _LISTED:
        say(f"and {len(counted) - _LISTED} more")
    bad = ", ".join(one["operator"] for one in counted if one["where"] == "nowhere")
    if bad and kind == "rknn":
        say(
            f"No runtime can run {bad}: the converter passed it on. `ort-rknn convert` leaves it to the CPU.",
            "bad",
        )
    elif bad:
        say(f"{bad}: no form for the NPU; `ort-rknn convert` leaves it to onnxruntime's CPU provider.", "warn")


def _row(name: str, value: str) -> str:
    text = value if len(value) <= _TEXT_SHOWN else f"{value[:_TEXT_SHOWN]}... ({len(value)} characters)"
    return f"{name + ':':<15}{one_line(text)}"


def _rows(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Those that say something."""
    return [_row(name, value) for name, value in pairs if value]


def _list(name: str, values: Sequence[str]) -> list[str]:
    rows = [_row(name, value) for value in values[:_LISTED]]
    return rows if len(values) <= _LISTED else [*rows, _row("", f"and {len(values) - _LISTED} more")]


def _rknn_lines(file: RknnFile) -> list[str]:
    rows = _rows(
        (
            ("file", f"a compiled model (.rknn), {file.size:,} bytes" + (", encrypted" if file.encrypted else "")),
            ("compiled for", ", ".join(file.targets)),
            ("made with", f"rknn-toolkit2 {file.toolkit_version}" if file.toolkit_version else ""),
            ("compiler", file.compiler or ""),
            ("made from", file.framework or ""),
            ("container", f"version {file.format_version}" if file.format_version is not None else ""),
            ("custom string", file.custom_string or ""),
            ("batch", f"{file.batch} samples a run" if file.batch != 1 else ""),
        )
    )
    rows += _list("input", [_rknn_tensor(t) for t in file.inputs[: _LISTED + 1]])
    rows += _list("output", [_rknn_tensor(t) for t in file.outputs[: _LISTED + 1]])
    names = [tensor.name for tensor in file.inputs]
    rows += _list("shape set", [", ".join(f"{n} {list(s)}" for n, s in zip(names, group)) for group in file.shape_sets])
    return rows + _list("not understood", file.unknown)


def _rknn_tensor(tensor: RknnTensor) -> str:
    shape = list(tensor.shape) if tensor.shape is not None else "of unknown shape"
    compiled = tensor.runtime_dtype or "to an unknown type"
    text = f"{tensor.name} {tensor.dtype or 'of unknown type'} {shape}, compiled {compiled}"
    if tensor.layout == "NHWC":
        text += " NHWC"
    if tensor.quantization is not None:
        text += f" scale {tensor.quantization.scale:g} zero point {tensor.quantization.zero_point}"
    if any(tensor.mean or ()) or any(x != 1 for x in tensor.std or ()):
        text += f", mean {list(tensor.mean or ())}, std {list(tensor.std or ())}"
    return text


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


def _onnx_lines(model: OnnxModel, twins: Sequence[str]) -> list[str]:
    rows = _rows(
        (
            ("file", f"an ONNX model, {model.size:,} bytes, IR version {model.ir_version}"),
            ("made by", f"{model.producer_name} {model.producer_version}".strip()),
            ("domain", model.domain),
            ("model version", str(model.model_version) if model.model_version is not None else ""),
            ("graph", model.graph_name),
            ("about", model.doc_string),
            ("opsets", ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in model.opsets.items())),
            ("holds", f"{model.node_count:,} nodes, {len(model.initializers):,} initializers"),
        )
    )
    rows += _list("weights in", model.external_data)
    for name, values in (("input", model.inputs), ("output", model.outputs), ("overridable", model.overridable)):
        rows += _list(name, [_onnx_value(value) for value in values])
    nodes = model.ep_context_nodes
    rows += _list("EPContext", [f"{node.name or 'a node'}, made by {node.source or 'nobody'}" for node in nodes])
    rows += _list("metadata", [f"{key} = {value}" for key, value in model.metadata.items()])
    return rows + _list("twin", twins or ["no compiled model lies beside it"])


def _onnx_value(value: OnnxValue) -> str:
    kind = value.dtype or value.type_text
    if value.dims is None:
        return f"{value.name} {kind}" + (" of any rank" if value.kind == "tensor" else "")
    return f"{value.name} {kind} [{', '.join('?' if d is None else str(d) for d in value.dims)}]"


def _twins(path: str) -> list[str]:
    """The compiled models beside an ONNX, and the SoCs that would take each."""
    from .._rknpu import SOC_CORES
    from ..files import RknnFileError, find_twins, judge_twin, read_rknn

    looked_for_by: dict[str, list[str]] = {}
    for soc in SOC_CORES:
        for twin in find_twins(path, soc):
            looked_for_by.setdefault(os.fspath(twin), []).append(soc)
    told = []
    for twin_path, socs in looked_for_by.items():
        name = os.path.basename(twin_path)
        try:
            file = read_rknn(twin_path)
        except (RknnFileError, OSError) as error:
            told.append(f"{name} is not usable: {error}")
            continue
        verdicts = {soc: judge_twin(file, soc=soc, onnx_path=path) for soc in socs}
        fit = [soc for soc, verdict in verdicts.items() if verdict.fit]
        if fit:
            told.append(f"{name}, for {', '.join(fit)}")
        else:
            told.append(f"{name} is not usable: {'; '.join(verdicts[socs[0]].reasons)}")
    return told + _in_parts(path)


def _in_parts(path: str) -> list[str]:
    """The models in parts beside an ONNX, and the SoCs that would take each."""
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


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an .onnx or .rknn file")
    add_json_option(parser)


COMMAND = Command(
    name="info",
    summary="what a model file says of itself",
    description="Reads a .rknn or .onnx file (told by its content) without any runtime: what it says of itself, its "
    "operators by where they run, and its memory. Exit code 1 where it has an operator that no runtime can run.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.INFO,
)
