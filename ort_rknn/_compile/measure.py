"""Computes a model's parts on the toolkit's simulator, and the rest of the ONNX on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..files.left_out import left_out
from .accuracy import OutputAccuracy
from .calibration import Samples
from .converter import BuildSpec, ConversionError, Converter
from .extract import extract
from .observe import Observed
from .parts import BuiltPart

Array = NDArray[Any]


class Reference:
    """The ONNX on the CPU: computes any of its tensors from any others."""

    def __init__(self, model: onnx.ModelProto, folder: str, observed: Observed) -> None:
        self.model = model
        self.folder = folder
        self.observed = observed
        self.outputs = [value.name for value in model.graph.output]
        self._whole = self._session(model)

    def run(self, feed: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Any]:
        """The model's own outputs, or the inner tensors ``outputs``."""
        if outputs is None:
            return list(self._whole.run(None, dict(feed)))
        return list(self.between(list(feed), outputs)(feed))

    def between(self, known: Sequence[str], wanted: Sequence[str]) -> Callable[[Mapping[str, Array]], list[Array]]:
        """A function that computes the tensors ``wanted`` from the tensors ``known``."""
        missing = [name for name in wanted if name not in known]
        if not missing:
            return lambda values: [values[name] for name in wanted]
        session = self._session(extract(self.model, known, missing, self.observed))
        inputs = {value.name for value in session.get_inputs()}

        def run(values: Mapping[str, Array]) -> list[Array]:
            made = dict(zip(missing, session.run(missing, {n: values[n] for n in inputs})))
            return [made[name] if name in made else values[name] for name in wanted]

        return run

    def _session(self, model: onnx.ModelProto) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_prepacking", "1")  # prepacking copies the weights
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", os.path.abspath(self.folder)
        )
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def calibration_list(reference: Reference, samples: Samples, inputs: Sequence[str], folder: str) -> str:
    """Write the toolkit's list of samples for a part that reads ``inputs``; returns its path.

    Inner tensors are computed by the ONNX on the CPU and written one sample at a time. Tensors without axes get one:
    toolkit 2.5.0 fails with samples that have none (IndexError).
    """
    os.makedirs(folder, exist_ok=True)
    inner = [name for name in inputs if name not in samples.forms]
    compute = reference.between(list(samples.forms), inner) if inner else None
    place = os.path.join(folder, "samples.txt")
    with open(place, "w") as file:
        for index in range(samples.count):
            paths = {name: str(samples.path(index, name)) for name in inputs if name in samples.forms}
            written = {name: samples.raw(index)[name] for name in paths if not samples.forms[name].shape}
            if compute is not None:
                written.update(zip(inner, compute(samples.feed(index))))
            for number, (name, value) in enumerate(written.items()):
                paths[name] = os.path.join(folder, f"{index}-{number}.npy")
                np.save(paths[name], np.atleast_1d(value), allow_pickle=False)
            file.write(" ".join(paths[name] for name in inputs) + "\n")
    return place


def simulate_parts(
    converter: Converter,
    parts: Sequence[BuiltPart],
    reference: Reference,
    samples: Samples,
    indices: Sequence[int],
) -> list[list[Array]]:
    """The model's outputs for the samples ``indices``: parts run on the simulator, the nodes between them on the CPU.

    The simulator only runs the last build, so every part is built again unless it was that one. Second names of a
    compiled output have its values, as in a session; the constants that a part was compiled without are the ONNX's. A
    model with a batch gets that many samples per run; the last one is repeated to fill the last run.
    """
    known = list(samples.forms)
    values = [samples.feed(index) for index in indices]
    for each in parts:
        inputs, outputs = compiled_names(each)
        copies = _copies(each, inputs, outputs)
        behind = reference.between(known, inputs)
        prepare_simulation(converter, each.spec)
        batch = each.spec.batch or 1
        for start in range(0, len(indices), batch):
            chosen = range(start, min(start + batch, len(indices)))
            ready = []
            for position in chosen:
                raw = samples.raw(indices[position])
                ready.append([raw.get(name, value) for name, value in zip(inputs, behind(values[position]))])
            ready += ready[-1:] * (batch - len(ready))
            made = converter.simulate([_batched(of) for of in zip(*ready)], ["nchw"] * len(inputs))
            if len(made) != len(outputs):
                raise ConversionError(f"the simulator gave {len(made)} outputs of {len(outputs)}")
            for name, value in zip(outputs, made):
                shape = (batch, *reference.observed.shapes[name])
                each_of = np.asarray(value, _dtype(reference.observed, name)).reshape(shape)
                for position, own in zip(chosen, each_of):
                    values[position][name] = np.asarray(own)
        for held in values:
            held.update((name, held[of]) for name, of in copies.items())
        known += [name for name in (*outputs, *copies) if name not in known]
    finish = reference.between(known, reference.outputs)
    return [list(finish(held)) for held in values]


def prepare_simulation(converter: Converter, spec: BuildSpec) -> None:
    """Build ``spec`` for the simulator, unless that was the last build.

    The simulator of toolkit 2.5.0 fails with an input without axes (IndexError), and takes it as one of shape [1].
    """

    def with_axis(shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape or (1,)

    inputs = spec.inputs or {}
    if not all(inputs.values()):
        sets = tuple(tuple(map(with_axis, group)) for group in spec.shape_sets)
        inputs = {name: with_axis(shape) for name, shape in inputs.items()}
        converter.build(replace(spec, inputs=inputs, shape_sets=sets))
    elif converter.last is not spec:
        converter.build(spec)


def _batched(values: Sequence[Array]) -> Array:
    return np.concatenate(values) if len(values) > 1 else values[0]


def compiled_names(each: BuiltPart) -> tuple[list[str], list[str]]:
    """Inputs and outputs of a compiled part, in its order: it may lack inputs that nothing needs and constant
    outputs."""
    part, file = each.part, each.built.file
    sides = []
    for named, compiled in ((part.inputs, file.inputs), (part.outputs, file.outputs)):
        kept = [tensor.name for tensor in compiled]
        sides.append(kept if set(kept) <= set(named) else list(named))
    return sides[0], sides[1]


def _copies(each: BuiltPart, inputs: Sequence[str], outputs: Sequence[str]) -> Mapping[str, str]:
    """Outputs that a part was compiled without because they are second names of others: their name -> the other's."""
    if len(outputs) == len(each.part.outputs):
        return {}
    return left_out(each.spec.model, inputs, outputs).copies


def compare(
    reference: Reference,
    samples: Samples,
    indices: Sequence[int],
    outputs: Sequence[Sequence[Array]],
    found: Sequence[OutputAccuracy] = (),
) -> list[OutputAccuracy]:
    """The difference of ``outputs`` (per sample) from the ONNX's, added to ``found`` if given."""
    found = list(found) or [OutputAccuracy(name) for name in reference.outputs]
    for index, got in zip(indices, outputs):
        for one, want, value in zip(found, reference.run(samples.feed(index)), got):
            one.add(want, value)
    return found


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, evenly spaced."""
    if count <= most:
        return list(range(count))
    return sorted({int(i) for i in np.linspace(0, count - 1, most)})


def _dtype(observed: Observed, name: str) -> np.dtype[Any]:
    from onnx import helper

    dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(observed.elem_types[name]))
    return dtype
