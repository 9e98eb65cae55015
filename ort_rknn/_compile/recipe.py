"""Builds a model according to a plan. All builds of one ONNX for one SoC share a :class:`Recipe`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from .calibration import Samples
from .converter import BuildSpec, ConversionError
from .cuts import CutPlan
from .graph import load_graph, save_linked
from .measure import Reference, calibration_list
from .observe import Array, Observed, observe
from .partition import GraphPart, Partition
from .parts import BuiltPart, InParts, PartsJob, build_in_parts, refuse_unusable
from .prepare import needed_inputs
from .rounding import round_weights


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all builds have in common."""

    job: PartsJob
    """The prepared ONNX, and build settings without those for int8."""
    samples: Samples | None = None
    """Quantize with these; None: float16."""
    whole: str = ""
    """The path of the model to compile as a whole; "": that of ``job``."""

    def build(
        self, plan: CutPlan, feeds: Sequence[Mapping[str, Array]], refusal: ConversionError | None = None
    ) -> tuple[InParts, Reference]:
        """Build according to ``plan``. ``feeds``: used to determine shapes; ``refusal``: why the whole was refused.

        Raises ConversionError if nothing of it can be compiled.
        """
        job = self.job
        model = load_graph(job.path)
        references: list[Reference] = []

        def complete(place: str, part: GraphPart, observed: Observed) -> BuildSpec:
            if not references:
                references.append(Reference(model, os.path.dirname(job.path), observed))
            return self._quantized(job.spec(place, part, observed), plan, part, references[0])

        if plan.whole:
            made = self._whole(model, feeds, complete)
        else:
            made = build_in_parts(replace(job, spec=complete), first=refusal, keep=plan.on_cpu, feeds=feeds)
        return made, references[0]

    def _quantized(self, plain: BuildSpec, plan: CutPlan, part: GraphPart, reference: Reference) -> BuildSpec:
        if self.samples is None:
            return plain
        folder = tempfile.mkdtemp(prefix="int8-", dir=self.job.converter.folder)
        listed = calibration_list(reference, self.samples, part.inputs, folder)
        build: dict[str, Any] = {**plain.build, "auto_hybrid": True} if plan.hybrid else dict(plain.build)
        config: dict[str, Any] = dict(plain.config)
        if plan.algorithm == "mmse":
            config["quantized_algorithm"] = plan.algorithm
        path = plain.model
        if plan.algorithm == "rounded":
            self.job.progress("rounding the weights")
            path = os.path.join(folder, os.path.basename(path))
            model, beside = load_graph(plain.model), os.path.dirname(plain.model)
            round_weights(model, beside, reference, self.samples)
            save_linked(model, beside, Path(path))
        inputs = {name: shape or (1,) for name, shape in (plain.inputs or {}).items()} or None
        return replace(plain, model=path, inputs=inputs, dataset=listed, build=build, config=config)

    def _whole(
        self,
        model: onnx.ModelProto,
        feeds: Sequence[Mapping[str, Array]],
        spec: Callable[[str, GraphPart, Observed], BuildSpec],
    ) -> InParts:
        converter, path = self.job.converter, self.whole or self.job.path
        observed = observe(model, os.path.dirname(self.job.path), feeds)
        inputs, outputs = needed_inputs(path, feeds[0]), [value.name for value in model.graph.output]
        part = GraphPart(list(range(len(model.graph.node))), inputs, outputs)
        how = spec(path, part, observed)
        built = converter.build(how)
        refuse_unusable(built, path, converter.log)
        return InParts(model, observed, Partition((part,), {}), (BuiltPart(part, built, how),))
