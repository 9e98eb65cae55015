"""Applies ``layout``, ``input_dtype`` and ``output_dtype`` to a model in parts. The parts that read the graph's inputs
and produce its outputs convert them, as a whole compiled model does.

The graph then declares the converted types, which onnxruntime enforces. No node is added: a part converts on the way to
and from the NPU. What a node on the CPU reads or produces keeps its form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .._errors import OptionError
from .._executor.declared import Declared
from .._executor.ports import pick
from .._options import SIGNATURE_OPTIONS, Options
from .._regular import open_regular
from .._tensors import DTYPES
from ..files import EpContextNode, OnnxModel, OnnxValue, RknnFile, RknnTensor
from ..files._onnx_part import PartNode, read_nodes
from ..files._source import open_source
from ..files._wire import WireError
from ..files.onnx_model import OnnxFileError
from ..files.surrounded import Edge, redeclared
from .in_parts import part_of
from .request import OUR_NAMES

_TO_NHWC = (0, 2, 3, 1)
Original = tuple[Sequence[Declared], Sequence[Declared]]


@dataclass(frozen=True, slots=True)
class PartsForm:
    """What the provider needs to know about a model in parts, besides the model itself."""

    options: Options
    """The session's options."""
    names: tuple[str, ...]
    """Names of the graph's inputs."""
    declared: Mapping[str, Declared] = field(default_factory=dict)
    """The original declarations of the inputs and outputs that the graph now declares in another form."""
    content: bytes | None = None
    """The model that onnxruntime loads; None: the model as given."""

    def of_node(self, inputs: Sequence[Declared], outputs: Sequence[Declared]) -> tuple[Options, Original, set[str]]:
        """For a node with these tensors: its options, the tensors as its compiled model declares them, and the outputs
        that keep the ONNX's form."""
        own = [self.declared.get(value.name, value) for value in inputs]
        made = [self.declared.get(value.name, value) for value in outputs]
        ranks = {value.name: len(value.dims) if value.dims is not None else 0 for value in own}
        fed = [name for name in ranks if name in self.names]
        options = self.options
        layout = {name: asked for name in ranks if (asked := self._layout(name, ranks[name])) is not None}
        dtypes = {name: asked for name in fed if (asked := _asked(options.input_dtype, name)) is not None}
        axes = {name: self._pad_axes(name, rank) for name, rank in ranks.items()}
        pad_axes = {name: of_name for name, of_name in axes.items() if of_name}
        narrowed = options._replace(layout=layout, input_dtype=dtypes, pad_axes=pad_axes)
        return narrowed, (own, made), {value.name for value in made if value.name not in self.declared}

    def _layout(self, name: str, rank: int) -> str | None:
        return _asked(self.options.layout, name) if name in self.names and rank == 4 else None

    def _pad_axes(self, name: str, rank: int) -> tuple[int, ...]:
        """The axes of a tensor between parts that may be padded: those that a graph input of its rank may pad."""
        given = self.options.pad_axes
        if name in given or "*" in given:
            return tuple(axis for axis in given.get(name, given.get("*", ())) if name in given or axis < rank)
        if name in self.names:
            return ()
        return tuple(sorted({axis for axes in given.values() for axis in axes if axis < rank}))


def _asked(options: Mapping[str, str], name: str) -> str | None:
    return options.get(name, options.get("*"))


def parts_form(source: str | bytes, onnx: OnnxModel, options: Options, label: str) -> PartsForm:
    """The form that the options ask for, of the model with EPContext nodes at ``source`` (a path, or the model's
    bytes).

    Raises OptionError, naming the node, if a node on the CPU prevents it, and for inputs and outputs that do not exist.
    """
    names = tuple(value.name for value in onnx.inputs)
    form = PartsForm(options, names)
    asked = [key for key in (*SIGNATURE_OPTIONS, "pad_axes") if key in options.given]
    if not asked:
        return form
    if options.native_layout:
        raise OptionError(
            f"provider option {options.native_layout}='native': {label} has nodes on the NPU and a graph around them, "
            "which needs tensors as the ONNX has them; leave it out"
        )
    return _Former(source, onnx, options, label, form).made()


