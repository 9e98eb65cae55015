"""Whether a batch may be split into runs: only if its samples do not depend on each other.

A first axis that the ONNX leaves free may count samples, time steps, tokens or rows of an image. Only for samples may
results of separate runs be concatenated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .._errors import OptionError

if TYPE_CHECKING:
    from .._options import Options
    from ..files import Origin
    from ..files._source import Source
    from .declared import Declared
    from .matching import Matched


@dataclass(frozen=True, slots=True)
class Splitting:
    """Whether a call may be split into runs along the first axis, and how that is known."""

    allowed: bool
    reason: str
    """A clause that follows "because"."""
    can_be_stated: bool = True
    """``split_batch=True`` would help, if the user knows that the samples are independent."""


def judge_splitting(
    asked: Literal["auto"] | bool, origin: Origin | None, onnx: Source | None, without: Collection[str] = ()
) -> Splitting:
    """Whether to split, for a model whose inputs all have a free first axis.

    The provider option ``split_batch`` (``asked``) decides first, then the record in the compiled model (``origin``),
    then a proof from the graph of ``onnx``, which is read for it; ``without`` names the inputs and outputs that the
    compiled model lacks. If nothing is known, calls are not split.
    """
    if asked != "auto":
        return Splitting(asked, f"the provider option split_batch={asked} states it")
    recorded = getattr(origin, "independent", None)
    if recorded is not None:
        what = "independent" if recorded else "dependent on each other"
        return Splitting(recorded, f"the compiled model's record says that its samples are {what}")
    if onnx is None:
        return Splitting(False, "no ONNX is known that could prove it, and the compiled model has no record of it")
    from .._independence import independence_of

    found = independence_of(onnx, without)
    if found.proved:
        return Splitting(True, "the ONNX's graph proves that its samples are independent")
    return Splitting(False, found.reason)


def leads_free(value: Declared) -> bool:
    return bool(value.dims) and not isinstance(value.dims[0], int)  # type: ignore[index]


def rank_of_batch(matched: Matched) -> dict[str, Declared]:
    """Outputs of unknown rank that may be batches, with the compiled rank and a free first axis, by name. Exporters may
    leave shapes out, and whether the samples of these outputs are independent is judged from the graph all the same."""
    if not matched.inputs or not all(leads_free(value) for value in matched.inputs):
        return {}
    shapes, results = matched.in_shapes(0), matched.out_shapes(0)
    (first, *_), free = shapes[matched.inputs[0].name], (matched.inputs[0].dims or (None,))[0]
    return {
        value.name: replace(value, dims=(free, *results[value.name][1:]))
        for value in matched.outputs
        if value.dims is None and results[value.name][:1] == (first,)
    }


def may_split(
    matched: Matched, options: Options, judge: Callable[[Collection[str]], Splitting] | None
) -> Splitting | None:
    """Whether a call may be split along the first axis. None if some input's is fixed, so that the question never
    arises.

    Raises OptionError for ``split_batch=True`` if there is nothing to split, or if the results of the runs could not be
    concatenated.
    """
    fixed = next((v for v in matched.inputs if not leads_free(v)), None)
    if fixed is not None:
        if options.split_batch is True:
            dims = "of unknown rank" if fixed.dims is None else list(fixed.dims)
            raise OptionError(
                f"provider option split_batch=True: input {fixed.name!r} is {dims}, without a free first axis, so no "
                "call can be cut along it; leave the option out"
            )
        return None
    problem = _no_batch(matched)
    if problem is not None:
        if options.split_batch is True:
            raise OptionError(f"provider option split_batch=True: {problem}")
        return Splitting(False, problem, can_be_stated=False)
    if options.split_batch != "auto":
        return Splitting(options.split_batch, f"the provider option split_batch={options.split_batch} states it")
    if judge is None:
        return Splitting(False, "nothing is known about its samples")
    return judge(matched.served.names)


def _no_batch(matched: Matched) -> str | None:
    """Why the first axes of a compiled set do not count the same samples, whatever the graph computes."""
    inputs = matched.inputs
    for number in range(len(matched.sets)):
        shapes, results = matched.in_shapes(number), matched.out_shapes(number)
        first = shapes[inputs[0].name][:1]
        for value in inputs:
            shape = shapes[value.name]
            if len(shape) != len(value.dims or ()):
                return (
                    f"input {value.name!r} is {list(shape)} in the compiled model, of a different rank than in the ONNX"
                )
            if shape[:1] != first:
                return (
                    f"the inputs {inputs[0].name!r} and {value.name!r} were compiled for first axes of {first[0]} and "
                    f"{shape[0]}"
                )
        for value in matched.outputs:
            if not leads_free(value):
                dims = "of unknown rank" if value.dims is None else list(value.dims)
                return f"output {value.name!r} is {dims}, without a free first axis to put the results together along"
            shape = results[value.name]
            if len(shape) != len(value.dims or ()) or shape[:1] != first:
                return f"output {value.name!r} is {list(shape)} in the compiled model, for a first axis of {first[0]}"
    return None
