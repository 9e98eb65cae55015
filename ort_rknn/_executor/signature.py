"""The signature of a session on the NPU: what the caller feeds and gets, and how that maps to the compiled model.

By default it has the ONNX's dtypes, shapes and NCHW order. Provider options change it for speed: ``layout`` and
``input_dtype`` per input, ``output_dtype`` for all outputs. What neither the runtime nor a plain cast can do is an
error when the session is created.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from .._errors import FAIL, OptionError, ort_error
from .._options import Options
from .._tensors import DTYPES, INPUT_DTYPES, Dim, Layout, Shape, onnx_order
from ..adapter.contract import Model, NativeForm, TensorInfo
from .batches import Splitting, leads_free, may_split
from .declared import Declared, Normalization
from .matching import Evidence, confirm, fits, in_models_order, serve

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
        """Whether the dims allow a tensor of this shape."""
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
class Signature:
    """What the caller feeds and gets."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    split: Splitting | None = None
    """Whether a call may be split into runs along the first axis. None: some input has no free first axis, so the
    question never arises."""
    sets: tuple[tuple[Shape, ...], ...] = ()
    """The compiled sets: one shape per input, in the caller's axis order. A static model has one."""
    dynamic: bool = False
    """The model has several shape sets."""
    notes: tuple[str, ...] = field(default=())

    @property
    def splits(self) -> bool:
        """A call with any number of samples is split into runs of a compiled set's number."""
        return self.split is not None and self.split.allowed

    @property
    def fixes_shapes(self) -> bool:
        """Every shape is known before a run: no dimension is free, except a batch that is split into runs."""
        first = 1 if self.splits else 0
        return all(isinstance(d, int) for p in (*self.inputs, *self.outputs) for d in p.dims[first:])

    def model_index(self, output: Port) -> int:
        """The index of the model's output behind one of ours; for a second name, that of the first."""
        return output.index if output.copy_of is None else self.outputs[output.copy_of].index


def override(
    signature: Signature,
    before: Mapping[str, tuple[Dim, ...]],
    after: Mapping[str, tuple[Dim, ...]],
    on_missing_shape: Literal["error", "cpu", "pad"],
) -> Signature:
    """The signature after free dimensions of the ONNX were fixed: its inputs' dims by name, ``before`` and ``after``.

    Raises Fail if no compiled set has these dims and ``on_missing_shape`` makes other shapes an error.
    """

    def fixed(port: Port) -> tuple[Dim, ...]:
        dims = after.get(port.name, ())
        return _caller_order(dims, port.layout) if len(dims) == len(port.dims) else port.dims

    if on_missing_shape == "error" and not any(
        all(_agrees(fixed(p), shape, signature.splits) for p, shape in zip(signature.inputs, one))
        for one in signature.sets
    ):
        asked = ", ".join(f"{port.name} {list(fixed(port))}" for port in signature.inputs)
        compiled = "; ".join(
            ", ".join(f"{p.name} {list(shape)}" for p, shape in zip(signature.inputs, one)) for one in signature.sets
        )
        raise ort_error(FAIL, f"free dimension overrides ask for {asked}. Compiled are: {compiled}")
    lengths = {
        d: n for name, dims in after.items() for d, n in zip(before[name], dims) if isinstance(d, str) and d != n
    }
    inputs = tuple(
        replace(p, dims=tuple(n if not isinstance(d, int) else d for d, n in zip(p.dims, fixed(p))))
        for p in signature.inputs
    )
    if on_missing_shape == "pad":  # outputs may be longer, and onnxruntime would print a warning
        return replace(signature, inputs=inputs)
    outputs = tuple(
        replace(p, dims=tuple(lengths.get(d, d) if isinstance(d, str) else d for d in p.dims))
        for p in signature.outputs
    )
    return replace(signature, inputs=inputs, outputs=outputs)


def _agrees(dims: Sequence[Dim], shape: Shape, splits: bool) -> bool:
    return len(dims) != len(shape) or all(
        not isinstance(d, int) or d == n or (splits and axis == 0) for axis, (d, n) in enumerate(zip(dims, shape))
    )


def _caller_order(shape: Sequence[Dim], layout: Layout) -> tuple[Dim, ...]:
    if layout == "NHWC":
        n, c, h, w = shape
        return (n, h, w, c)
    return tuple(shape)


def _caller_shape(compiled: Shape, layout: Layout, port: Port) -> Shape:
    """A compiled input shape as the caller feeds it, with the caller's axes of length 1 if the compiled ones differ."""
    shape = _caller_order(compiled, layout) if len(compiled) == len(port.dims) else port.dims
    return tuple(d for d in shape if isinstance(d, int))


