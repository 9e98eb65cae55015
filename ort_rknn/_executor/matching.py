"""Which tensor of a compiled model is which input or output of the ONNX: by name or by proof, never by position.

If the two sides differ, the ONNX itself is examined (:class:`Evidence`): converters leave out what needs no NPU, and
exporters declare output shapes that their graphs do not produce.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from .._errors import FAIL, ort_error
from .._interrupts import from_a_handler
from .._tensors import onnx_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .._tensors import Dim, Shape
    from ..adapter.contract import Model, TensorInfo
    from .declared import Declared


@dataclass(frozen=True, slots=True)
class Served:
    """What the compiled model lacks compared to the ONNX, and is served without it."""

    unread: frozenset[str] = frozenset()
    """Inputs that no output depends on."""
    constants: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    """Constant outputs, and their values."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Outputs that are a second name of a tensor: their name -> the output that the model has."""

    @property
    def names(self) -> frozenset[str]:
        """All of them; none of these counts or mixes samples."""
        return self.unread | self.constants.keys()

    @property
    def notes(self) -> list[str]:
        """Lines for ``explain()``."""
        return [
            *(f"input {name!r}: nothing reads it, and the compiled model lacks it" for name in sorted(self.unread)),
            *(f"output {name!r}: it never changes, and comes from the ONNX" for name in self.constants),
            *(f"output {name!r}: it is the same tensor as {other!r}" for name, other in self.copies.items()),
        ]


class Evidence(Protocol):
    """Facts about the ONNX of a compiled model beyond its declarations. Each answer reads the graph, or runs it."""

    @property
    def is_origin(self) -> bool:
        """Whether the compiled model's own record says that it was compiled from this ONNX."""

    def served(self, inputs: Sequence[str], outputs: Sequence[str]) -> Served:
        """What a model with these inputs and outputs lacks. Raises Disagreement if it cannot be served without."""

    def output_shapes(self, inputs: Mapping[str, Shape]) -> Mapping[str, Shape]:
        """The output shapes for these input shapes, found by running the ONNX on the CPU. Raises what onnxruntime
        raises."""


def serve(
    model: Model, inputs: Sequence[Declared], outputs: Sequence[Declared], evidence: Evidence | None, label: str
) -> Served:
    """What the model lacks compared to the declared signature. Raises Fail if it cannot be served without."""
    from ..files import Disagreement

    have_in, have_out = [i.name for i in model.inputs], [o.name for o in model.outputs]
    want_in, want_out = {v.name for v in inputs}, {v.name for v in outputs}
    lacks = want_in > set(have_in) or want_out > set(have_out)
    if evidence is None or not lacks or not set(have_in) <= want_in or not set(have_out) <= want_out:
        return Served()
    try:
        return evidence.served(have_in, have_out)
    except Disagreement as error:
        raise ort_error(FAIL, f"{label}: {error}") from error


def in_models_order(
    infos: Sequence[TensorInfo],
    sets: Sequence[Sequence[Shape]],
    declared: Sequence[Declared],
    what: str,
    label: str,
    *,
    by_place: bool,
) -> list[int]:
    """For each declared value, the index of the model's tensor.

    Matched by name. If no name matches: by position with ``by_place`` (if there is no ONNX, as for an EPContext node,
    whose inputs and outputs are the model's in order), else by shape, if each fits one tensor only. Raises Fail.
    """
    names = [info.name for info in infos]
    wanted = [value.name for value in declared]
    text = f"{label}: the compiled model has the {what}s {names}, the ONNX has {wanted}"
    if len(infos) == len(declared):
        if set(names) == set(wanted):
            return [names.index(name) for name in wanted]
        if not set(names) & set(wanted):
            if by_place:
                return list(range(len(names)))
            fitting = [
                [k for k in range(len(infos)) if v.dims is None or all(fits(v.dims, s[k]) for s in sets)]
                for v in declared
            ]
            if all(len(some) == 1 for some in fitting) and len({some[0] for some in fitting}) == len(infos):
                return [some[0] for some in fitting]
            if len(infos) == 1:
                return [0]  # shapes are judged later
            text += ", and their shapes do not tell which is which; it may have been"
            raise ort_error(FAIL, f"{text} compiled from another model: convert this ONNX, which keeps its names")
    raise ort_error(FAIL, f"{text}; it was compiled from another model: convert it again")


