"""What an ONNX, or the record of it in a compiled file, declares about its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._errors import FAIL, ort_error
from .._tensors import DTYPE_OF_ELEMENT, Dim

if TYPE_CHECKING:
    from ..files import OnnxValue, RknnFile, RknnTensor


@dataclass(frozen=True, slots=True)
class Declared:
    """An input or output as declared by the ONNX, or by the compiled file if there is no ONNX. ``dims`` None: unknown
    rank."""

    name: str
    dtype: str
    dims: tuple[Dim, ...] | None


@dataclass(frozen=True, slots=True)
class Normalization:
    """``(pixel - mean) / std`` per channel, compiled into a model and applied by the runtime to its inputs."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def declared_by_onnx(values: Sequence[OnnxValue]) -> tuple[Declared, ...]:
    """The tensors of an ONNX signature. Raises Fail for a value that an NPU cannot represent, naming it and its
    type."""
    out = []
    for value in values:
        dtype = DTYPE_OF_ELEMENT.get(value.elem_type or 0) if value.kind == "tensor" else None
        if dtype is None:
            raise ort_error(FAIL, f"{value.name!r} is {value.type_text}, which an NPU cannot hold")
        out.append(Declared(value.name, dtype, value.dims))
    return tuple(out)


def declared_by_file(file: RknnFile) -> tuple[tuple[Declared, ...], tuple[Declared, ...]] | None:
    """The ONNX's signature as recorded in the compiled file; None if part of it is unknown."""
    sides = []
    for tensors in (file.inputs, file.outputs):
        side = []
        for tensor in tensors:
            if tensor.dtype is None or tensor.shape is None:
                return None
            side.append(Declared(tensor.name, tensor.dtype, tensor.shape))
        sides.append(tuple(side))
    if not sides[0] or not sides[1]:
        return None
    inputs, outputs = sides
    if file.shape_sets:
        inputs = tuple(
            Declared(v.name, v.dtype, _free_where_sets_differ([s[i] for s in file.shape_sets], v.name))
            for i, v in enumerate(inputs)
        )
        outputs = tuple(
            Declared(v.name, v.dtype, tuple(f"{v.name}_{axis}" for axis in range(len(v.dims or ())))) for v in outputs
        )
    return inputs, outputs


def _free_where_sets_differ(shapes: Sequence[tuple[int, ...]], name: str) -> tuple[int | str, ...]:
    return tuple(
        lengths[0] if len(set(lengths)) == 1 else f"{name}_{axis}" for axis, lengths in enumerate(zip(*shapes))
    )


def normalizations(file: RknnFile | None) -> dict[str, Normalization]:
    """The normalizations that the compiled model applies to its inputs, by name; inputs without one are left out."""
    made = {tensor.name: normalization_of(tensor) for tensor in (file.inputs if file is not None else ())}
    return {name: norm for name, norm in made.items() if norm is not None}


def normalization_of(tensor: RknnTensor) -> Normalization | None:
    """The normalization that the compiled model applies to this input; None if there is none."""
    mean, std = tensor.mean, tensor.std
    return Normalization(mean, std) if mean and std and (any(mean) or any(s != 1 for s in std)) else None
