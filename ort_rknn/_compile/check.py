"""Compares a compiled model with its ONNX: the feeds, and the toolkit's simulator as the device."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ..files import OnnxModel
from .accuracy import OutputAccuracy
from .branches import take_branches
from .calibration import Data, Fit, Samples, forms_of, read_samples
from .converter import BuildSpec, Converter
from .cuts import CutPlan
from .graph import load_graph
from .layers import LayerError
from .measure import Reference, compare, compiled_names, prepare_simulation, simulate_parts, spread
from .observe import Observed, observe, random_feeds
from .partition import GraphPart
from .parts import BuiltPart, PartsJob
from .prepare import prepare
from .recipe import Recipe
from .record import BuildRecord, RecordError
from .shapes import CompiledShapes, ShapeError, compiled_shapes
from .spec import part_spec, per_input, with_shapes
from .toolkit import Toolkit

#: The maximum number of samples compared, and the number of random ones if there are no data.
MOST, RANDOM = 64, 8


def feeds_for(
    model: onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]],
    data: Data | None,
    folder: str,
    *,
    mean: tuple[tuple[float, ...], ...] = (),
    std: tuple[tuple[float, ...], ...] = (),
    fit: Fit = "stretch",
) -> Samples:
    """The samples for both models: ``data``, else random values that fit the signature (pixels if there is a mean or
    std)."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    dtypes = {name: np.dtype(helper.tensor_dtype_to_np_dtype(types[name])) for name in shapes}
    sides = (per_input(mean, len(shapes), "mean"), per_input(std, len(shapes), "std"))
    forms = forms_of(shapes, dtypes, *sides)
    if data is not None:
        return read_samples(data, forms, folder, fit=fit)
    samples = Samples(Path(folder), forms)
    samples.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(RANDOM):
        feed: dict[str, Any] = random_feeds(model, shapes, seed=seed)
        pixels = np.random.default_rng(seed)
        samples.add(
            {
                name: pixels.integers(0, 256, form.shape).astype(np.float32) if form.mean or form.std else feed[name]
                for name, form in forms.items()
            }
        )
    return samples


def on_simulator(
    path: str,
    record: BuildRecord,
    data: Data | None,
    toolkit: Toolkit,
    log: str,
    *,
    progress: Callable[[str], None] = lambda text: None,
    layers: bool = False,
) -> tuple[list[OutputAccuracy], tuple[LayerError, ...]]:
    """Repeat the build described by ``record`` and compare it, on the toolkit's simulator, with the ONNX at ``path``.

    Returns the outputs and, with ``layers``, each layer's difference from the ONNX's for the first sample.

    ``data``: None compares on the samples that int8 was made with, else on random values. Raises RecordError if the
    build cannot be repeated, DataError for samples, ConversionError if the toolkit refuses.
    """
    if record.toolkit != toolkit.version:
        raise RecordError(
            f"it was converted with toolkit {record.toolkit}, and this is {toolkit.version}: convert again"
        )
    with tempfile.TemporaryDirectory(prefix="ort_rknn-check-") as scratch:
        source = whole = prepare(path, scratch, freeze=record.freeze, lower=False)
        if record.whole and record.lowered and not source.fits:
            os.mkdir(os.path.join(scratch, "whole"))
            whole = prepare(path, os.path.join(scratch, "whole"), freeze=record.freeze)
        shapes = _checked_shapes(record, source.signature)
        if record.whole:
            whole = take_branches(whole, shapes, os.path.join(scratch, "branches"))
        model = load_graph(source.path)
        form: dict[str, Any] = {"mean": record.mean, "std": record.std, "fit": record.fit}
        learned = _learned_from(model, record, os.path.join(scratch, "int8"), form)
        if data is None and learned is not None:
            fed = learned
        else:
            fed = feeds_for(model, record.shapes, data, os.path.join(scratch, "feeds"), **form)
        indices = spread(fed.count, MOST)
        plan = CutPlan("as recorded", record.on_cpu, record.hybrid, record.whole, record.algorithm)
        progress("building it again, as recorded")

        def spec(place: str, part: GraphPart, seen: Observed) -> BuildSpec:
            plain = part_spec(place, part, seen, record.target, record.shapes, record.mean, record.std)
            return with_shapes(plain, record.shape_sets, record.batch) if record.whole else plain

        with Converter(toolkit, log) as converter:
            job = PartsJob(converter, source.path, record.shapes, record.target, spec, progress)
            recipe = Recipe(job, learned, whole.path)
            made, reference = recipe.build(plan, [fed.feed(index) for index in indices[:2]])
            progress(f"{len(indices)} samples on the simulator")
            outputs = simulate_parts(converter, made.built, reference, fed, indices)
            found = compare(reference, fed, indices, outputs)
            if data is None and learned is None:
                _other_sets(converter, made.built, reference, record, os.path.join(scratch, "sets"), form, found)
            return found, _layers(converter, made.built, reference, fed, progress) if layers else ()


