"""Inputs and outputs: the dtype, shape and axis order of each, for the caller and for the runtime.

By default these are the ONNX's dtypes, shapes and NCHW order. Provider options change them for speed: ``layout`` and
``input_dtype`` per input, ``output_dtype`` for all outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from .._errors import FAIL, OptionError, ort_error
from .._options import Options
from .._tensors import DTYPES, INPUT_DTYPES, Dim, Layout, Shape, cuts_integers
from ..adapter.contract import NativeForm, TensorInfo
from .batches import Splitting
from .declared import Declared, Normalization
from .matching import Evidence, Matched, confirm, fits

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of the session, and the tensor of the compiled model behind it."""

    name: str
    dtype: str
    dims: tuple[Dim, ...]
    layout: Layout
    """The caller's axis order: NCHW or NHWC for 4-D inputs, else UNDEFINED."""
    wire_dtype: str
    """The dtype that the runtime is given or returns; equal to ``dtype`` unless something is converted above the
    adapter."""
    info: TensorInfo
    index: int
    """Index in the model's own inputs or outputs; -1: the model lacks this tensor and is served without it."""
    wire_layout: Layout
    """The layout that the runtime is given or returns; differs from ``layout`` if axes are exchanged above the
    adapter."""
    onnx_dtype: str
    """The dtype that the ONNX declares."""
    normalization: Normalization | None = None
    """The normalization that the runtime applies to the input."""
    constant: NDArray[np.generic] | None = None
    """For an output that the model lacks because it is constant: its value."""
    copy_of: int | None = None
    """For an output that is a second name: the index (in the signature's order) of the output that it repeats."""
    raw: bool = False
    """For an input: the caller feeds it as stored, that is, normalized and quantized."""
    native: NativeForm | None = None
    """The NPU's storage format, if the caller's axes are in that format."""

    def takes(self, shape: Shape) -> bool:
        """Whether the dims allow a tensor of this shape. A scalar takes one element of any rank, as in onnxruntime."""
        if not self.dims:
            return all(n == 1 for n in shape)
        return len(shape) == len(self.dims) and all(not isinstance(d, int) or d == n for d, n in zip(self.dims, shape))

    @property
    def on_npu(self) -> bool:
        """Whether the runtime reads or writes it; otherwise the compiled model lacks it."""
        return self.index >= 0 and self.copy_of is None

    @property
    def denormalizes(self) -> bool:
        """The caller's floats are already normalized, but the runtime would normalize them again: undo that first."""
        return self.normalization is not None and self.dtype.startswith("float")

    @property
    def converts(self) -> bool:
        """Whether something is converted above the adapter; otherwise the runtime uses the caller's buffer directly."""
        return self.dtype != self.wire_dtype or self.layout != self.wire_layout or self.denormalizes

    @property
    def elem_type(self) -> int:
        """The ONNX element type of ``dtype``."""
        return DTYPES[self.dtype][0]


@dataclass(frozen=True, slots=True)
class Known:
    """Facts about a compiled model beyond what its runtime reports."""

    normalization: Mapping[str, Normalization] = field(default_factory=dict)
    """The normalization that the runtime applies, by input."""
    splitting: Callable[[Collection[str]], Splitting] | None = None
    """Judges whether samples are independent, ignoring some inputs and outputs. Used only if the declarations do not
    suffice."""
    evidence: Evidence | None = None
    """What the ONNX itself says about tensors that the model lacks and about output shapes. Used as above."""
    stand_in: bool = False
    """It was built from the ONNX's signature, and says nothing about free dimensions."""
    kept: Collection[str] = ()
    """Outputs that stay as declared, regardless of ``output_dtype``."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Common settings for the ports of one signature."""

    options: Options
    names: Sequence[str]
    """Of all inputs that the ONNX declares."""
    known: Known
    keep_first: bool
    """A free first axis that might be a batch stays free."""
    keep_free: bool
    """All free axes stay free: a policy covers missing shapes."""
    notes: list[str]
    """Lines for ``explain()``; the ports' notes are appended."""


