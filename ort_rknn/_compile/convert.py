"""Converting a whole model: prepare it, build it for each SoC, read back what came out, put it beside the ONNX."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import Origin, read_onnx, read_rknn
from .converter import BuildSpec, Built, ConversionError, Converter
from .prepare import Prepared, prepare
from .report import Part, Report
from .shapes import CompiledShapes, compiled_shapes
from .toolkit import Toolkit, find_toolkit


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What a user says about a conversion. Defaults compile the ONNX's own shapes to float16."""

    targets: tuple[str, ...]
    """SoCs: "rk3588" ..."""
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ()
    """Sets of shapes by input name; several make a model with shape sets."""
    batch: int | None = None
    """Samples per run."""
    freeze: Mapping[str, Any] = field(default_factory=dict)
    """Inputs that become constants."""
    mean: tuple[tuple[float, ...], ...] = ()
    """Per input, per channel; one for all inputs."""
    std: tuple[tuple[float, ...], ...] = ()
    out: str | None = None
    """A folder that gets the compiled models and the ONNX; None: the ONNX's own folder, which keeps its ONNX."""


def convert(
    model: str | os.PathLike[str],
    options: ConvertOptions,
    *,
    toolkit: Toolkit | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Compile ``model`` for each target. Returns what was made; nothing half-written is left when it raises.

    ``progress`` is told each step, a line each. Raises ToolkitError where there is no toolkit, ShapeError for shapes
    that are missing or wrong, PrepareError for an ONNX that the toolkit cannot be given, ConversionError where it
    refuses, OnnxFileError and OSError for a file that cannot be read or written.
    """
    path = os.path.abspath(os.fspath(model))
    toolkit = toolkit or find_toolkit()
    folder = Path(options.out).absolute() if options.out is not None else Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{Path(path).stem}.convert.log"
    log.unlink(missing_ok=True)
    parts: list[Part] = []
    with tempfile.TemporaryDirectory(prefix="ort_rknn-prepare-") as scratch:
        progress("reading the ONNX")
        prepared = prepare(path, scratch, freeze=options.freeze)
        shapes = compiled_shapes(prepared.signature, options.shapes)
        progress("starting the toolkit")
        with Converter(toolkit, log) as converter:
            for target in options.targets:
                progress(f"compiling for {target}")
                started = time.monotonic()
                built = converter.build(_spec(path, prepared, shapes, target, options, toolkit))
                seconds = time.monotonic() - started
                placed = _place(built, folder, Path(path).stem, target)
                parts.append(Part(str(placed), target, built.file.size, seconds, built.log.layers, read_rknn(placed)))
    if options.out is not None:
        _copy_onnx(path, folder)
    return Report(path, tuple(parts), (*prepared.notes, *shapes.notes), str(log), toolkit.version)


def _spec(
    path: str, prepared: Prepared, shapes: CompiledShapes, target: str, options: ConvertOptions, toolkit: Toolkit
) -> BuildSpec:
    first = shapes.sets[0]
    inputs = len(first)
    return BuildSpec(
        model=prepared.path,
        target=target,
        inputs=first,
        shape_sets=tuple(tuple(group.values()) for group in shapes.sets) if len(shapes.sets) > 1 else (),
        mean=_per_input(options.mean, inputs, "mean"),
        std=_per_input(options.std, inputs, "std"),
        batch=options.batch,
        custom_string=Origin.of(path, toolkit=toolkit.version).to_custom_string(),
    )


def _per_input(values: Sequence[tuple[float, ...]], inputs: int, name: str) -> list[tuple[float, ...]] | None:
    if not values:
        return None
    if len(values) == 1:
        return [values[0]] * inputs
    if len(values) != inputs:
        raise ConversionError(f"{name}: expected one for all inputs or one for each of the {inputs}; got {len(values)}")
    return list(values)


def _place(built: Built, folder: Path, stem: str, target: str) -> Path:
    """Move the compiled model to its name in one step, so that no session ever sees half of it."""
    place = folder / f"{stem}.{target}.rknn"
    descriptor, fresh = tempfile.mkstemp(prefix=f".{place.name}.", dir=folder)
    try:
        with open(built.path, "rb") as source, os.fdopen(descriptor, "wb") as target_file:
            shutil.copyfileobj(source, target_file, 1 << 20)
            target_file.flush()
            os.fsync(target_file.fileno())
        os.chmod(fresh, 0o644)
        os.replace(fresh, place)
    except BaseException:
        Path(fresh).unlink(missing_ok=True)
        raise
    return place


def _copy_onnx(path: str, folder: Path) -> None:
    """The ONNX and the files that hold its weights, for a folder that is whole on the board."""
    for name in (os.path.basename(path), *read_onnx(path).external_data):
        source, place = Path(path).parent / name, folder / name
        if place.exists() and place.samefile(source):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, place)
