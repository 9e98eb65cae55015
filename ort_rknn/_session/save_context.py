"""``ep.context_enable`` in our sessions: our own writer writes the model with its compiled nodes.

onnxruntime would write its newest IR version, which older releases do not load; our file loads in all of them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._ep.context_nodes import EMBED, ENABLE, FILE_PATH, target_of
from .._errors import FAIL, INVALID_ARGUMENT, ort_error
from .._executor.declared import Declared, declared_by_file
from .._executor.executor import Executor
from .._options import PROVIDER
from .._planning.session_options import config_entry
from .._tensors import DTYPES
from ..files import OnnxModel, ep_context_model, read_rknn
from ..files._source import open_source
from ..files.onnx_model import OnnxFileError
from ..files.pinned import stays_inside
from ..files.saved import Content, compiled_file, put, with_contents
from .load import fields_of

if TYPE_CHECKING:
    from .state import State


def save_context(state: State, so: Any) -> None:
    """Write the model that the session's config entries ask for. Raises Fail, as onnxruntime does, if the file exists
    or cannot be written; InvalidArgument if there is no path to write to."""
    if config_entry(so, ENABLE) != "1":
        return
    assert state.plan is not None and state.facts is not None
    if state.plan.stand_in:
        state.notes.append(f"{ENABLE}: nothing is written, because there is no compiled model")
        return
    entries = {key: value for key in (FILE_PATH, EMBED) if (value := config_entry(so, key)) is not None}
    target = target_of(entries, state.path or "")
    if not target:
        raise ort_error(INVALID_ARGUMENT, f"{ENABLE}=1: a model in memory has no place of its own: give {FILE_PATH}")
    if os.path.exists(target):
        raise ort_error(FAIL, f"{ENABLE}=1: {target} exists already; remove it, or give another {FILE_PATH}")
    embed = entries.get(EMBED, "0") == "1"
    try:
        if state.executor is not None:
            content = _whole(state, state.executor, target, embed)
        else:
            content = _in_parts(state, target, embed)
        put(target, content, replace=False)
    except FileExistsError as error:
        raise ort_error(FAIL, f"{ENABLE}=1: {target} exists already") from error
    except (OSError, ValueError) as error:
        raise ort_error(FAIL, f"{ENABLE}=1: {target} cannot be written: {error}") from error
    state.notes.append(f"{ENABLE}: written to {target}")


def _content(executor: Executor, target: str, embed: bool, name: str) -> Content:
    if embed:
        return Content(True, executor.compiled())
    return Content(False, compiled_file(target, executor.provenance.source, executor.compiled, name))


def _whole(state: State, executor: Executor, target: str, embed: bool) -> bytes:
    facts, made = state.facts, state.plan
    assert facts is not None and made is not None and made.found is not None
    file = made.candidate.file if made.candidate is not None else None
    file = file if file is not None else read_rknn(executor.compiled())
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    attributes = {
        "partition_name": "whole",
        "hardware_architecture": file.targets[0] if file.targets else made.found.device.soc,
        "ep_sdk_version": file.toolkit_version or "",
    }
    if made.use_onnx and facts.onnx is not None:
        known = {port.name: _WrittenValue(_port(port)) for port in executor.signature.outputs}
        inputs = facts.onnx.inputs
        outputs = [known.get(value.name, value) if value.dims is None else value for value in facts.onnx.outputs]
        if isinstance(facts.onnx_source, str) and _beside(facts.onnx_source, target):
            attributes["onnx_model_filename"] = os.path.basename(facts.onnx_source)
    else:
        declared = declared_by_file(file)
        ports = executor.signature
        sides = declared or ([_port(p) for p in ports.inputs], [_port(p) for p in ports.outputs])
        inputs, outputs = ([_WrittenValue(v) for v in side] for side in sides)
    content = _content(executor, target, embed, "whole")
    return ep_context_model(
        model=fields_of(facts, made),
        inputs=inputs,
        outputs=outputs,
        source=PROVIDER,
        cache_context=content.context,
        node_name=os.path.splitext(facts.label)[0],
        embed_mode=int(content.embed),
        attributes={key: value for key, value in attributes.items() if value},
    )


class _WrittenValue:
    """A declared tensor, for the writer."""

    def __init__(self, value: Declared) -> None:
        self.name, self.dims = value.name, value.dims
        self.elem_type: int | None = DTYPES[value.dtype][0]


def _port(port: Any) -> Declared:
    return Declared(port.name, port.onnx_dtype, port.dims)


def _in_parts(state: State, target: str, embed: bool) -> bytes:
    facts, made = state.facts, state.plan
    assert facts is not None and made is not None
    source = made.parent_model
    candidate = made.candidate
    onnx = candidate.context_model if candidate is not None else facts.onnx
    assert onnx is not None
    if len(state.of_nodes) != len(onnx.ep_context_nodes):
        raise ValueError("nodes of other providers, or in graphs inside nodes, cannot be saved again")
    with open_source(source, OnnxFileError) as data:
        whole = data[0 : len(data)]
    by_outputs = {tuple(port.name for port in executor.signature.outputs): executor for executor in state.of_nodes}
    contents = [
        _content(by_outputs[node.outputs], target, embed, node.partition_name or node.name or f"part{number}")
        for number, node in enumerate(onnx.ep_context_nodes)
    ]
    if isinstance(source, str):
        _take_weights(onnx, os.path.dirname(os.path.abspath(source)), os.path.dirname(target))
    return with_contents(whole, contents)


def _take_weights(onnx: OnnxModel, folder: str, into: str) -> None:
    """Copy the data file of the nodes that stay on the CPU beside the written model."""
    if os.path.realpath(folder) == os.path.realpath(into):
        return
    for name in onnx.external_data:
        if not stays_inside(name):
            raise ValueError(f"its weights in {name!r} lie outside its folder")
        place = os.path.join(into, name)
        if not os.path.exists(place):
            os.makedirs(os.path.dirname(place), exist_ok=True)
            shutil.copyfile(os.path.join(folder, name), place)


def _beside(path: str, target: str) -> bool:
    return os.path.realpath(os.path.dirname(os.path.abspath(path))) == os.path.realpath(os.path.dirname(target))
