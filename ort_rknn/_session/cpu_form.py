"""The ONNX in the form that provider options ask for, for onnxruntime's CPU session.

``layout``, ``input_dtype`` and ``output_dtype`` say what a program feeds and receives. A session that falls back to the
CPU keeps that form with extra nodes before the ONNX's graph (Transpose, Cast, Sub, Div) and after it (Cast), so that
``get_inputs()`` is correct and ``run`` stays onnxruntime's. A compiled model may normalize its integer inputs; then the
same is done here, as recorded in the compiled model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    Disagreement,
    OnnxFileError,
    OnnxValue,
    RknnFile,
    RknnFileError,
    RknnTensor,
    left_out,
    read_onnx,
    read_rknn,
)
from ..files.surrounded import Edge, Step, surrounded
from .compiled_beside import parts_beside, wholes_beside

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
    compiled = _CompiledModels(facts, options, source, names, [value.name for value in onnx.outputs])
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
    notes = [f"input {e.name!r}: {_told(e)} in front of the ONNX's graph" for e in inputs]
    notes += [f"output {e.name!r}: {_told(e)} behind the ONNX's graph" for e in outputs]
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


def _told(edge: Edge) -> str:
    return ", ".join(step.op_type for step in edge.steps)


# Inputs and outputs -------------------------------------------------------------------------------------------------


def _input(value: OnnxValue, names: Sequence[str], options: Options, compiled: _CompiledModels) -> Edge | None:
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


def _raw_input(value: OnnxValue, own: str, compiled: _CompiledModels) -> tuple[str, list[Step]]:
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


def _is_nhwc(value: OnnxValue, asked: str | None, options: Options, compiled: _CompiledModels) -> bool:
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


def _norm(value: OnnxValue, dtype: str, compiled: _CompiledModels) -> list[Step]:
    """The steps a compiled model applies to integers, in float32 and the ONNX's order of axes: ``(x - mean) / std``, or
    none."""
    tensor = compiled.input_of(value.name, dtype)
    norm = normalization_of(tensor) if tensor is not None else None
    if norm is None:
        return []
    std, mean = per_channel(norm, "NCHW", 4)  # files record it for four-dimensional inputs only
    return [_cast("float32"), Step("Sub", constant=mean), Step("Div", constant=std)]


def _output(value: OnnxValue, options: Options, compiled: _CompiledModels) -> Edge | None:
    asked = options.output_dtype
    if asked == "onnx":
        return None
    own = _own_dtype("output", value, f"output_dtype={asked!r}")
    if asked == "native":
        return _raw(value, own, compiled)
    return Edge(value.name, DTYPES["float32"][0], [_cast("float32")]) if own != "float32" else None


def _raw(value: OnnxValue, own: str, compiled: _CompiledModels) -> Edge | None:
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


# What compiled models tell ------------------------------------------------------------------------------------------


class _CompiledModels:
    """The compiled models of the ONNX, whether or not they can run here."""

    def __init__(
        self, facts: Facts, options: Options, source: str | bytes, inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        self._facts = facts
        self._options = options
        self._source = source
        self._names = (tuple(inputs), tuple(outputs))
        self._files: list[tuple[str, RknnFile]] | None = None
        self._unread: list[str] = []
        self.notes: list[str] = []
        self.raw: dict[str, Quantization] = {}

    def shape_of(self, name: str) -> Sequence[int] | None:
        """An input's compiled shape in the ONNX's order of axes; None if it is unknown."""
        for _, file in self._known():
            tensor = _tensor(file.inputs, self._names[0], name)
            if tensor is not None and tensor.shape is not None:
                return tensor.shape
        return None

    def input_of(self, name: str, dtype: str) -> RknnTensor | None:
        """What the compiled models say about an input; None if they dropped it because nothing reads it.

        Raises OptionError if none of them records mean and std, or if they differ.
        """
        said: dict[Any, tuple[str, RknnTensor | None]] = {}
        for label, file in self._known():
            tensor = _tensor(file.inputs, self._names[0], name)
            if tensor is None and (file.encrypted or not file.inputs):
                continue
            if tensor is not None and tensor.mean is None and tensor.std is None:
                continue
            norm = normalization_of(tensor) if tensor is not None else None
            said.setdefault((norm.mean, norm.std) if norm is not None else None, (label, tensor))
        for label, tensor in self._of_parts(name):
            norm = normalization_of(tensor)
            said.setdefault((norm.mean, norm.std) if norm is not None else None, (label, tensor))
        if len(said) == 1:
            ((label, tensor),) = said.values()
            norm = normalization_of(tensor) if tensor is not None else None
            if norm is not None:
                mean, std = list(norm.mean), list(norm.std)
                self.notes.append(f"input {name!r}: mean {mean} and std {std} as {label} says")
            return tensor
        asked = f"provider option input_dtype={dtype!r}: this session runs on the CPU, where input {name!r} is float"
        if said:
            others = " and ".join(label for label, _ in said.values())
            raise OptionError(f"{asked}, and {others} differ in its mean and std; name one with rknn_model")
        raise OptionError(
            f"{asked}, and no compiled model tells the mean and std that make it of integers ({self._looked()}); put "
            "the .rknn beside the ONNX, name it with rknn_model, or leave the option out and feed what the ONNX takes"
        )

    def _of_parts(self, name: str) -> Iterator[tuple[str, RknnTensor]]:
        """What the parts of a model in parts say about an input that they read."""
        onnx = self._onnx()
        for label, file in parts_beside(onnx) if onnx is not None and self._options.rknn_model is None else ():
            for tensor in file.inputs:
                if tensor.name == name and (tensor.mean is not None or tensor.std is not None):
                    yield label, tensor

    def output_of(self, name: str) -> RknnTensor | None:
        """What the compiled models say about an output; None if they left it out because it is constant.

        Raises OptionError if they record no type, or if they differ.
        """
        return self._stored("output", name, self._output)

    def stored_input(self, name: str) -> RknnTensor | None:
        """What the compiled models say about an input's type; None if they dropped it because nothing reads it.

        Raises OptionError if they record no type, or if they differ.
        """
        return self._stored("input", name, self._input)

    def _stored(
        self, what: str, name: str, tensor_of: Callable[[RknnFile, str], RknnTensor | None]
    ) -> RknnTensor | None:
        said: dict[Any, tuple[str, RknnTensor | None]] = {}
        for label, file in self._known():
            try:
                tensor = tensor_of(file, name)
            except (Disagreement, OnnxFileError, OSError) as error:
                self._unread.append(f"{label}: {error}")
                continue
            if tensor is None:
                said.setdefault(None, (label, None))
            elif tensor.runtime_dtype is not None:
                said.setdefault((tensor.runtime_dtype, tensor.quantization), (label, tensor))
        if len(said) == 1:
            ((label, tensor),) = said.values()
            how = tensor.quantization if tensor is not None else None
            if how is not None:
                told = f"scale {how.scale:g} and zero point {how.zero_point}"
                self.notes.append(f"{what} {name!r}: {told} as {label} says")
            return tensor
        asked = f"provider option {what}_dtype='native': this session runs on the CPU, and of {what} {name!r} "
        if said:
            others = " and ".join(label for label, _ in said.values())
            raise OptionError(f"{asked}{others} tell different types; name one with rknn_model")
        raise OptionError(
            f"{asked}no compiled model tells the type ({self._looked()}); put the .rknn beside the ONNX, name it with "
            "rknn_model, or leave the option out"
        )

    def _input(self, file: RknnFile, name: str) -> RknnTensor | None:
        if file.encrypted or not file.inputs:
            raise OnnxFileError("it does not describe its inputs")
        return _tensor(file.inputs, self._names[0], name)

    def _output(self, file: RknnFile, name: str) -> RknnTensor | None:
        tensor = _tensor(file.outputs, self._names[1], name)
        if tensor is not None:
            return tensor
        if file.encrypted or not file.outputs:
            raise OnnxFileError("it does not describe its outputs")
        left = left_out(self._source, [t.name for t in file.inputs], [t.name for t in file.outputs])
        return _tensor(file.outputs, self._names[1], left.copies[name]) if name in left.copies else None

    def _known(self) -> list[tuple[str, RknnFile]]:
        if self._files is None:
            self._files = [(c.name, c.file) for c in self._facts.candidates if c.file is not None]
            self._unread = [f"{c.name}: {'; '.join(c.reasons)}" for c in self._facts.candidates if c.file is None]
            if not self._facts.candidates:
                for path in self._paths():
                    try:
                        self._files.append((os.path.basename(path), read_rknn(path)))
                    except (RknnFileError, OSError) as error:
                        self._unread.append(str(error))
        return self._files

    def _paths(self) -> list[str]:
        """Without a device there is no SoC to look for; twins for any SoC agree on this."""
        if self._options.rknn_model is not None:
            return [self._options.rknn_model]
        onnx = self._onnx()
        return wholes_beside(onnx) if onnx is not None else []

    def _onnx(self) -> str | None:
        """The ONNX's path (for a model with EPContext nodes, that of the original); None if it is in memory."""
        onnx = self._source if self._facts.kind == "ep_context" else self._facts.model
        return onnx if isinstance(onnx, str) else None

    def _looked(self) -> str:
        told = "; ".join((*(f"{label} does not" for label, _ in self._known()), *self._unread))
        if told:
            return told
        if isinstance(self._facts.model, str):
            return f"none lies beside {self._facts.label}"
        return "a model in memory has none beside it"


def _tensor(tensors: Sequence[RknnTensor], names: Sequence[str], name: str) -> RknnTensor | None:
    """The tensor for the ONNX's ``name``: by name, or by position if no name matches."""
    by_name = {tensor.name: tensor for tensor in tensors}
    if name in by_name:
        return by_name[name]
    if len(tensors) == len(names) and not by_name.keys() & set(names):
        return tensors[names.index(name)]
    return None