def pick(options: Mapping[str, str], name: str, key: str, names: Sequence[str]) -> str | None:
    """The value of a per-input option for the input ``name``. Raises OptionError if the option names an unknown
    input."""
    for asked in options:
        if asked != "*" and asked not in names:
            raise OptionError(f"provider option {key} names an input {asked!r}; the model has {', '.join(names)}")
    return options.get(name, options.get("*"))


def _check_pad_axes(pad_axes: Mapping[str, Sequence[int]], ports: Sequence[Port]) -> None:
    ranks = {port.name: len(port.dims) for port in ports}
    for name, axes in pad_axes.items():
        if name != "*" and name not in ranks:
            raise OptionError(f"provider option pad_axes names an input {name!r}; the model has {', '.join(ranks)}")
        rank = max(ranks.values(), default=0) if name == "*" else ranks[name]
        for axis in axes:
            if axis >= rank:
                whose = "no input has" if name == "*" else f"input {name!r} lacks"
                raise OptionError(
                    f"provider option pad_axes names axis {axis}, which {whose}: axes are 0 to {rank - 1}"
                )


def negotiate(
    model: Model,
    inputs: Sequence[Declared],
    outputs: Sequence[Declared],
    options: Options,
    *,
    normalization: Mapping[str, Normalization] | None = None,
    splitting: Callable[[Collection[str]], Splitting] | None = None,
    evidence: Evidence | None = None,
    stand_in: bool = False,
    label: str = "model",
    kept: Collection[str] = (),
) -> Signature:
    """Match the declared signature with the loaded model. The signature of a stand-in says nothing about free
    dimensions.

    ``splitting`` judges whether samples are independent (without some inputs and outputs); ``evidence`` is what the
    ONNX itself says about tensors that the model lacks and about output shapes. Both are used only if the declarations
    do not suffice. ``kept`` names outputs that stay as declared, regardless of ``output_dtype``.

    Raises Fail if the compiled model does not match this ONNX (names, shapes), OptionError if ``layout``,
    ``input_dtype``, ``output_dtype``, ``pad_axes`` or ``split_batch`` ask for something unavailable. All of this is
    detected here, not at a run.
    """
    names = [value.name for value in inputs]
    notes: list[str] = []
    sets = model.shape_sets or (tuple(onnx_order(i.shape, i.layout) for i in model.inputs),)
    out_sets = [model.output_shapes(k if model.shape_sets else None) for k in range(len(sets))]
    served = serve(model, inputs, outputs, evidence, label)
    real_in = [v for v in inputs if v.name not in served.unread]
    real_out = [v for v in outputs if v.name not in served.constants and v.name not in served.copies]
    in_order = in_models_order(model.inputs, sets, real_in, "input", label, by_place=evidence is None)
    out_order = in_models_order(model.outputs, out_sets, real_out, "output", label, by_place=evidence is None)
    notes += served.notes

    keep_free = options.on_missing_shape != "error" or stand_in
    split = may_split(real_in, real_out, sets, out_sets, in_order, out_order, options, splitting, served.names)
    if split is None and any(leads_free(v) for v in real_in) and not model.shape_sets:
        notes.append("the ONNX leaves the leading axis free, but not that of every input: compiled shape only")
    if stand_in and split is not None and not split.allowed:
        notes.append(f"a batch is not cut: {split.reason}. The ONNX runs whole; a compiled model would refuse")

    in_ports: list[Port] = []
    layouts: list[Layout] = []
    for value, index in zip(real_in, in_order):
        info = model.inputs[index]
        compiled = _merge_dims(value, [s[index] for s in sets], split is not None, keep_free, "input", label)
        asked = pick(options.layout, value.name, "layout", names)
        layout: Layout = "UNDEFINED"
        wire_layout: Layout = "UNDEFINED"
        if len(compiled) == 4 and len(info.shape) == 4:
            layout = "NHWC" if asked == "NHWC" else "NCHW"
            wire_layout = "NHWC" if asked == "NCHW software" else layout
        elif asked not in (None, "native") and "*" not in options.layout:
            raise OptionError(
                f"provider option layout: input {value.name!r} has {len(compiled)} axes; only 4-D inputs have a layout"
            )
        layouts.append(layout)
        dtype = pick(options.input_dtype, value.name, "input_dtype", names) or value.dtype
        raw = "native" in (dtype, asked)
        if raw:
            dtype = _native_input(value.name, info)
            wire_layout = "NHWC" if layout == "NCHW" else wire_layout  # as stored, including the axis order
        wire = dtype if dtype in INPUT_DTYPES else "float32"
        if dtype != wire and dtype != "float64":
            raise ort_error(
                FAIL, f"{label}: input {value.name!r} has dtype {dtype}, which an input on the NPU cannot have"
            )
        norm = (normalization or {}).get(value.name) if not raw else None
        if norm is not None and dtype.startswith("float"):
            wire = "float32"
            notes.append(
                f"input {value.name!r}: the compiled model normalizes its input itself, while the ONNX is fed "
                f"normalized {dtype}; feeds are denormalized first (input_dtype='uint8' feeds pixels straight in)"
            )
        if stand_in and not raw and value.dtype.startswith("float") and not dtype.startswith("float"):
            notes.append(f"input {value.name!r}: taken as it is, while a compiled model may have a mean and std for it")
        dims = _caller_order(compiled, layout)
        in_ports.append(
            Port(value.name, dtype, dims, layout, wire, info, index, wire_layout, value.dtype, norm, raw=raw)
        )

    caller_sets = [
        [_caller_shape(s[index], layout, port) for index, layout, port in zip(in_order, layouts, in_ports)]
        for s in sets
    ]
    for place, value in enumerate(inputs):
        if value.name in served.unread:
            in_ports.insert(place, _unread(value, options, names))
            lengths = [_lengths(real_in, in_order, s) for s in sets]
            for one, known in zip(caller_sets, lengths):
                one.insert(place, tuple(_length(d, known) for d in in_ports[place].dims))
    _check_pad_axes(options.pad_axes, in_ports)

    stale = [
        v
        for v, index in zip(real_out, out_order)
        if v.dims is not None and not all(fits(v.dims, s[index]) for s in out_sets)
    ]
    moved: dict[str, Shape] = {}  # where axes of length 1 are placed differently in the compiled model
    if stale and evidence is not None:
        moved = confirm(evidence, stale, real_in, real_out, in_order, out_order, sets, out_sets, label)
        notes += [
            f"output {v.name!r} is declared as {list(v.dims or ())}, but the ONNX's own graph gives the compiled shape"
            for v in stale
            if v.name not in moved
        ]
    out_ports: list[Port] = []
    for value, index in zip(real_out, out_order):
        info = model.outputs[index]
        declared = value
        if value in stale and evidence is not None:
            declared = replace(value, dims=(None,) * len(out_sets[0][index]))
        dims = moved.get(value.name) or _merge_dims(
            declared, [s[index] for s in out_sets], split is not None, keep_free, "output", label
        )
        asked_out = "onnx" if value.name in kept else options.output_dtype
        dtype, wire = _output_dtypes(value, info, asked_out, label)
        out_ports.append(Port(value.name, dtype, dims, "UNDEFINED", wire, info, index, "UNDEFINED", value.dtype))
    for place, value in enumerate(outputs):
        if value.name in served.constants:
            out_ports.insert(place, _constant(value, served.constants[value.name], options.output_dtype))
    for place, value in enumerate(outputs):
        if value.name in served.copies:
            source = next(p for p in out_ports if p.name == served.copies[value.name])
            out_ports.insert(place, replace(source, name=value.name, index=-1))
    places = {port.name: place for place, port in enumerate(out_ports)}
    out_ports = [replace(p, copy_of=places[served.copies[p.name]]) if p.name in served.copies else p for p in out_ports]
    return Signature(
        tuple(in_ports),
        tuple(out_ports),
        split,
        tuple(map(tuple, caller_sets)),
        bool(model.shape_sets),
        tuple(notes),
    )


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
    return Port(value.name, dtype, _caller_order(dims, layout), layout, dtype, info, -1, layout, value.dtype)


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
    value: Declared,
    compiled: Sequence[Shape],
    keep_first: bool,
    keep_free: bool,
    what: Literal["input", "output"],
    label: str,
) -> tuple[Dim, ...]:
    """The ONNX's dims, with an integer wherever all compiled sets agree and a call cannot differ.

    All stay free if a policy covers missing shapes (``keep_free``). A free first axis that might be a batch stays free
    too (``keep_first``): then our own error is raised, which names the compiled shapes.
    """
    dims: Sequence[Dim] = value.dims if value.dims is not None else (None,) * len(compiled[0])
    for shape in compiled:
        if not fits(dims, shape):
            raise ort_error(
                FAIL,
                f"{label}: {what} {value.name!r} is {list(dims)} in the ONNX, but {list(shape)} in the compiled model; "
                "it was compiled from another model, or for another shape",
            )
    if len(dims) != len(compiled[0]) or keep_free:
        return tuple(dims)
    merged: list[Dim] = []
    for axis, dim in enumerate(dims):
        lengths = {shape[axis] for shape in compiled}
        fixed = len(lengths) == 1 and not (keep_first and axis == 0 and not isinstance(dim, int))
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
