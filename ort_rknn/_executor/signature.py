"""The signature of a session on the NPU: what the caller feeds and gets, and how that maps to the compiled model.

What neither the runtime nor a plain cast can do is refused when the session is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from .._errors import FAIL, OptionError, ort_error
from .._options import Options
from .._tensors import Dim, Shape
from ..adapter.contract import Model
from .batches import Splitting, leads_free, may_split, rank_of_batch
from .declared import Declared
from .matching import match
from .ports import Known, Port, Terms, caller_order, input_ports, output_ports


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
        return caller_order(dims, port.layout) if len(dims) == len(port.dims) else port.dims

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
    known: Known | None = None,
    label: str = "model",
) -> Signature:
    """Match the declared signature with the loaded model, of which ``known`` is known.

    Raises Fail if the compiled model does not match this ONNX (names, shapes), OptionError if ``layout``,
    ``input_dtype``, ``output_dtype``, ``pad_axes`` or ``split_batch`` ask for something unavailable. All of this is
    detected here, not at a run.
    """
    known = known or Known()
    matched = match(model, inputs, outputs, known.evidence, label)
    if not model.shape_sets:
        ranked = rank_of_batch(matched)
        matched = replace(matched, outputs=[ranked.get(v.name, v) for v in matched.outputs])
        outputs = [ranked.get(v.name, v) for v in outputs]
    notes = [*matched.served.notes]
    split = may_split(matched, options, known.splitting)
    if split is None and any(leads_free(v) for v in matched.inputs) and not model.shape_sets:
        notes.append("the ONNX leaves the leading axis free, but not that of every input: compiled shape only")
    if known.stand_in and split is not None and not split.allowed:
        notes.append(f"a batch is not cut: {split.reason}. The ONNX runs whole; a compiled model would refuse")
    keep_free = options.on_missing_shape != "error" or known.stand_in
    terms = Terms(options, [value.name for value in inputs], known, split is not None, keep_free, notes)
    in_ports, sets = input_ports(model.inputs, inputs, matched, terms)
    _check_pad_axes(options.pad_axes, in_ports)
    out_ports = output_ports(model.outputs, outputs, matched, terms)
    return Signature(
        tuple(in_ports), tuple(out_ports), split, tuple(map(tuple, sets)), bool(model.shape_sets), tuple(notes)
    )
