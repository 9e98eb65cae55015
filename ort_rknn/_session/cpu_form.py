"""The ONNX in the form that provider options ask for, for onnxruntime's CPU session.

``layout``, ``input_dtype`` and ``output_dtype`` say what a program feeds and receives. A session that falls back to the
CPU keeps that form with extra nodes before the ONNX's graph (Transpose, Cast, Sub, Div) and after it (Cast), so that
``get_inputs()`` is correct and ``run`` stays onnxruntime's. A compiled model may normalize its integer inputs; then the
same is done here, as recorded in the compiled model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._errors import OptionError
from .._executor.conversion import per_channel
from .._executor.declared import normalization_of
from .._executor.ports import pick
from .._options import SIGNATURE_OPTIONS, Options
from .._planning.facts import Facts
from .._regular import open_regular
from .._tensors import DTYPES, INPUT_DTYPES
from ..adapter import Quantization
from ..files import (
    OnnxFileError,
    OnnxValue,
    read_onnx,
)
from ..files.surrounded import Edge, Step, surrounded
from .compiled_beside import CompiledModels

_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
#: Operators as used here: Sub and Div broadcast since opset 7, Round exists since 11.
_OPSET, _OPSET_OF_RAW = 7, 11


@dataclass(frozen=True, slots=True)
class CpuForm:
    """What onnxruntime loads in place of the ONNX."""

    model: bytes
    folder: str | None
    """The folder of the weight files, if there are any; the model itself is in memory."""
    notes: tuple[str, ...]
    """What was added, for ``explain()``."""
    quantization: Mapping[str, Quantization]
    """Of the raw inputs and outputs, by name."""


def cpu_form(facts: Facts, options: Options, source: str | bytes) -> CpuForm | None:
    """The form that the options ask for, of the ONNX at ``source``; None if it has that form already.

    Raises OptionError for options that cannot be satisfied: an input does not exist, has no layout, or is fed integers
    and no compiled model says what they mean. Raises OnnxFileError or OSError for an ONNX that cannot be read.
    """
    onnx = read_onnx(source)
    names = [value.name for value in onnx.inputs]
    compiled = CompiledModels(facts, options, source, names, [value.name for value in onnx.outputs])
    if not names and (options.layout or options.input_dtype):
        raise OptionError(f"provider option {_first(options)!r}: {facts.label} has no inputs")
    inputs = [edge for value in onnx.inputs if (edge := _input(value, names, options, compiled)) is not None]
    outputs = [edge for value in onnx.outputs if (edge := _output(value, options, compiled)) is not None]
    if not inputs and not outputs:
        return None
    needed = _OPSET_OF_RAW if compiled.raw else _OPSET
    if onnx.opsets.get("", needed) < needed:
        raise OptionError(
            f"provider option {_first(options)!r} cannot be kept on the CPU: {facts.label} uses opset "
            f"{onnx.opsets['']}, and this needs {needed} or later; convert the ONNX, or leave the option out"
        )
    folder, locations = _weights(source, onnx.external_data)
    data = source if isinstance(source, bytes) else _read(source)
    if read_onnx(data) != onnx:
        raise OnnxFileError(f"{facts.label} was changed while it was read")
    try:
        model = surrounded(data, inputs, outputs, locations)
    except OnnxFileError:
        raise
    except ValueError as error:
        raise OptionError(f"provider option {_first(options)!r} cannot be kept on the CPU: {error}") from None
    notes = [f"input {e.name!r}: {_describe(e)} in front of the ONNX's graph" for e in inputs]
    notes += [f"output {e.name!r}: {_describe(e)} behind the ONNX's graph" for e in outputs]
    return CpuForm(model, folder, (*notes, *compiled.notes), compiled.raw)


def _read(path: str) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _weights(source: str | bytes, files: Sequence[str]) -> tuple[str | None, Mapping[str, str]]:
    """The folder of a model's external data, and the files in it whose paths differ from those stored in the model.

    A hub's cache contains links to files with other names. onnxruntime follows them for a model given by path, but not
    for a model in memory, whose data must lie in its folder.
    """
    if isinstance(source, bytes) or not files:
        return None, {}
    folder, blobs = os.path.dirname(os.path.abspath(source)), os.path.dirname(os.path.realpath(source))
    behind = {name: os.path.realpath(os.path.join(folder, name)) for name in files}
    if all(_inside(os.path.realpath(folder), path) for path in behind.values()):
        return folder, {}
    if all(_inside(blobs, path) for path in behind.values()):
        return blobs, {name: os.path.relpath(path, blobs) for name, path in behind.items()}
    return folder, {}  # left to onnxruntime


def _inside(folder: str, path: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _first(options: Options) -> str:
    return next(key for key in SIGNATURE_OPTIONS if key in options.given)


def _describe(edge: Edge) -> str:
    return ", ".join(step.op_type for step in edge.steps)


# Inputs and outputs -------------------------------------------------------------------------------------------------


def _input(value: OnnxValue, names: Sequence[str], options: Options, compiled: CompiledModels) -> Edge | None:
    dtype = pick(options.input_dtype, value.name, "input_dtype", names)
    to_nhwc = _is_nhwc(value, pick(options.layout, value.name, "layout", names), options, compiled)
    steps = [Step("Transpose", {"perm": _TO_NCHW})] if to_nhwc else []
    elem_type = value.elem_type
    if dtype == "native":
        own = _own_dtype("input", value, f"input_dtype={dtype!r}")
        stored, more = _raw_input(value, own, compiled)
        elem_type = DTYPES[stored][0]
        steps += more
    elif dtype is not None and dtype != value.dtype:
        own = _own_dtype("input", value, f"input_dtype={dtype!r}")
        elem_type = DTYPES[dtype][0]
        norm = _norm(value, dtype, compiled) if own.startswith("float") and not dtype.startswith("float") else []
        steps += [*norm, _cast(own)] if own != "float32" or not norm else norm
    if not steps:
        return None
    assert elem_type is not None
    return Edge(value.name, elem_type, steps, _TO_NHWC if to_nhwc else None)


def _raw_input(value: OnnxValue, own: str, compiled: CompiledModels) -> tuple[str, list[Step]]:
    """The dtype of an input as the compiled model stores it, and the steps from there to the ONNX's input: stored
    values are already normalized."""
    tensor = compiled.stored_input(value.name)
    if tensor is None:
        return own, []
    dtype, how = tensor.runtime_dtype or "", tensor.quantization
    if dtype not in INPUT_DTYPES:
        raise OptionError(f"provider option input_dtype='native': input {value.name!r} is {dtype}")
    if how is None:
        return dtype, [_cast(own)] if dtype != own else []
    compiled.raw[value.name] = how
    numbers = {"Sub": how.zero_point, "Mul": how.scale}
    steps = [_cast("float32"), *(Step(op, constant=np.asarray(n, np.float32)) for op, n in numbers.items())]
    return dtype, [*steps, *([_cast(own)] if own != "float32" else [])]


def _cast(dtype: str) -> Step:
    return Step("Cast", {"to": DTYPES[dtype][0]})


def _own_dtype(what: str, value: OnnxValue, asked: str) -> str:
    """The ONNX's dtype. Raises OptionError if it cannot be converted."""
    if value.dtype is None or value.dtype not in DTYPES:
        raise OptionError(
            f"provider option {asked}: {what} {value.name!r} is {value.type_text}, which is not converted; leave it out"
        )
    return value.dtype