def input_ports(
    infos: Sequence[TensorInfo], declared: Sequence[Declared], matched: Matched, terms: Terms
) -> tuple[list[Port], list[list[Shape]]]:
    """The inputs of a signature in the ONNX's order, and their shapes in each compiled set, in the caller's axis order.
    ``infos``: the model's."""
    ports = [
        _input(value, infos[index], index, matched, terms) for value, index in zip(matched.inputs, matched.in_order)
    ]
    sets = [[_caller_shape(one[port.index], port.layout, port) for port in ports] for one in matched.sets]
    for place, value in enumerate(declared):
        if value.name in matched.served.unread:
            ports.insert(place, _unread(value, terms.options, terms.names))
            lengths = [_lengths(matched.inputs, matched.in_order, one) for one in matched.sets]
            for shapes, known in zip(sets, lengths):
                shapes.insert(place, tuple(_length(d, known) for d in ports[place].dims))
    return ports, sets


def _input(value: Declared, info: TensorInfo, index: int, matched: Matched, terms: Terms) -> Port:
    options, label = terms.options, matched.label
    compiled = _merge_dims(value, [s[index] for s in matched.sets], terms, "input", label)
    asked = pick(options.layout, value.name, "layout", terms.names)
    layout: Layout = "UNDEFINED"
    wire_layout: Layout = "UNDEFINED"
    if len(compiled) == 4 and len(info.shape) == 4:
        layout = "NHWC" if asked == "NHWC" else "NCHW"
        wire_layout = "NHWC" if asked == "NCHW software" else layout
    elif asked not in (None, "native") and "*" not in options.layout:
        raise OptionError(
            f"provider option layout: input {value.name!r} has {len(compiled)} axes; only 4-D inputs have a layout"
        )
    dtype = pick(options.input_dtype, value.name, "input_dtype", terms.names) or value.dtype
    raw = "native" in (dtype, asked)
    if raw:
        dtype = _native_input(value.name, info)
        wire_layout = "NHWC" if layout == "NCHW" else wire_layout  # as it is stored, axes included
    elif cuts_integers(value.dtype, info.quantization) and value.name not in terms.known.normalization:
        raise ort_error(
            FAIL,
            f"{label}: input {value.name!r} is {value.dtype} in the ONNX, and the compiled model's scale ends below "
            "most of its integers; convert the ONNX again with ort-rknn convert",
        )
    wire = dtype if dtype in INPUT_DTYPES else "float32"
    if dtype != wire and dtype != "float64":
        raise ort_error(FAIL, f"{label}: input {value.name!r} has dtype {dtype}, which an input on the NPU cannot have")
    norm = terms.known.normalization.get(value.name) if not raw else None
    if norm is not None and dtype.startswith("float"):
        wire = "float32"
        terms.notes.append(
            f"input {value.name!r}: the compiled model normalizes its input itself, while the ONNX is fed "
            f"normalized {dtype}; feeds are denormalized first (input_dtype='uint8' feeds pixels straight in)"
        )
    if terms.known.stand_in and not raw and value.dtype.startswith("float") and not dtype.startswith("float"):
        terms.notes.append(
            f"input {value.name!r}: taken as it is, while a compiled model may have a mean and std for it"
        )
    dims = caller_order(compiled, layout)
    return Port(value.name, dtype, dims, layout, wire, info, index, wire_layout, value.dtype, norm, raw=raw)


