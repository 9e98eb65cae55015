"""Compiled models beside an ONNX, for any SoC. What they say about it is true even if none of them can run here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._errors import OptionError
from .._executor.declared import normalization_of
from .._options import Options
from .._planning.facts import Facts
from ..adapter import SOC_CORES, Quantization
from ..files import (
    Disagreement,
    OnnxFileError,
    RknnFile,
    RknnFileError,
    RknnTensor,
    find_twins,
    left_out,
    read_onnx,
    read_rknn,
)
from ..files.compiled_places import confined_path, find_context_models


def wholes_beside(onnx: str) -> list[str]:
    """The twins of an ONNX for any SoC, those for a single SoC first."""
    found = (os.fspath(path) for soc in SOC_CORES for path in find_twins(onnx, soc))
    return sorted(dict.fromkeys(found), key=lambda path: path == os.path.splitext(onnx)[0] + ".rknn")


def parts_beside(onnx: str) -> Iterator[tuple[str, RknnFile]]:
    """The compiled parts beside an ONNX, with their names. Unreadable ones are skipped: a session that loads them
    reports why."""
    models = dict.fromkeys(os.fspath(path) for soc in SOC_CORES for path in find_context_models(onnx, soc))
    for model in models:
        try:
            nodes = read_onnx(model).ep_context_nodes
        except (OnnxFileError, OSError):
            continue
        for node in nodes:
            if node.embed_mode == 0 and node.cache_context is not None:
                try:
                    path = confined_path(model, node.cache_context.decode())
                    yield os.path.basename(path), read_rknn(path)
                except (RknnFileError, OSError, ValueError):
                    continue


#: The answers of the compiled models about one port, each with the label of the first model that gives it.
_Said = dict[Any, tuple[str, RknnTensor | None]]


class CompiledModels:
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
        said: _Said = {}
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

        def conversion(tensor: RknnTensor) -> str | None:
            norm = normalization_of(tensor)
            return None if norm is None else f"mean {list(norm.mean)} and std {list(norm.std)}"

        asked = (
            f"provider option input_dtype={dtype!r}: this session runs on the CPU, where input {name!r} is float, and "
        )
        return self._agreed(
            said,
            f"input {name!r}",
            conversion,
            asked=asked,
            differ="differ in its mean and std",
            missing="the mean and std that make it of integers",
            instead=" and feed what the ONNX takes",
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
        said: _Said = {}
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

        def conversion(tensor: RknnTensor) -> str | None:
            how = tensor.quantization
            return None if how is None else f"scale {how.scale:g} and zero point {how.zero_point}"

        return self._agreed(
            said,
            f"{what} {name!r}",
            conversion,
            asked=f"provider option {what}_dtype='native': this session runs on the CPU, and of {what} {name!r} ",
            differ="tell different types",
            missing="the type",
        )

    def _agreed(
        self,
        said: _Said,
        port: str,
        conversion: Callable[[RknnTensor], str | None],
        *,
        asked: str,
        differ: str,
        missing: str,
        instead: str = "",
    ) -> RknnTensor | None:
        """The only answer of the compiled models, with a note of the ``conversion`` of ``port``. Raises OptionError,
        whose text begins with ``asked``, if their answers ``differ``, and if all of them are ``missing`` it."""
        if len(said) == 1:
            ((label, tensor),) = said.values()
            found = conversion(tensor) if tensor is not None else None
            if found is not None:
                self.notes.append(f"{port}: {found} as {label} says")
            return tensor
        if said:
            others = " and ".join(label for label, _ in said.values())
            raise OptionError(f"{asked}{others} {differ}; name one with rknn_model")
        raise OptionError(
            f"{asked}no compiled model tells {missing} ({self._looked()}); put the .rknn beside the ONNX, name it with "
            f"rknn_model, or leave the option out{instead}"
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
