"""Which nodes can run on the NPU: by a table if that is certain, else by building the single node.

The vendor's operator list is out of date in both directions: the table contains only operators with no NPU form at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from .._json import JsonError, members, none_or, read_json, text
from .converter import BuildSpec, ConversionError, Converter
from .extract import extract
from .observe import Observed
from .opset import OpsetError, lower_opset
from .prepare import NEWEST_IR, NEWEST_OPSET
from .put import put
from .toolkit import ToolkitError, toolkit_folder

_CONTROL = "its inner graphs run on the CPU"
_DATA = "the length of its result depends on the data"
_NONE = "the NPU has no such operator"

#: Operators that never run there. Source: the vendor's OP_Support list of 2.3.2 ("not supported"), minus those that
#: toolkit 2.5.0 rewrites into others (Abs, Neg, Sum, Mean, Einsum ...), for which a build decides.
NEVER: Mapping[str, str] = {
    **dict.fromkeys(("If", "Loop", "Scan"), _CONTROL),
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Unique", "Compress"), _DATA),
    **dict.fromkeys(
        (
            "DynamicQuantizeLinear",
            "ConvInteger",
            "MatMulInteger",
            "QLinearConv",
            "QLinearMatMul",
            "RandomNormal",
            "RandomNormalLike",
            "RandomUniform",
            "RandomUniformLike",
            "Multinomial",
            "Bernoulli",
            "Det",
            "DFT",
            "STFT",
            "StringNormalizer",
            "TfIdfVectorizer",
        ),
        _NONE,
    ),
}


_REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(
        ("If", "Loop", "Scan"),
        "Export it without control flow, or make the input that decides a constant (--freeze NAME=VALUE).",
    ),
    **dict.fromkeys(
        ("DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
        "Give the ONNX from before its quantization, and quantize it here with --int8.",
    ),
}


def remedy(op_type: str) -> str | None:
    """What to do about an operator that keeps a whole model on the CPU; None if nothing general is known."""
    return _REMEDIES.get(op_type)


def refused_by_table(model: onnx.ModelProto) -> dict[int, str]:
    """Nodes of the main graph that the table rules out, by index, with the reason."""
    local = {(function.domain, function.name) for function in model.functions}
    refused = {}
    for index, node in enumerate(model.graph.node):
        if node.domain not in ("", "ai.onnx"):
            known = "a function of the model" if (node.domain, node.op_type) in local else "an operator"
            refused[index] = f"{node.op_type} of domain {node.domain!r} is {known} that the toolkit does not know"
        elif node.op_type in NEVER:
            refused[index] = f"{node.op_type}: {NEVER[node.op_type]}"
        elif node.op_type.startswith(("Sequence", "Optional", "SplitToSequence", "ConcatFromSequence")):
            refused[index] = f"{node.op_type}: the NPU holds tensors only"
    return refused


@dataclass(slots=True)
class Trials:
    """Builds of single nodes, cached by the node's operator, attributes, shapes and types."""

    converter: Converter
    target: str
    known: dict[str, str | None] = field(default_factory=dict)
    died: set[str] = field(default_factory=set)
    """Keys of trials that ended the toolkit's process: the next conversion tries again."""

    def why_refused(self, model: onnx.ModelProto, index: int, observed: Observed) -> str | None:
        """Why the toolkit refuses node ``index`` on its own; None if it accepts it."""
        node = model.graph.node[index]
        key = _key(node, observed, self.target)
        if key not in self.known:
            self.known[key] = self._try(model, index, observed)
            store(self.converter.toolkit.version, {k: v for k, v in self.known.items() if k not in self.died})
        return self.known[key]

    def _try(self, model: onnx.ModelProto, index: int, observed: Observed) -> str | None:
        node = model.graph.node[index]
        fixed = {tensor.name for tensor in model.graph.initializer} | set(observed.constants)
        inputs = [name for name in dict.fromkeys(node.input) if name and name not in fixed]
        outputs = [name for name in node.output if name]
        if any(name not in observed.shapes for name in (*inputs, *outputs)):
            return f"{node.op_type}: not all of its tensors are plain ones"
        try:
            one = extract(model, inputs, outputs, observed)
            lower_opset(one, NEWEST_OPSET)
            one.ir_version = min(one.ir_version, NEWEST_IR)
        except (OpsetError, ValueError) as error:
            return f"{node.op_type}: {error}"
        path = os.path.join(self.converter.folder, "one-node.onnx")
        onnx.save(one, path)
        try:
            self.converter.build(BuildSpec(path, self.target, {name: observed.shapes[name] for name in inputs}))
        except ConversionError as error:
            if error.died:
                self.died.add(_key(node, observed, self.target))
            return f"{node.op_type}: {short(error)}"
        return None


def remembered(version: str) -> dict[str, str | None]:
    """Results of earlier trials with this toolkit, from the user's cache. Invalid data are ignored: a trial costs
    little."""
    try:
        found = read_json(_cache(version), owner=os.getuid(), closed_to=0o022)
        trials = members(members(found, "the whole").get("trials"), "trials")
        read = {text(key, "a trial"): none_or(_reason, why, "a trial") for key, why in trials.items()}
        # Without a reason: from a time when the end of the toolkit's process counted as a refusal.
        return {key: why for key, why in read.items() if why is None or not why.endswith(": ")}
    except (OSError, ToolkitError, JsonError):
        return {}


def _reason(value: object, what: str) -> str:
    return text(value, what, most=1 << 16)


def store(version: str, known: Mapping[str, str | None]) -> None:
    """Store the results of trials. If the cache cannot be written, the next conversion only repeats some trials."""
    try:
        place = _cache(version)
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = json.dumps({"trials": {**remembered(version), **known}})
        put(place, lambda file: file.write(text.encode()))
    except (OSError, ToolkitError):
        pass


def _cache(version: str) -> Path:
    return toolkit_folder().parent / f"trials-{version}.json"


def _key(node: onnx.NodeProto, observed: Observed, target: str) -> str:
    bare = onnx.NodeProto.FromString(node.SerializeToString())
    bare.name = bare.doc_string = ""
    types = [(observed.elem_types.get(name), observed.shapes.get(name)) for name in (*node.input, *node.output)]
    del bare.input[:], bare.output[:]
    return hashlib.sha256(bare.SerializeToString() + repr((types, target)).encode()).hexdigest()


def short(error: ConversionError) -> str:
    """The toolkit's reason, in one line."""
    text = str(error).partition(": ")[2]
    text = text.partition(" Its whole output")[0]
    if "Traceback (most recent call last)" in text:
        head = text.partition("Traceback (most recent call last)")[0]
        said = [line.strip() for line in text.splitlines() if re.match(r"\s*\w*(Error|Exception): .*\w", line)]
        text = f"{head}{said[-1] if said else 'see its log'}"
    return " ".join(text.split())
