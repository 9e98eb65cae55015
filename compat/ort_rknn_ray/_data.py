"""Ray Data: a callable class for ``map_batches``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ._model import NpuModel, OnCpu, closed_on_error
from ._samples import SampleForm
from ._store import StoredModel


class NpuBatches(NpuModel):
    """For ``dataset.map_batches(NpuBatches, fn_constructor_args=(model,), batch_format="numpy", ...)``.

    A batch is a dict of columns; ``columns`` maps input names to columns, by default to those of the same names. A row
    is a sample without the model's first axis, or the whole input. If the first axis is free and samples are known to
    be independent of each other, a batch is one call; a model for N samples gets N rows at a time, padded with copies
    of the last row; otherwise each row is a call. All cores are used. The outputs become columns with their names; rows
    of different shapes become a column of objects.

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
        with closed_on_error(self.session):
            inputs = [value.name for value in self.session.get_inputs()]
            self._columns = {name: (columns or {}).get(name, name) for name in inputs}
            unknown = sorted(set(columns or {}) - set(inputs))
            if unknown:
                raise ValueError(
                    f"columns: the model has no input {unknown[0]!r}; it has {', '.join(map(repr, inputs))}"
                )
            self._samples = SampleForm(self.session, self.path)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the outputs as additional columns. Raises KeyError for a missing column, and what
        ``InferenceSession.run`` raises."""
        missing = sorted(set(self._columns.values()) - set(batch))
        if missing:
            raise KeyError(f"the batch has no column {missing[0]!r}; it has {', '.join(map(repr, batch))}")
        return {**batch, **self._samples.rows({name: batch[column] for name, column in self._columns.items()})}