class _Former:
    def __init__(self, source: str | bytes, onnx: OnnxModel, options: Options, label: str, form: PartsForm) -> None:
        self._source = source
        self._onnx = onnx
        self._options = options
        self._label = label
        self._form = form
        self._parts = {name: node for node in onnx.ep_context_nodes for name in node.outputs}
        self._files: dict[int, RknnFile] = {}
        with open_source(source, OnnxFileError) as data:
            try:
                self._nodes = read_nodes(data).nodes
            except WireError as problem:
                raise OnnxFileError(f"{label}: a damaged ONNX model; {problem}") from None

    def made(self) -> PartsForm:
        """See :func:`parts_form`."""
        self._check_pad_axes()
        inputs = [edge for value in self._onnx.inputs if (edge := self._input(value)) is not None]
        outputs = [edge for value in self._onnx.outputs if (edge := self._output(value)) is not None]
        declared = {value.name: _declared(value) for value in (*self._onnx.inputs, *self._onnx.outputs)}
        changed = {edge.name: declared[edge.name] for edge in (*inputs, *outputs)}
        if not changed:
            return self._form
        data = self._source if isinstance(self._source, bytes) else _read(self._source)
        content = redeclared(data, {edge.name: edge for edge in inputs}, {edge.name: edge for edge in outputs})
        return replace(self._form, declared=changed, content=content)

    # Inputs ---------------------------------------------------------------------------------------------------

    def _input(self, value: OnnxValue) -> Edge | None:
        names, options = self._form.names, self._options
        layout = pick(options.layout, value.name, "layout", names)
        dtype = pick(options.input_dtype, value.name, "input_dtype", names)
        rank = len(value.dims) if value.dims is not None else None
        if layout is not None and rank != 4 and value.name in options.layout:
            raise OptionError(
                f"provider option layout: input {value.name!r} has {'no' if rank is None else rank} axes; only 4-D "
                "inputs have a layout"
            )
        order = _TO_NHWC if layout == "NHWC" and rank == 4 else None
        readers = [node for node in self._nodes if value.name in node.reads]
        if dtype == "native":
            dtype = self._stored("input", value.name, [self._part(node) for node in readers])
        if order is None and dtype in (None, value.dtype):
            return None
        key = "layout" if dtype in (None, value.dtype) else "input_dtype"
        self._refuse_cpu(key, value.name, readers)
        element = DTYPES[dtype][0] if dtype is not None else value.elem_type
        if element is None:
            raise OptionError(f"provider option {key}: input {value.name!r} is {value.type_text}")
        return Edge(value.name, element, (), order)

    def _refuse_cpu(self, key: str, name: str, readers: Sequence[PartNode]) -> None:
        on_cpu = next((node for node in readers if self._part(node) is None), None)
        if on_cpu is not None:
            raise OptionError(
                f"provider option {key!r}: input {name!r} of {self._label} is read by {_spell(on_cpu)} on the CPU, "
                "which needs it as the ONNX has it; leave the option out, or give it for other inputs by name"
            )
        if any(value.name == name for value in self._onnx.outputs):
            raise OptionError(f"provider option {key!r}: {name!r} of {self._label} is an input and an output at once")

    def _check_pad_axes(self) -> None:
        ranks = {value.name: len(value.dims or ()) for value in self._onnx.inputs}
        inner = {name for node in self._onnx.ep_context_nodes for name in node.inputs}
        for name, axes in self._options.pad_axes.items():
            if name != "*" and name not in ranks and name not in inner:
                raise OptionError(
                    f"provider option pad_axes names an input {name!r}; the model has {', '.join(self._form.names)}"
                )
            known = ranks.get(name) if name != "*" else max(ranks.values(), default=0)
            for axis in axes:
                if known is not None and axis >= known:
                    whose = "no input has" if name == "*" else f"input {name!r} lacks"
                    raise OptionError(
                        f"provider option pad_axes names axis {axis}, which {whose}: axes are 0 to {known - 1}"
                    )
            if name in ranks and not any(name in node.inputs for node in self._onnx.ep_context_nodes):
                reader = next((node for node in self._nodes if name in node.reads), None)
                raise OptionError(
                    f"provider option pad_axes: no part on the NPU reads input {name!r} of {self._label}"
                    + (f": {_spell(reader)} on the CPU does" if reader is not None else "")
                )

    # Outputs --------------------------------------------------------------------------------------------------

    def _output(self, value: OnnxValue) -> Edge | None:
        asked = self._options.output_dtype
        if asked == "onnx":
            return None
        maker = next((node for node in self._nodes if value.name in node.outputs), None)
        part = self._part(maker) if maker is not None else None
        if asked == "float32" and value.dtype == "float32":
            return None
        if part is None:
            made = f"made by {_spell(maker)} on the CPU" if maker is not None else "no part's"
            raise OptionError(
                f"provider option output_dtype={asked!r}: output {value.name!r} of {self._label} is {made}, as the "
                "ONNX has it; leave the option out"
            )
        dtype = "float32" if asked == "float32" else self._stored("output", value.name, [part])
        reader = next((node for node in self._nodes if value.name in node.reads), None)
        if reader is not None:
            raise OptionError(
                f"provider option output_dtype={asked!r}: output {value.name!r} of {self._label} is also read by "
                f"{_spell(reader)}, which needs it as the ONNX has it; leave the option out"
            )
        return Edge(value.name, DTYPES[dtype][0], ())

    # Parts ----------------------------------------------------------------------------------------------------

    def _part(self, node: PartNode) -> EpContextNode | None:
        """The EPContext node of ours that this node of the main graph is; None for any other node."""
        if node.op_type != "EPContext" or node.domain != "com.microsoft":
            return None
        part = next((self._parts[name] for name in node.outputs if name in self._parts), None)
        return part if part is not None and part.source in OUR_NAMES else None

    def _stored(self, what: str, name: str, parts: Sequence[EpContextNode | None]) -> str:
        """The dtype in which the parts' compiled models store a tensor."""
        asked = f"provider option {what}_dtype='native': {what} {name!r} of {self._label}"
        found: dict[str | None, None] = {}
        for part in parts:
            if part is not None:
                file = self._file(part)
                tensors: Sequence[RknnTensor] = file.inputs if what == "input" else file.outputs
                found[next((t.runtime_dtype for t in tensors if t.name == name), None)] = None
        if not found and what == "input":
            raise OptionError(f"{asked} is read by no part on the NPU; leave the option out")
        dtype = next(iter(found))
        if len(found) > 1 or dtype not in DTYPES:
            raise OptionError(f"{asked} is stored as {' and '.join(str(d or 'something unknown') for d in found)}")
        assert dtype is not None
        return dtype

    def _file(self, part: EpContextNode) -> RknnFile:
        if part.cache_offset not in self._files:
            try:
                self._files[part.cache_offset] = part_of(self._source, part)
            except (ValueError, OSError) as error:
                raise OptionError(f"{self._label}: {part.name}: {error}") from error
        return self._files[part.cache_offset]


def _declared(value: OnnxValue) -> Declared:
    return Declared(value.name, value.dtype or "", value.dims)


def _spell(node: PartNode) -> str:
    """A node, for a message."""
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    return f"the {node.op_type} that makes {next((name for name in node.outputs if name), '?')!r}"


def _read(path: str) -> bytes:
    with open_regular(path) as file:
        return file.read()