def _checked_shapes(record: BuildRecord, signature: OnnxModel) -> CompiledShapes:
    missing = [value.name for value in signature.inputs if value.name not in record.shapes]
    try:
        shapes = compiled_shapes(signature, record.shape_sets)
    except ShapeError as error:
        raise RecordError(f"its record is damaged ({error}): convert again") from error
    if missing:
        raise RecordError(f"its record is damaged (no shape of input {missing[0]!r}): convert again")
    return shapes


def _other_sets(
    converter: Converter,
    parts: Sequence[BuiltPart],
    reference: Reference,
    record: BuildRecord,
    folder: str,
    form: Mapping[str, Any],
    found: Sequence[OutputAccuracy],
) -> None:
    """Random samples of each other shape set, added to ``found``."""
    model, place = reference.model, reference.folder
    for number, shapes in enumerate(record.more_shapes):
        fed = feeds_for(model, shapes, None, os.path.join(folder, str(number)), **form)
        other = Reference(model, place, observe(model, place, [fed.feed(0)]))
        indices = range(fed.count)
        compare(other, fed, indices, simulate_parts(converter, parts, other, fed, indices), found)


def _layers(
    converter: Converter,
    parts: Sequence[BuiltPart],
    reference: Reference,
    samples: Samples,
    progress: Callable[[str], None],
) -> tuple[LayerError, ...]:
    """Each part's layers, fed with what the ONNX computes for the first sample."""
    feed, raw = samples.feed(0), samples.raw(0)
    found: list[LayerError] = []
    for number, each in enumerate(parts):
        progress(f"the layers of part {number + 1} of {len(parts)}")
        prepare_simulation(converter, each.spec)
        names, _ = compiled_names(each)
        inputs = dict(zip(names, reference.run(feed, names)))
        found += converter.layer_errors([raw.get(name, value) for name, value in inputs.items()])
    return tuple(found)


def on_cpu(
    path: str, shapes: Mapping[str, tuple[int, ...]], data: Data | None, folder: str, form: Mapping[str, Any]
) -> tuple[Samples, Reference]:
    """The samples, and the ONNX on the CPU as the reference."""
    model = load_graph(path)
    samples = feeds_for(model, shapes, data, folder, **form)
    seen: Observed = observe(model, os.path.dirname(path), [samples.feed(0)])
    return samples, Reference(model, os.path.dirname(path), seen)


def _learned_from(model: onnx.ModelProto, record: BuildRecord, folder: str, form: Mapping[str, Any]) -> Samples | None:
    if not record.samples:
        return None
    if record.data is None:
        raise RecordError("its samples came from a callable, which cannot be called again: check on the NPU instead")
    samples = feeds_for(model, record.shapes, record.data, folder, **form)
    if tuple(samples.digests) != record.samples:
        raise RecordError(f"{record.data} holds other samples than it was converted with: convert again")
    return samples
