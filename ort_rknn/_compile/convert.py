"""Converts an ONNX to compiled models beside it: prepares it, and builds it for each SoC, whole or in parts."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .._independence import independence_of
from ..files import OnnxModel, Origin, read_onnx, read_rknn
from ..files.hashes import sha256_of
from .branches import take_branches
from .calibration import Data, Fit, Samples, forms_of, read_samples
from .converter import BuildSpec, ConversionError, Converter
from .cuts import KEPT, CutPlan
from .graph import load_graph
from .int8 import Search, best_of
from .observe import Observed
from .opset import OpsetError
from .overflow import overflowing_output
from .partition import GraphPart
from .parts import InParts, PartsJob, build_in_parts, refuse_unusable
from .place import place_parts, place_whole
from .prepare import PreparedModel, needed_inputs, prepare
from .put import put_copy
from .recipe import Recipe
from .record import BuildRecord, Keeping, record_path
from .report import Compiled, ConversionReport, Part, fates_of
from .shapes import CompiledShapes, ShapeError, compiled_shapes
from .spec import part_spec, per_channel, with_shapes
from .toolkit import Toolkit, find_toolkit


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """The user's settings for a conversion. Defaults compile the ONNX's own shapes to float16."""

    targets: tuple[str, ...]
    """SoCs: "rk3588" ..."""
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ()
    """Sets of shapes by input name; several make a model with shape sets."""
    batch: int | None = None
    """Samples per run."""
    freeze: Mapping[str, Any] = field(default_factory=dict)
    """Inputs that become constants."""
    mean: tuple[tuple[float, ...], ...] = ()
    """Per input, per channel; or one for all inputs."""
    std: tuple[tuple[float, ...], ...] = ()
    int8: Data | None = None
    """Samples to quantize with: see :func:`.calibration.read_samples`. None: float16."""
    fit: Fit = "stretch"
    """How an image is resized to the input's size: "stretch" or "letterbox"."""
    accuracy: float = 0.99
    """What int8 must reach: the cosine of every output, which also determines the maximum error of bounded and mixed
    ones."""
    budget: float = 10.0
    """Minutes for the search, per target."""
    out: str | None = None
    """A folder for the compiled models and the ONNX; None: the ONNX's own folder, where the ONNX stays."""
    with_onnx: bool = True
    """Whether to copy the ONNX to that folder."""