def output_ports(
    infos: Sequence[TensorInfo], declared: Sequence[Declared], matched: Matched, terms: Terms
) -> list[Port]:
    """The outputs of a signature in the ONNX's order. ``infos``: the model's."""
    served, options = matched.served, terms.options
    shapes = {v.name: [s[index] for s in matched.out_sets] for v, index in zip(matched.outputs, matched.out_order)}
    stale, moved = _stale_outputs(matched, terms)
    ports: list[Port] = []
    for value, index in zip(matched.outputs, matched.out_order):
        compiled = shapes[value.name]
        free = replace(value, dims=(None,) * len(compiled[0])) if value in stale else value
        dims = moved.get(value.name) or _merge_dims(free, compiled, terms, "output", matched.label)
        asked = "onnx" if value.name in terms.known.kept else options.output_dtype
        dtype, wire = _output_dtypes(value, infos[index], asked, matched.label)
        ports.append(Port(value.name, dtype, dims, "UNDEFINED", wire, infos[index], index, "UNDEFINED", value.dtype))
    for place, value in enumerate(declared):
        if value.name in served.constants:
            ports.insert(place, _constant(value, served.constants[value.name], options.output_dtype))
    for place, value in enumerate(declared):
        if value.name in served.copies:
            source = next(p for p in ports if p.name == served.copies[value.name])
            ports.insert(place, replace(source, name=value.name, index=-1))
    places = {port.name: place for place, port in enumerate(ports)}
    return [replace(p, copy_of=places[served.copies[p.name]]) if p.name in served.copies else p for p in ports]


def _stale_outputs(matched: Matched, terms: Terms) -> tuple[list[Declared], dict[str, Shape]]:
    """The outputs whose declared shapes differ from those that the ONNX produces; and the produced shapes of outputs
    whose axes of length 1 are placed differently in the compiled model. Empty without an ONNX."""
    evidence = terms.known.evidence
    stale = [
        value
        for value, index in zip(matched.outputs, matched.out_order)
        if value.dims is not None and not all(fits(value.dims, s[index]) for s in matched.out_sets)
    ]
    if evidence is None or not stale:
        return [], {}
    moved = confirm(evidence, stale, matched)
    terms.notes.extend(
        f"output {v.name!r} is declared as {list(v.dims or ())}, but the ONNX's own graph gives the compiled shape"
        for v in stale
        if v.name not in moved
    )
    return stale, moved


def pick(options: Mapping[str, str], name: str, key: str, names: Sequence[str]) -> str | None:
    """The value of a per-input option for the input ``name``. Raises OptionError if the option names an unknown
    input."""
    for asked in options:
        if asked != "*" and asked not in names:
            raise OptionError(f"provider option {key} names an input {asked!r}; the model has {', '.join(names)}")
    return options.get(name, options.get("*"))


def caller_order(shape: Sequence[Dim], layout: Layout) -> tuple[Dim, ...]:
    if layout == "NHWC":
        n, c, h, w = shape
        return (n, h, w, c)
    return tuple(shape)


def _caller_shape(compiled: Shape, layout: Layout, port: Port) -> Shape:
    """A compiled input shape as the caller feeds it, with the caller's axes of length 1 if the compiled ones differ."""
    shape = caller_order(compiled, layout) if len(compiled) == len(port.dims) else port.dims
    return tuple(d for d in shape if isinstance(d, int))


def _native_input(name: str, info: TensorInfo) -> str:
    """The dtype of an input that is fed as stored."""
    if info.dtype not in INPUT_DTYPES:
        raise OptionError(
            f"provider option input_dtype='native': input {name!r} is stored as {info.dtype}, which numpy lacks. "
            "Leave the option out"
        )
    return info.dtype


def _unread(value: Declared, options: Options, names: Sequence[str]) -> Port:
    """An input that the compiled model lacks because nothing reads it."""
    dims = value.dims or ()
    layout: Layout = "UNDEFINED"
    if len(dims) == 4:
        layout = "NHWC" if pick(options.layout, value.name, "layout", names) == "NHWC" else "NCHW"
    dtype = pick(options.input_dtype, value.name, "input_dtype", names) or value.dtype
    dtype = value.dtype if dtype == "native" else dtype  # it is not stored at all
    shape = tuple(d if isinstance(d, int) else 1 for d in dims)
    info = TensorInfo(value.name, shape, dtype, "UNDEFINED")
    return Port(value.name, dtype, caller_order(dims, layout), layout, dtype, info, -1, layout, value.dtype)


