"""How long each layer of a compiled model takes, as reported by the runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .._errors import FAIL, bare_message, ort_error
from .._executor.executor import Executor
from .._executor.lanes import Lease
from ..adapter.contract import AdapterError, LoadSettings
from ..adapter.optional import ReportsLayers


@dataclass(frozen=True, slots=True)
class LayerTime:
    """One row of the runtime's table."""

    model: str
    """The compiled model's label."""
    number: int
    """The runtime's number, from 1, in execution order."""
    operator: str
    """The runtime's name: "ConvRelu"."""
    target: str
    """"NPU", "CPU" or "GPU"."""
    us: float
    name: str
    """Operator and tensor, named as in the ONNX if the runtime kept the name."""


def layers_of(session: Any) -> list[LayerTime]:
    """Run each compiled model of an NPU session once with zeros, in a separate context that measures its layers.

    The slowest layer first. [] for a session that has nothing on the NPU. Raises Fail, with the reason, if the runtime
    does not report its layers.
    """
    npu = session._npu
    found = npu.plan.found if npu is not None and npu.executors else None
    if found is None:
        return []
    rows: list[LayerTime] = []
    for executor in npu.executors:
        try:
            rows += parse(executor.label, _table(executor, found))
        except AdapterError as error:
            raise ort_error(FAIL, f"{executor.label}: its layers are not reported: {bare_message(error)}") from error
    return sorted(rows, key=lambda layer: -layer.us)


def _table(executor: Executor, found: Any) -> str:
    call = executor.static_call or executor.call_for(executor.signature.sets[0])
    if call is None:
        raise AdapterError("the model has no compiled shape")
    model = found.adapter.load(found.device, executor.provenance.source, LoadSettings(collect_layers=True))
    try:
        context = model.context(executor.dispatch.lanes[0].core_mask)
        if not hasattr(context, "layer_table"):
            raise AdapterError(f"the adapter {found.adapter.name!r} has no way to ask")
        lease = Lease(context, "layers")
        for _ in range(2):  # the first run does setup work
            executor._work.attempt(call, lease)
        measuring: ReportsLayers = context
        return measuring.layer_table()
    finally:
        model.close()


def parse(model: str, table: str) -> Iterator[LayerTime]:
    """The rows of the runtime's table. Other lines are ignored.

    The columns up to the time are never empty; later ones may be. Raises AdapterError for a text without a header.
    """
    heads: list[str] = []
    for line in table.splitlines():
        words = line.split()
        if "OpType" in words and "Time(us)" in words:
            heads = words[words.index("OpType") - 1 :]
        elif heads and len(words) > heads.index("Time(us)") and words[0].isdigit():
            row = dict(zip(heads, words))
            try:
                us = float(row["Time(us)"])
            except ValueError:
                continue
            yield LayerTime(model, int(words[0]), row["OpType"], row.get("Target", ""), us, words[-1])
    if not heads:
        raise AdapterError("the runtime's table of layers has an unknown format")