@dataclass(frozen=True, slots=True)
class Matched:
    """The inputs and outputs that the ONNX and the compiled model have in common."""

    label: str
    """The model's name, for messages."""
    inputs: Sequence[Declared]
    outputs: Sequence[Declared]
    in_order: Sequence[int]
    """For each of :attr:`inputs` the index of the model's."""
    out_order: Sequence[int]
    sets: Sequence[tuple[Shape, ...]]
    """The compiled sets: the shapes of the model's inputs, in its order. A static model has one."""
    out_sets: Sequence[tuple[Shape, ...]]
    """For each set the shapes of the model's outputs."""
    served: Served
    """What the model lacks."""

    def in_shapes(self, number: int) -> dict[str, Shape]:
        """The inputs' shapes in one set, by name."""
        return {value.name: self.sets[number][index] for value, index in zip(self.inputs, self.in_order)}

    def out_shapes(self, number: int) -> dict[str, Shape]:
        """The outputs' shapes in one set, by name."""
        return {value.name: self.out_sets[number][index] for value, index in zip(self.outputs, self.out_order)}


def match(
    model: Model, inputs: Sequence[Declared], outputs: Sequence[Declared], evidence: Evidence | None, label: str
) -> Matched:
    """Match the ONNX's declarations with the loaded model. Raises Fail if they do not belong together."""
    sets = model.shape_sets or (tuple(onnx_order(i.shape, i.layout) for i in model.inputs),)
    out_sets = [model.output_shapes(k if model.shape_sets else None) for k in range(len(sets))]
    served = serve(model, inputs, outputs, evidence, label)
    real_in = [v for v in inputs if v.name not in served.unread]
    real_out = [v for v in outputs if v.name not in served.constants and v.name not in served.copies]
    in_order = in_models_order(model.inputs, sets, real_in, "input", label, by_place=evidence is None)
    out_order = in_models_order(model.outputs, out_sets, real_out, "output", label, by_place=evidence is None)
    return Matched(label, real_in, real_out, in_order, out_order, sets, out_sets, served)


def fits(declared: Sequence[Dim], compiled: Sequence[Dim]) -> bool:
    """Whether the ONNX allows a compiled shape (which may have more or fewer axes of length 1)."""
    if len(declared) == len(compiled):
        return all(not isinstance(d, int) or not isinstance(c, int) or d == c for d, c in zip(declared, compiled))
    if all(isinstance(d, int) for d in declared):
        return _squeezed(declared) == _squeezed(compiled)
    return False


def _squeezed(shape: Sequence[Dim]) -> list[Dim]:
    return [d for d in shape if d != 1]


def confirm(evidence: Evidence, stale: Sequence[Declared], matched: Matched) -> dict[str, Shape]:
    """Make sure that the ONNX really gives the compiled shapes of ``stale`` outputs, which it declares otherwise.

    The evidence is the record of origin, or else a run for each compiled set. Returns, by name, the ONNX's shapes of
    those outputs whose axes of length 1 are placed differently; a record does not contain these, so the ONNX is run for
    them anyway. Raises Fail if the shapes differ otherwise.
    """
    moved: dict[str, Shape] = {}
    every = range(len(matched.sets))
    if evidence.is_origin and not any(
        _ones_elsewhere(value, matched.out_shapes(number)[value.name]) for number in every for value in matched.outputs
    ):
        return moved
    for number in every:
        fed, problem = matched.in_shapes(number), ""
        given: Mapping[str, Shape] = {}
        try:
            given = evidence.output_shapes(fed)
        except Exception as error:
            if from_a_handler(error) is not None:
                raise
            problem = f"the ONNX does not run for the compiled inputs {fed}: {error}"
        for value in stale:
            want, got = matched.out_shapes(number)[value.name], given.get(value.name)
            if evidence.is_origin and (got is None or _squeezed(got) != _squeezed(want)):
                got = tuple(d for d in value.dims or () if isinstance(d, int)) if _ones_elsewhere(value, want) else want
            if got is None or _squeezed(got) != _squeezed(want) or (got != want and len(every) > 1):
                raise ort_error(
                    FAIL,
                    f"{matched.label}: output {value.name!r} is {list(value.dims or ())} in the ONNX, but {list(want)} "
                    "in the compiled model; it was compiled from another model, or for another shape"
                    + (f" ({problem})" if problem else f" (the ONNX gives {list(got or ())} for the compiled inputs)"),
                )
            if got != want:
                moved[value.name] = got
    return moved


def _ones_elsewhere(value: Declared, compiled: Shape) -> bool:
    dims = value.dims or ()
    return all(isinstance(d, int) for d in dims) and tuple(dims) != compiled and _squeezed(dims) == _squeezed(compiled)
