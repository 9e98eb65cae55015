"""The ONNX as the toolkit takes it: fixed inputs folded away, an opset that it reads, float32 in place of float16.

The user's file is never changed. Where nothing needs to be done the toolkit gets it as it is, external data included;
else a copy in the scratch folder, whose weights stay where they are. Needs the package ``onnx`` (extra ``convert``)
only where something is to be done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..files import OnnxModel, read_onnx

#: The newest opset that the toolkit reads, and the newest IR version. Source: rknn-toolkit2 2.5.0's own messages.
NEWEST_OPSET = 19
NEWEST_IR = 10


class PrepareError(Exception):
    """The ONNX cannot be brought to a form that the toolkit reads. The text names node, operator and remedy."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the toolkit gets."""

    path: str
    signature: OnnxModel
    """Of the prepared model: inputs that were frozen are gone."""
    notes: tuple[str, ...] = field(default=())


def needs_work(model: OnnxModel, freeze: Mapping[str, Any]) -> bool:
    """Whether the toolkit cannot have the user's file as it is."""
    return (
        bool(freeze)
        or (model.ir_version or 0) > NEWEST_IR
        or model.opsets.get("", 0) > NEWEST_OPSET
        or any(value.dtype == "float16" for value in (*model.inputs, *model.outputs))
    )


def prepare(path: str, folder: str, *, freeze: Mapping[str, Any] | None = None, keep: Sequence[str] = ()) -> Prepared:
    """The model at ``path`` in a form that the toolkit reads; a copy goes to ``folder``.

    ``freeze``: inputs that become constants, with their values. ``keep``: outputs that must not be lost. Raises
    PrepareError.
    """
    freeze = freeze or {}
    signature = read_onnx(path)
    unknown = sorted(set(freeze) - {v.name for v in signature.inputs})
    if unknown:
        raise PrepareError(f"the model has no input {unknown[0]!r} to freeze")
    if not needs_work(signature, freeze):
        return Prepared(path, signature)
    opset = signature.opsets.get("", 0)
    raise PrepareError(
        f"{os.path.basename(path)} has IR version {signature.ir_version} and opset {opset}; the toolkit reads IR "
        f"version {NEWEST_IR} and opset {NEWEST_OPSET} at most. Export it again with opset_version={NEWEST_OPSET}."
    )
