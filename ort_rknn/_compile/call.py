"""``ort_rknn.convert``: compiles from within a program."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._rknpu import SOC_CORES, soc_family

if TYPE_CHECKING:
    from .calibration import Data, Fit
    from .report import ConversionReport


def convert(
    model: str | os.PathLike[str],
    target: str | Sequence[str],
    *,
    shapes: Mapping[str, Sequence[int]] | Sequence[Mapping[str, Sequence[int]]] = (),
    batch: int | None = None,
    freeze: Mapping[str, Any] | None = None,
    mean: Sequence[float] | Sequence[Sequence[float]] = (),
    std: Sequence[float] | Sequence[Sequence[float]] = (),
    int8: Data | None = None,
    fit: Fit = "stretch",
    accuracy: float = 0.99,
    budget: float = 10.0,
    out: str | os.PathLike[str] | None = None,
    toolkit: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> ConversionReport:
    """Compile the ONNX at ``model`` for each SoC in ``target`` ("rk3588" ...), at a path where a session finds the
    result.

    ``shapes``: by input name; a list of such mappings builds a model with shape sets. ``batch``: samples per run.
    ``freeze``: inputs that become constants. ``mean``, ``std``: per channel, compiled in; one row for all inputs, or
    one each. ``int8``: samples to quantize with: a folder of images or ``.npy`` files, a ``.npz``, or a callable that
    returns arrays or mappings by input name; None means float16. ``fit``: "stretch" or "letterbox", for images.
    ``accuracy`` and ``budget`` (minutes) limit the search for int8. ``out``: a folder for all results, including the
    ONNX. ``toolkit``: a Python interpreter that has rknn-toolkit2. ``progress`` is called with each step.

    Returns the report: ``report.compiled`` has the path, the parts and the placement of every node, per target. Leaves
    nothing half-written. Raises ``ort_rknn.ToolkitError`` if there is no toolkit, ``ort_rknn.ConversionError`` if
    nothing of the model can be compiled, ValueError for options, shapes or samples that do not fit, OSError for files.
    """
    from .converter import ConversionError
    from .prepare import PrepareError
    from .spec import rows
    from .toolkit import ToolkitError, find_toolkit

    try:
        from . import convert as compiling
    except ImportError as error:
        raise ToolkitError(f"compiling takes the package onnx ({error}): pip install 'ort-rknn[convert]'") from error
    if not 0 < accuracy < 1:
        raise ValueError(f"accuracy={accuracy:g}: expected a number between 0 and 1")
    groups = [shapes] if isinstance(shapes, Mapping) else list(shapes)
    options = compiling.ConvertOptions(
        targets=_read_targets(target),
        shapes=tuple({name: tuple(shape) for name, shape in group.items()} for group in groups),
        batch=batch,
        freeze=dict(freeze or {}),
        mean=rows(mean),
        std=rows(std),
        int8=int8,
        fit=fit,
        accuracy=accuracy,
        budget=budget,
        out=None if out is None else os.fspath(out),
    )
    try:
        return compiling.convert(model, options, toolkit=find_toolkit(toolkit), progress=progress)
    except PrepareError as error:
        raise ConversionError(str(error)) from error


def _read_targets(target: str | Sequence[str]) -> tuple[str, ...]:
    targets = tuple(dict.fromkeys(soc_family(soc) for soc in ([target] if isinstance(target, str) else target)))
    unknown = [soc for soc in targets if soc not in SOC_CORES]
    if unknown or not targets:
        raise ValueError(f"target={target!r}: expected one or more of {', '.join(SOC_CORES)}")
    return targets
