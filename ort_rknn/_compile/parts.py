"""Converts in parts: partition the graph, build each part, and partition again if the toolkit refuses one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from .._tensors import cuts_integers
from ..files import read_onnx
from ..files.left_out import Disagreement, left_out
from .converter import BuildSpec, Built, ConversionError, Converter
from .extract import extract
from .fate import Trials, refused_by_table, remedy, remembered, short
from .graph import load_graph, save_linked
from .observe import Array, Observed, observe, random_feeds
from .opset import OpsetError, lower_opset
from .partition import GraphPart, Partition, partition
from .prepare import NEWEST_IR, NEWEST_OPSET, PrepareError
from .varying import refused_by_shape

#: The toolkit's file of a part; beside it lie links to the files of weights, under their own names.
_PART = "ort_rknn part.onnx"
#: The maximum number of times the graph is partitioned again.
_ROUNDS = 40


@dataclass(frozen=True, slots=True)
class BuiltPart:
    """A part that the toolkit compiled."""

    part: GraphPart
    built: Built
    spec: BuildSpec


@dataclass(frozen=True, slots=True)
class InParts:
    """A model in parts."""

    model: onnx.ModelProto
    observed: Observed
    partition: Partition
    built: tuple[BuiltPart, ...]
    batch: bool = False
    """The first axis of every input is a free batch."""


@dataclass(frozen=True, slots=True)
class PartsJob:
    """An ONNX to be partitioned, and how its parts are built."""

    converter: Converter
    path: str
    shapes: Mapping[str, tuple[int, ...]]
    """Of the inputs."""
    target: str
    spec: Callable[[str, GraphPart, Observed], BuildSpec]
    """Returns the build settings of a part, given the path of its ONNX."""
    progress: Callable[[str], None] = lambda text: None
    batch: bool = False
    """The first axis of every input is a free batch."""


def build_in_parts(
    job: PartsJob,
    *,
    first: ConversionError | None = None,
    keep: Mapping[int, str] | None = None,
    feeds: Sequence[Mapping[str, Array]] = (),
) -> InParts:
    """Partition an ONNX and build every part. ``first``: why the whole model was refused. ``keep``: nodes that stay on
    the CPU, with the reason. ``feeds``: used to determine shapes and ranges; () means random.

    Raises ConversionError if no part is left, naming what keeps the nodes on the CPU.
    """
    converter, path, progress = job.converter, job.path, job.progress
    folder = os.path.dirname(path)
    model = load_graph(path)
    progress("running the ONNX once to learn the shapes between its nodes")
    try:
        observed = observe(model, folder, feeds or [random_feeds(model, job.shapes)])
    except PrepareError as error:
        if feeds:
            raise
        help_ = "make an input that decides shapes a constant with --freeze NAME=VALUE"
        why = str(error).rstrip(".")
        raise PrepareError(f"{why}. It was fed random values, 0 and 1 for integers: {help_}") from error
    refused = {**refused_by_shape(model, observed), **(keep or {}), **refused_by_table(model)}
    trials = Trials(converter, job.target, remembered(converter.toolkit.version))
    blame(model, range(len(model.graph.node)), first, refused)
    finished: dict[tuple[int, ...], BuiltPart] = {}
    for _ in range(_ROUNDS):
        made = partition(model, observed, refused, batch=job.batch)
        if not made.parts:
            raise ConversionError(_nothing_left(path, model, made, first), log=converter.log)
        for number, part in enumerate(made.parts):
            key = tuple(part.nodes)
            if key in finished:
                continue
            progress(f"compiling part {number + 1} of {len(made.parts)}: {len(part.nodes)} nodes")
            try:
                finished[key] = _build_one(job, model, part, observed)
            except ConversionError as error:
                _divide(model, part, error, refused, trials, observed)
                break
        else:
            return InParts(model, observed, made, tuple(finished[tuple(p.nodes)] for p in made.parts), job.batch)
    raise ConversionError(
        f"{os.path.basename(path)}: divided {_ROUNDS} times, and the toolkit still refuses a part", log=converter.log
    )


def _build_one(job: PartsJob, model: onnx.ModelProto, part: GraphPart, observed: Observed) -> BuiltPart:
    folder = os.path.dirname(job.path)
    cut = extract(model, part.inputs, part.outputs, observed)
    try:
        lower_opset(cut, NEWEST_OPSET)
    except OpsetError as error:
        named = [(error.node, error.operator)]
        raise ConversionError(f"{os.path.basename(job.path)}: {error}", operators=named) from error
    cut.ir_version = min(cut.ir_version, NEWEST_IR)
    place = Path(tempfile.mkdtemp(prefix="part-", dir=job.converter.folder)) / _PART
    save_linked(cut, folder, place)
    how = job.spec(str(place), part, observed)
    built = job.converter.build(how)
    sides = (built.file.inputs, part.inputs), (built.file.outputs, part.outputs)
    if all({tensor.name for tensor in compiled} <= {*named} for compiled, named in sides):
        refuse_unusable(built, str(place), job.converter.log)
    return BuiltPart(part, built, how)


def refuse_unusable(built: Built, path: str, log: str) -> None:
    """Raises ConversionError for a compiled model that no session can run in place of the ONNX at ``path``: the toolkit
    left something out, or gave integers a scale that loses them."""
    refuse_left_out(built, path, log)
    plain = [tensor for tensor in built.file.inputs if set(tensor.std or ()) <= {1.0}]
    cut = [tensor for tensor in plain if cuts_integers(tensor.dtype, tensor.quantization)]
    rounded = [
        t for t in built.file.outputs if t.quantization is not None and not (t.dtype or "float").startswith("float")
    ]
    for tensor in (*cut, *rounded):
        raise ConversionError(
            f"{os.path.basename(path)}: {tensor.name!r} is {tensor.dtype}, and {tensor.runtime_dtype} with a scale in "
            "the compiled model, which would lose its integers",
            log=log,
        )


def refuse_left_out(built: Built, path: str, log: str) -> None:
    """Raises ConversionError if the toolkit left out an output of the ONNX at ``path`` that depends on the inputs, for
    example one whose shape does, or an input that an output depends on, for example one that is multiplied by 0: it
    says nothing of it, and no session could run the compiled model."""
    sides = [[tensor.name for tensor in side] for side in (built.file.inputs, built.file.outputs)]
    signature = read_onnx(path)
    if [len(side) for side in sides] == [len(signature.inputs), len(signature.outputs)]:
        return
    try:
        left_out(path, *sides)
    except Disagreement as error:
        raise ConversionError(f"{os.path.basename(path)}: the toolkit left something out: {error}", log=log) from error


def blame(
    model: onnx.ModelProto, nodes: range | list[int], error: ConversionError | None, refused: dict[int, str]
) -> bool:
    """Rule out the nodes named by the toolkit. Returns whether any of them was not ruled out before."""
    if error is None:
        return False
    named = {name for name, _ in error.operators}
    words = set(re.findall(r"[A-Za-z][A-Za-z0-9]+", short(error)))
    found = False
    for index in nodes:
        node = model.graph.node[index]
        by_name = node.name in named or any(o in named for o in node.output)
        by_kind = not error.operators and f"{node.op_type}" in words and len(node.op_type) > 3
        if index not in refused and (by_name or by_kind):
            refused[index] = f"{node.op_type}: {_of_named(error) if by_name else short(error)[:200]}"
            found = True
    return found


def _of_named(error: ConversionError) -> str:
    if isinstance(error.__cause__, OpsetError):
        return f"opset {NEWEST_OPSET}, the toolkit's newest, lacks it"
    return "no board's runtime has it"


def _divide(
    model: onnx.ModelProto,
    part: GraphPart,
    error: ConversionError,
    refused: dict[int, str],
    trials: Trials,
    observed: Observed,
) -> None:
    """Remove nodes from a part that the toolkit refused: those that it named, else those that it refuses on their own,
    else the one in the middle, which leaves two smaller parts."""
    if blame(model, part.nodes, error, refused):
        return
    alone = {
        index: reason for index in part.nodes if (reason := trials.why_refused(model, index, observed)) is not None
    }
    if alone:
        refused.update(alone)
        return
    middle = part.nodes[len(part.nodes) // 2]
    refused[middle] = f"the toolkit refuses the nodes around it together: {short(error)[:200]}"


def _nothing_left(path: str, model: onnx.ModelProto, made: Partition, first: ConversionError | None) -> str:
    first_of: dict[str, int] = {}
    for index, reason in made.on_cpu.items():
        first_of.setdefault(reason, index)
    nodes = {reason: model.graph.node[index] for reason, index in first_of.items()}
    reasons = [f"{node.name or node.output[0]!a}: {reason}" for reason, node in list(nodes.items())[:5]]
    whole = f"As a whole: {first}" if first is not None else ""
    help_ = " ".join(dict.fromkeys(text for node in nodes.values() if (text := remedy(node.op_type)) is not None))
    listed = "; ".join(reasons) or "no node's result depends on the inputs"
    said = f"{os.path.basename(path)}: nothing of it runs on the NPU: {listed}."
    return " ".join(text for text in (said, help_, whole) if text)
