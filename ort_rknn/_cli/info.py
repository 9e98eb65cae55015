"""``ort-rknn info``: the metadata of a .rknn or .onnx file, without any runtime."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..adapter.command import Command
from . import schemas
from .output import (
    FAILED,
    FINE,
    Cell,
    Column,
    Mistake,
    TextTable,
    add_json_option,
    check_file,
    one_line,
    say,
    say_json,
    show,
)

if TYPE_CHECKING:
    from .._measure.info import ModelInfo, OperatorCount
    from ..files import OnnxModel, OnnxValue, RknnFile, RknnTensor

#: The maximum number of entries printed of a list from a file; the rest is counted.
_LISTED = 40
_TEXT_SHOWN = 300


def run(given: argparse.Namespace) -> int:
    """Print the file's metadata; 1 if it has an operator that no runtime can run."""
    from .._measure.info import info
    from ..files import OnnxFileError, RknnFileError

    path: str = given.model
    check_file(path)
    try:
        found = info(path)
    except (RknnFileError, OnnxFileError) as error:
        raise Mistake(one_line(str(error))) from None
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror or error}") from None
    code = FAILED if found.nowhere else FINE
    if given.json:
        say_json("info", found.as_json())
        return code
    for line in _rknn_lines(found.rknn) if found.rknn is not None else ():
        say(line)
    for line in _onnx_lines(found.onnx, found.twins) if found.onnx is not None else ():
        say(line)
    memory = found.memory
    if memory is not None:
        say(_row("memory", f"weights {memory.weights:,} bytes, tensors of a context {memory.internal:,} bytes"))
    _show_operators(found)
    return code


_WHERE = {
    "NPU": Cell("NPU", "good"),
    "CPU": Cell("CPU, inside the runtime", "warn"),
    "nowhere": Cell("nowhere: the runtime has no such operator", "bad"),
    None: Cell("unknown without a trial build", "dim"),
}


def _where(one: OperatorCount) -> str | Cell:
    if one.operator == "Constant" and one.where is None:
        return Cell("none: it becomes a weight", "dim")
    if one.operator == "com.microsoft:EPContext":
        return Cell("the compiled model that it names", "good")
    return _WHERE[one.where]


def _show_operators(found: ModelInfo) -> None:
    if not found.operators:
        return
    columns = (Column("operator"), Column("count", right=True), Column("runs on"), Column("tp_mode"))
    rows = [
        (one.operator, str(one.count), _where(one), "splits" if one.splits else "one core")
        for one in found.operators[:_LISTED]
    ]
    title = "operators, each as if it were compiled alone:" if found.kind == "onnx" else "operators:"
    show(TextTable(columns, rows, title))
    if len(found.operators) > _LISTED:
        say(f"and {len(found.operators) - _LISTED} more")
    bad = ", ".join(one.operator for one in found.nowhere)
    if bad and found.kind == "rknn":
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
    """The rows that have a value."""
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
    return rows + _list("twin", twins or ([] if nodes else ["no compiled model lies beside it"]))


def _onnx_value(value: OnnxValue) -> str:
    kind = value.dtype or value.type_text
    if value.dims is None:
        return f"{value.name} {kind}" + (" of any rank" if value.kind == "tensor" else "")
    return f"{value.name} {kind} [{', '.join('?' if d is None else str(d) for d in value.dims)}]"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an .onnx or .rknn file")
    add_json_option(parser)


COMMAND = Command(
    name="info",
    summary="show a model file's metadata, operators and memory",
    description="Reads a .rknn or .onnx file (recognized by its content) without a runtime, and prints its metadata, "
    "its operators with where each runs, and its memory. Exit code 1 if it has an operator that no runtime can run.",
    add_arguments=_add_arguments,
    run=run,
    json_output=schemas.INFO,
)