def _constant(value: Declared, array: NDArray[np.generic], asked: Literal["onnx", "float32", "native"]) -> Port:
    """An output that the compiled model lacks because it is constant."""
    dtype = "float32" if asked == "float32" else value.dtype
    array = np.ascontiguousarray(array, dtype).reshape(array.shape)
    info = TensorInfo(value.name, array.shape, dtype, "UNDEFINED")
    return Port(value.name, dtype, array.shape, "UNDEFINED", dtype, info, -1, "UNDEFINED", value.dtype, constant=array)


def _lengths(inputs: Sequence[Declared], order: Sequence[int], shapes: Sequence[Shape]) -> dict[str, int]:
    """The lengths that a compiled set assigns to the ONNX's symbols."""
    return {
        dim: length
        for value, index in zip(inputs, order)
        for dim, length in zip(value.dims or (), shapes[index])
        if isinstance(dim, str)
    }


def _length(dim: Dim, known: Mapping[str, int]) -> int:
    return dim if isinstance(dim, int) else known.get(dim or "", 1)


def _merge_dims(
    value: Declared, compiled: Sequence[Shape], terms: Terms, what: Literal["input", "output"], label: str
) -> tuple[Dim, ...]:
    """The ONNX's dims, with an integer wherever every compiled set agrees and a call cannot differ.

    What :class:`Terms` keep free stays free: then a refusal is ours, and names what was compiled.
    """
    dims: Sequence[Dim] = value.dims if value.dims is not None else (None,) * len(compiled[0])
    for shape in compiled:
        if not fits(dims, shape):
            raise ort_error(
                FAIL,
                f"{label}: {what} {value.name!r} is {list(dims)} in the ONNX, but {list(shape)} in the compiled model; "
                "it was compiled from another model, or for another shape",
            )
    if len(dims) != len(compiled[0]) or terms.keep_free:
        return tuple(dims)
    merged: list[Dim] = []
    for axis, dim in enumerate(dims):
        lengths = {shape[axis] for shape in compiled}
        fixed = len(lengths) == 1 and not (terms.keep_first and axis == 0 and not isinstance(dim, int))
        merged.append(lengths.pop() if fixed else dim)
    return tuple(merged)


def _output_dtypes(
    value: Declared, info: TensorInfo, asked: Literal["onnx", "float32", "native"], label: str
) -> tuple[str, str]:
    """(dtype that the caller gets, dtype that the runtime returns). Integers never pass through float."""
    if asked == "native":
        if info.dtype not in DTYPES:
            raise OptionError(f"provider option output_dtype='native': output {value.name!r} is {info.dtype}")
        if not info.raw:
            raise OptionError(
                f"provider option output_dtype='native': the adapter gives output {value.name!r}, stored as "
                f"{info.dtype}, as float32 only. Leave the option out, or use another adapter"
            )
        return info.dtype, info.dtype
    dtype = "float32" if asked == "float32" else value.dtype
    if dtype == info.dtype and info.quantization is None:
        return dtype, dtype
    if dtype in ("float32", "float64", "float16"):
        return dtype, "float32"
    if info.quantization is None and info.dtype in DTYPES and not info.dtype.startswith("float"):
        return dtype, info.dtype  # an integer of another width: a plain cast above the adapter
    raise ort_error(
        FAIL,
        f"{label}: output {value.name!r} is {dtype} in the ONNX, but the compiled model gives "
        f"{'quantized ' if info.quantization else ''}{info.dtype}, which would lose its integers; "
        + ("output_dtype='native' gives the raw values" if info.raw else "another adapter can give the raw values"),
    )
