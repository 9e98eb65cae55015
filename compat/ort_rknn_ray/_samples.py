"""Combines single samples into the batches that a model takes, and splits the outputs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ort_rknn

Array = NDArray[Any]


class SampleForm:
    """How a session takes samples, each without the model's first axis.

    ``length``: samples per run. None: any number, because the first axis is free and the samples are known to be
    independent of each other. Above 1: the first axes of all inputs and outputs have this length. 1: everything else.
    """

    def __init__(self, session: ort_rknn.InferenceSession, path: str) -> None:
        self._session = session
        self._ranks = {value.name: len(value.shape) for value in session.get_inputs()}
        self._outputs = [value.name for value in session.get_outputs()]
        firsts = [value.shape[0] if value.shape else None for value in (*session.get_inputs(), *session.get_outputs())]
        self.length: int | None = 1
        if all(isinstance(first, int) and first > 1 for first in firsts) and len(set(firsts)) == 1:
            self.length = firsts[0]
        elif not any(isinstance(first, int) for first in firsts) and takes_any_number(session, path):
            self.length = None

    def lacks_first_axis(self, name: str, array: Array) -> bool:
        """Whether the array is a sample of that input; otherwise it is the whole input."""
        return array.ndim == self._ranks[name] - 1

    def rows(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Array]:
        """Outputs by name, a row per row of the columns, which are named after the inputs.

        A row is a sample without the model's first axis, or the whole input; outputs likewise. Rows of an output with
        different shapes become an array of objects.
        """
        count = len(next(iter(columns.values())))
        if not count:
            return {}
        stacked = {name: _stacked(column) for name, column in columns.items()}
        if self.length != 1 and all(
            array is not None and self.lacks_first_axis(name, array[0]) for name, array in stacked.items()
        ):
            together: dict[str, Array] = stacked  # type: ignore[assignment]
            return dict(zip(self._outputs, self._together(together, count)))
        results = list(self._session.map(self._feeds(columns, count)))
        samples = any(self.lacks_first_axis(name, np.asarray(column[0])) for name, column in columns.items())
        return {
            name: _column([result[i] for result in results], samples and self._leads(i))
            for i, name in enumerate(self._outputs)
        }

    def _feeds(self, columns: Mapping[str, Sequence[Any]], count: int) -> Iterator[dict[str, Array]]:
        for k in range(count):
            row = {name: np.asarray(column[k]) for name, column in columns.items()}
            yield {
                name: array[np.newaxis] if self.lacks_first_axis(name, array) else array for name, array in row.items()
            }

    def _leads(self, output: int) -> bool:
        """Whether the first axis of an output counts samples, if one sample is run at a time."""
        shape = self._session.get_outputs()[output].shape
        given = [value.shape[0] for value in self._session.get_inputs() if value.shape]
        free = any(not isinstance(first, int) for first in given)
        return bool(shape) and (shape[0] == 1 or shape[0] in given or (free and not isinstance(shape[0], int)))

    def _together(self, stacked: Mapping[str, Array], count: int) -> list[Array]:
        if self.length is None:
            return list(self._session.run(None, dict(stacked)))
        length = self.length
        feeds = (
            {name: filled(array[k : k + length], length) for name, array in stacked.items()}
            for k in range(0, count, length)
        )
        results = list(self._session.map(feeds))
        return [np.concatenate([result[i] for result in results])[:count] for i in range(len(self._outputs))]


def filled(samples: Array, length: int) -> Array:
    """Pad to ``length`` samples by repeating the last one."""
    missing = length - len(samples)
    return samples if missing <= 0 else np.concatenate([samples, np.repeat(samples[-1:], missing, axis=0)])


def takes_any_number(session: ort_rknn.InferenceSession, path: str | os.PathLike[str]) -> bool:
    """Whether a call with any number of samples gives each sample's own outputs, as recorded in the compiled model or
    proved from the ONNX at ``path``."""
    npu = session._npu
    if npu is not None and npu.executor is not None:
        return npu.executor.signature.splits
    if npu is not None and not all(executor.signature.splits for executor in npu.executors):
        return False
    from ort_rknn._independence import independence_of
    from ort_rknn.files import OnnxFileError

    try:
        return independence_of(path).proved
    except OnnxFileError:
        return False


def _stacked(column: Sequence[Any]) -> Array | None:
    """One array of all rows; None if they differ in shape."""
    if isinstance(column, np.ndarray) and column.dtype != object:
        return column
    rows = [np.asarray(row) for row in column]
    return np.stack(rows) if len({row.shape for row in rows}) == 1 else None


def _column(results: Sequence[Array], samples: bool) -> Array:
    rows = [array[0] if samples and len(array) == 1 else array for array in map(np.asarray, results)]
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    column = np.empty(len(rows), object)
    for k, row in enumerate(rows):
        column[k] = row
    return column
