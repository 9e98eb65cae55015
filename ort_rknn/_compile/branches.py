"""Replaces each ``If`` that the compiled shapes decide by the branch that it takes.

Exporters write an ``If`` where an axis may be 1, for example for ``squeeze``. The toolkit refuses every ``If``, and on
the CPU it would divide the model. Only what is compiled as a whole has its branches replaced: at other shapes, sessions
run the user's own ONNX. In a model with a free batch, a branch is taken only if the batch does not decide it and if the
samples of what is left are proved to be independent, which a session cannot prove of a graph with an ``If``. Otherwise
such a model keeps them, and its parts can be run sample by sample, since none of them has an ``If``.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from .._independence import independence_of, same_for_any_batch
from ..files import OnnxFileError, read_onnx
from ..files._onnx_part import read_nodes
from ..files._source import open_source
from .freeze import drop_unused, inline_branches
from .observe import Array, observe, random_feeds
from .prepare import PreparedModel, PrepareError, link
from .shapes import CompiledShapes


def take_branches(prepared: PreparedModel, shapes: CompiledShapes, folder: str) -> PreparedModel:
    """``prepared`` with the branches that are taken at ``shapes``; a changed copy is written to ``folder``.

    An ``If`` whose condition depends on data stays, as do all of a model with several sets of shapes, or that
    onnxruntime does not run; those of a model with a free batch see above.
    """
    if len(shapes.sets) > 1:
        return prepared
    with open_source(prepared.path, OnnxFileError) as data:
        if not any(node.op_type == "If" for node in read_nodes(data).nodes):
            return prepared
    model = onnx.load(prepared.path, load_external_data=False)
    beside = os.path.dirname(prepared.path)
    taken: list[str] = []
    while decided := _decided(model, shapes, beside):
        taken += decided
        inline_branches(model)
    if not taken:
        return prepared
    drop_unused(model.graph)
    os.makedirs(folder, exist_ok=True)
    place = Path(folder) / os.path.basename(prepared.path)
    onnx.save(model, place)
    for name in prepared.signature.external_data:
        link(Path(beside) / name, Path(folder) / name)
    if shapes.batch_axis and not independence_of(str(place)).proved:
        return prepared
    independent = True if shapes.batch_axis else None
    signature, notes = read_onnx(place), (*prepared.notes, *taken)
    return replace(prepared, path=str(place), signature=signature, notes=notes, independent=independent)


def _decided(model: onnx.ModelProto, shapes: CompiledShapes, folder: str) -> list[str]:
    """Make an initializer of the condition of each ``If`` that is decided at the compiled shapes, and with a free batch
    at any number of samples; returns a note on each."""
    graph = model.graph
    found = [node for node in graph.node if node.op_type == "If" and node.domain in ("", "ai.onnx")]
    if not found:
        return []
    fed = {value.name for value in graph.input}
    values: dict[str, Array] = {
        tensor.name: numpy_helper.to_array(tensor, folder)
        for tensor in graph.initializer
        if tensor.name not in fed and any(tensor.name == node.input[0] for node in found)
    }
    computed = {node.input[0] for node in found} - values.keys()
    if shapes.batch_axis:  # no run shows this: at some larger number another branch may be taken
        computed &= same_for_any_batch(model.SerializeToString())
    if computed:
        try:
            constants = observe(model, folder, [random_feeds(model, shapes.sets[0])]).constants
        except PrepareError:
            return []
        values |= {name: constants[name] for name in computed & constants.keys()}
    notes = []
    for node in found:
        value = values.get(node.input[0])
        if value is None or value.size != 1:
            continue
        taken = bool(np.reshape(value, -1)[0])
        condition = f"{node.name or node.output[0]} condition {len(graph.initializer)}"
        node.input[0] = condition
        graph.initializer.append(numpy_helper.from_array(np.array(taken), condition))
        branch = "then_branch" if taken else "else_branch"
        notes.append(
            f"If {node.name or node.output[0]!r} takes its {branch} at the compiled shapes: only that is compiled"
        )
    return notes