def convert(
    model: str | os.PathLike[str],
    options: ConvertOptions,
    *,
    toolkit: Toolkit | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> ConversionReport:
    """Compile ``model`` for each target: whole if the toolkit accepts it, else in parts.

    Returns a report; if it raises, nothing half-written is left. ``progress`` is called with each step, a line each.
    Raises ToolkitError if there is no toolkit, ShapeError for shapes that are missing or wrong and for a mean or std
    that is, PrepareError for options that do not fit the ONNX, ConversionError if nothing of it can be compiled,
    OnnxFileError and OSError for a file that cannot be read or written.
    """
    original = path = os.path.abspath(os.fspath(model))
    toolkit = toolkit or find_toolkit()
    folder = Path(options.out).absolute() if options.out is not None else Path(path).parent
    with tempfile.TemporaryDirectory(prefix="ort_rknn-prepare-") as scratch:
        progress("reading the ONNX")
        frozen: tuple[str, ...] = ()
        if options.freeze:
            path, frozen = _frozen(path, os.path.join(scratch, "frozen"), options.freeze)
            options = replace(options, freeze={})
        log = folder / f"{Path(path).stem}.convert.log"
        log.unlink(missing_ok=True)
        source, whole, refusal = _prepare(path, scratch, options)
        shapes = compiled_shapes(source.signature, options.shapes)
        _check_batch(options, shapes, source.signature)
        whole = _with_independence(take_branches(whole, shapes, os.path.join(scratch, "branches")), path, shapes)
        if options.int8 is not None:
            shapes = _largest_first(shapes)
        mean = per_channel(options.mean, shapes.sets[0], "mean")
        options = replace(options, mean=mean, std=per_channel(options.std, shapes.sets[0], "std"))
        samples, notes = _samples(path, source, shapes, options, os.path.join(scratch, "samples"), progress)
        if samples is None and refusal is None:
            refusal, more = _overflow(path, source, shapes, options)
            notes += more
        folder.mkdir(parents=True, exist_ok=True)
        progress("starting the toolkit")
        with Converter(toolkit, log) as converter:
            job = _Job(path, folder, options, source, whole, shapes, refusal, converter, progress, samples)
            compiled = tuple(job.compile(target) for target in options.targets)
            notes += job.notes
        if frozen or (options.out is not None and options.with_onnx):
            _copy_onnx(path, folder, Path(original).parent)
    found = (*frozen, *whole.notes, *(shapes.notes if options.batch is None else ()), *notes)
    return ConversionReport(
        str(folder / Path(path).name) if frozen else path, compiled, found, str(log), toolkit.version
    )


def _check_batch(options: ConvertOptions, shapes: CompiledShapes, signature: OnnxModel) -> None:
    """Raises ShapeError for a batch that is no number of samples, or of an ONNX that has its own: no session could feed
    the compiled model."""
    if options.batch is not None and options.batch < 1:
        raise ShapeError(f"--batch {options.batch}: expected a number of samples, at least 1")
    if options.batch is None or options.batch == 1 or shapes.batch_axis:
        return
    fixed = next(value for value in signature.inputs if not value.dims or isinstance(value.dims[0], int))
    have = f"of {fixed.dims[0]}" if fixed.dims else "that is not free"
    raise ShapeError(
        f"--batch {options.batch}: input {fixed.name!r} has a first axis {have} in the ONNX, and a session feeds what "
        "the ONNX takes. Export it with a free first axis in every input (dynamic_axes, or dynamic_shapes)"
    )


def _frozen(path: str, folder: str, freeze: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The ONNX without the inputs that become constants, as a separate model: a session of the user's ONNX has these
    inputs and must not ignore what it is fed. Returns its path, and notes for the report."""
    os.mkdir(folder)
    made = prepare(path, folder, freeze=freeze, lower=False)
    place = Path(folder) / f"{Path(path).stem}.frozen.onnx"
    os.rename(made.path, place)
    return str(place), (*made.notes, f"the model to run is {place.name}, which does not have these inputs")


def _prepare(
    path: str, scratch: str, options: ConvertOptions
) -> tuple[PreparedModel, PreparedModel, ConversionError | None]:
    """Returns the user's graph, from which parts are cut; the model to compile as a whole; and why that is impossible.

    Only the latter is lowered to an older opset: lowering may replace a node by several, and a part must not end at a
    tensor between them, which the user's ONNX lacks.
    """
    source = prepare(path, scratch, freeze=options.freeze, lower=False)
    if source.fits:
        return source, source, None
    folder = os.path.join(scratch, "whole")
    os.mkdir(folder)
    try:
        return source, prepare(path, folder, freeze=options.freeze), None
    except OpsetError as error:
        refusal = ConversionError(f"{os.path.basename(path)}: {error}", operators=[(error.node, error.operator)])
        refusal.__cause__ = error
        return source, source, refusal


def _with_independence(whole: PreparedModel, path: str, shapes: CompiledShapes) -> PreparedModel:
    """``whole``, with a note for the session if its samples are proved to be independent: of the ONNX at ``path``, from
    which it was made, a session may be unable to prove it, for example if it has functions."""
    if not shapes.batch_axis or whole.independent is not None or whole.path == path:
        return whole
    return replace(whole, independent=independence_of(whole.path).proved or None)


def _overflow(
    path: str, source: PreparedModel, shapes: CompiledShapes, options: ConvertOptions
) -> tuple[ConversionError | None, list[str]]:
    """Why the ONNX is not compiled whole if float16 cannot hold its outputs; or a note, if it can only be compiled
    whole."""
    beyond = overflowing_output(source.path, shapes.sets[0])
    if beyond is None:
        return None, []
    if len(shapes.sets) > 1 or options.batch is not None:
        return None, [f"{beyond}; they are infinite on the NPU"]
    return ConversionError(f"{os.path.basename(path)}: {beyond}"), []


def _samples(
    path: str,
    source: PreparedModel,
    shapes: CompiledShapes,
    options: ConvertOptions,
    folder: str,
    progress: Callable[[str], None],
) -> tuple[Samples | None, list[str]]:
    """The samples for int8, None for float16; with notes for the report."""
    if options.int8 is None:
        return None, []
    model = load_graph(source.path)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        return None, [
            f"{os.path.basename(path)} has its own scales (QuantizeLinear nodes), which are kept: no samples used"
        ]
    first = shapes.sets[0]
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    dtypes = {name: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(types[name])) for name in first}
    forms = forms_of(first, dtypes, options.mean or None, options.std or None)
    progress("reading the samples")
    samples = read_samples(options.int8, forms, folder, fit=options.fit)
    notes = samples.notes
    if len(shapes.sets) > 1:
        notes.append(
            "int8: the samples have the shapes of the largest set, which the scales and the accuracy come from"
        )
    return samples, notes


def _largest_first(shapes: CompiledShapes) -> CompiledShapes:
    """Toolkit 2.5.0 calibrates shape sets with samples of the largest one, and refuses those of any other."""

    def elements(group: Mapping[str, tuple[int, ...]]) -> int:
        return sum(math.prod(shape) for shape in group.values())

    return replace(shapes, sets=tuple(sorted(shapes.sets, key=elements, reverse=True)))


@dataclass(frozen=True, slots=True)
class _Job:
    """One conversion: what all targets share. ``options`` has ``mean`` and ``std`` of every input."""

    path: str
    folder: Path
    options: ConvertOptions
    source: PreparedModel
    """The user's own graph."""
    whole: PreparedModel
    """What the toolkit gets as a whole."""
    shapes: CompiledShapes
    refusal: ConversionError | None
    converter: Converter
    progress: Callable[[str], None]
    samples: Samples | None
    notes: list[str] = field(default_factory=list)
    """For the report."""

    @property
    def stem(self) -> str:
        return Path(self.path).stem

    def compile(self, target: str) -> Compiled:
        """Compile the whole model, or else parts of it."""
        started = time.monotonic()
        refusal = self.refusal
        if self.samples is not None:
            return self._int8(target, self.samples, started)
        if refusal is None:
            try:
                self.progress(f"compiling for {target}")
                return self._whole(target, started)
            except ConversionError as error:
                if not error.log:  # not refused by the toolkit, but an option that does not fit
                    raise
                refusal = error
        self._allow_parts(refusal)
        self.progress(f"not as a whole: {refusal}")
        return self._in_parts(target, refusal, started)

    @property
    def _only_whole(self) -> str:
        """The requested settings that rule out compiling in parts; "" if there are none."""
        return (
            "several shape sets" if len(self.shapes.sets) > 1 else "a batch" if self.options.batch is not None else ""
        )

    def _allow_parts(self, refusal: ConversionError) -> None:
        if self._only_whole:
            raise ConversionError(
                f"{str(refusal).rstrip('.')}. In parts, which might do, {self._only_whole} cannot be compiled.",
                log=refusal.log,
            )

    def _whole(self, target: str, started: float) -> Compiled:
        shapes = self.shapes.sets[0]
        needed = needed_inputs(self.whole.path, shapes)
        mean, std = (
            [row for name, row in zip(shapes, side) if name in needed] or None
            for side in (self.options.mean, self.options.std)
        )
        spec = BuildSpec(
            model=self.whole.path,
            target=target,
            inputs={name: shapes[name] for name in needed},
            mean=mean,
            std=std,
            custom_string=self._origin(self.whole.independent),
        )
        built = self.converter.build(with_shapes(spec, self.shapes.sets, self.options.batch))
        refuse_unusable(built, self.whole.path, self.converter.log)
        keeping = self._keeping(target, CutPlan("as a whole", whole=True))
        placed = place_whole(built.path, self.folder, self.stem, target, keeping)
        part = Part(str(placed), built.file.size, built.log.layers, read_rknn(placed))
        return Compiled(target, str(placed), (part,), time.monotonic() - started)

    def _job(self, target: str) -> PartsJob:
        return PartsJob(
            self.converter,
            self.source.path,
            self.shapes.sets[0],
            target,
            lambda path, part, observed: self._part_spec(path, part, observed, target),
            self.progress,
            self.shapes.batch_axis,
        )

    def _in_parts(self, target: str, refusal: ConversionError, started: float) -> Compiled:
        by_toolkit = bool(refusal.log or refusal.operators)
        made = build_in_parts(self._job(target), first=refusal if by_toolkit else None)
        return self._placed(made, target, CutPlan("in parts"), str(refusal), started)

    def _int8(self, target: str, samples: Samples, started: float) -> Compiled:
        recipe = Recipe(self._job(target), samples, self.whole.path)
        if self.refusal is not None:
            self._allow_parts(self.refusal)
        only_whole = bool(self._only_whole)
        search = Search(recipe, samples, self.options.accuracy, self.options.budget, self.refusal, only_whole)
        try:
            attempts = search.run()
        except ConversionError as error:
            self._allow_parts(error)
            raise
        best = best_of(attempts)
        lines = tuple(f"int8, {one.line()}{' <- taken' if one is best else ''}" for one in attempts)
        if best.problems:
            remedy = f"; {self._only_whole} can only be compiled as a whole, one set of shapes also in parts"
            best_found = f"this is the best that was found{remedy if only_whole else ''}"
            lines += (f"int8: NO way held --accuracy {self.options.accuracy:g}; {best_found}",)
        if best.whole:
            (part_built,) = best.made.built
            built = part_built.built
            if only_whole:
                self.progress(f"compiling for {self._only_whole}")
                built = self.converter.build(with_shapes(part_built.spec, self.shapes.sets, self.options.batch))
            keeping = self._keeping(target, best.plan)
            placed = place_whole(built.path, self.folder, self.stem, target, keeping)
            part = Part(str(placed), built.file.size, built.log.layers, read_rknn(placed))
            return Compiled(
                target, str(placed), (part,), time.monotonic() - started, int8=lines, quantized=best.quantized
            )
        why = KEPT if best.plan.on_cpu else "the toolkit refused it in int8; the nodes on the CPU say why"
        made = self._placed(best.made, target, best.plan, why, started)
        return replace(made, int8=lines, quantized=best.quantized)

    def _placed(self, made: InParts, target: str, plan: CutPlan, refusal: str, started: float) -> Compiled:
        toolkit, keeping = self.converter.toolkit.version, self._keeping(target, plan, made.partition.on_cpu)
        placed, paths = place_parts(made, self.folder, self.path, target, toolkit, keeping, free=self._has_free_axes())
        self._note_inner(made)
        parts = tuple(
            Part(str(path), each.built.file.size, each.built.log.layers, read_rknn(path))
            for path, each in zip(paths, made.built)
        )
        return Compiled(target, str(placed), parts, time.monotonic() - started, fates_of(made), refusal)

    def _note_inner(self, made: InParts) -> None:
        """Note that parts end at tensors inside functions, which the user's ONNX does not name."""
        graph = load_graph(self.path).graph
        own = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
        inner = [name for part in made.partition.parts for name in (*part.inputs, *part.outputs) if name not in own]
        if inner and not self.notes:  # the same for every target
            self.notes.append(
                f"parts end inside functions of the ONNX (at {inner[0]!r}), so a virtual NPU does not know their "
                "numbers, and nothing stands in for a device that is gone: convert it with its functions inlined "
                "(onnx.inliner.inline_local_functions)"
            )

    def _part_spec(self, path: str, part: GraphPart, observed: Observed, target: str) -> BuildSpec:
        sides = (self.options.mean, self.options.std)
        origin = self._origin(self.whole.independent if path == self.whole.path else None)
        return part_spec(path, part, observed, target, self.shapes.sets[0], *sides, custom_string=origin)

    def _keeping(self, target: str, plan: CutPlan, on_cpu: Mapping[int, str] | None = None) -> Keeping:
        """The record of this build, to be written together with its result."""
        place = record_path(self.folder, self.stem, target)
        data = self.options.int8
        record = BuildRecord(
            sha256=sha256_of(self.path),
            target=target,
            toolkit=self.converter.toolkit.version,
            shapes=dict(self.shapes.sets[0]),
            more_shapes=tuple(map(dict, self.shapes.sets[1:])),
            batch=self.options.batch,
            mean=self.options.mean,
            std=self.options.std,
            freeze=dict(self.options.freeze),
            fit=self.options.fit,
            data=os.path.abspath(data) if isinstance(data, (str, os.PathLike)) else None,
            samples=tuple(self.samples.digests) if self.samples is not None else (),
            whole=plan.whole,
            lowered=self.refusal is None,
            hybrid=plan.hybrid,
            algorithm=plan.algorithm,
            on_cpu=dict(on_cpu or {}),
        )
        return Keeping(place, record)

    def _origin(self, independent: bool | None = None) -> str:
        origin = Origin.of(self.path, toolkit=self.converter.toolkit.version, independent=independent)
        return origin.to_custom_string()

    def _has_free_axes(self) -> bool:
        return any(not isinstance(dim, int) for value in self.source.signature.inputs for dim in (value.dims or ("?",)))


def _copy_onnx(path: str, folder: Path, data: Path) -> None:
    """Copy the ONNX and its weight files, which lie in ``data``, so that ``folder`` is complete for the board."""
    sources = {os.path.basename(path): Path(path)}
    sources.update((name, data / name) for name in read_onnx(path).external_data)
    for name, source in sources.items():
        place = folder / name
        if place.exists() and place.samefile(source):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        put_copy(place, source)
