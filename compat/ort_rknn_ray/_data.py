"""Ray Data: a callable class for ``map_batches``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._model import NpuModel, OnCpu
from ._store import StoredModel


class NpuBatches(NpuModel):
    """For ``dataset.map_batches(NpuBatches, fn_constructor_args=(model,), batch_format="numpy", ...)``.

    A batch is a dict of columns; ``columns`` maps input names to columns, by default to those of the same names. Rows
    are samples without the model's first axis, and go over all cores. The outputs become columns of their names.

        dataset.map_batches(NpuBatches, fn_constructor_args=("model.onnx",), batch_size=64, batch_format="numpy",
                            resources={"rknpu": 1}, compute=ray.data.ActorPoolStrategy(size=boards))
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | StoredModel,
        *,
        columns: Mapping[str, str] | None = None,
        provider_options: Mapping[str, Any] | None = None,
        on_cpu: OnCpu = "refuse",
    ) -> None:
        super().__init__(model, provider_options=provider_options, on_cpu=on_cpu)
        inputs = [value.name for value in self.session.get_inputs()]
        self._columns = {name: (columns or {}).get(name, name) for name in inputs}
        self._outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the outputs as further columns. Raises KeyError for a column that is missing."""
        missing = sorted(set(self._columns.values()) - set(batch))
        if missing:
            raise KeyError(f"the batch has no column {missing[0]!r}; it has {', '.join(map(repr, batch))}")
        rows = len(next(iter(batch.values())))
        feeds = (
            {name: np.asarray(batch[column][k])[np.newaxis] for name, column in self._columns.items()}
            for k in range(rows)
        )
        results = list(self.session.map(feeds))
        made = {name: np.concatenate([r[i] for r in results]) for i, name in enumerate(self._outputs)} if rows else {}
        return {**batch, **made}