def _is_nhwc(value: OnnxValue, asked: str | None, options: Options, compiled: CompiledModels) -> bool:
    """Whether the caller's axes are in another order than the ONNX's. Raises OptionError for a named input that has no
    layout."""
    if asked is None:
        return False
    shape: Sequence[Any] | None = value.dims if value.dims is not None else compiled.shape_of(value.name)
    if value.kind != "tensor":
        if "*" not in options.layout:
            raise OptionError(f"provider option layout: input {value.name!r} is {value.type_text}, which has no layout")
        return False
    if shape is None:
        if asked != "NHWC":
            return False
        raise OptionError(
            f"provider option layout: input {value.name!r} has no rank in the ONNX, and no compiled model tells it; "
            "leave it out"
        )
    if len(shape) != 4 and "*" not in options.layout:
        raise OptionError(
            f"provider option layout: input {value.name!r} has {len(shape)} axes; only 4-D inputs have a layout"
        )
    return len(shape) == 4 and asked == "NHWC"


def _norm(value: OnnxValue, dtype: str, compiled: CompiledModels) -> list[Step]:
    """The steps a compiled model applies to integers, in float32 and the ONNX's order of axes: ``(x - mean) / std``, or
    none."""
    tensor = compiled.input_of(value.name, dtype)
    norm = normalization_of(tensor) if tensor is not None else None
    if norm is None:
        return []
    std, mean = per_channel(norm, "NCHW", 4)  # files record it for four-dimensional inputs only
    return [_cast("float32"), Step("Sub", constant=mean), Step("Div", constant=std)]


def _output(value: OnnxValue, options: Options, compiled: CompiledModels) -> Edge | None:
    asked = options.output_dtype
    if asked == "onnx":
        return None
    own = _own_dtype("output", value, f"output_dtype={asked!r}")
    if asked == "native":
        return _raw(value, own, compiled)
    return Edge(value.name, DTYPES["float32"][0], [_cast("float32")]) if own != "float32" else None


def _raw(value: OnnxValue, own: str, compiled: CompiledModels) -> Edge | None:
    """The steps from the ONNX's output to the form in which the compiled model stores it."""
    tensor = compiled.output_of(value.name)
    if tensor is None:
        return None
    dtype, how = tensor.runtime_dtype or "", tensor.quantization
    if dtype not in DTYPES:
        raise OptionError(f"provider option output_dtype='native': output {value.name!r} is {dtype}")
    if how is None:
        return Edge(value.name, DTYPES[dtype][0], [_cast(dtype)]) if dtype != own else None
    compiled.raw[value.name] = how
    limits = np.iinfo(dtype)
    steps = [] if own == "float32" else [_cast("float32")]
    numbers = {"Div": how.scale, "Round": None, "Add": how.zero_point, "Max": limits.min, "Min": limits.max}
    steps += [Step(op, constant=None if n is None else np.asarray(n, np.float32)) for op, n in numbers.items()]
    return Edge(value.name, DTYPES[dtype][0], [*steps, _cast(dtype)])
