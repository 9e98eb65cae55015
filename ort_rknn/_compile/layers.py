"""Parses the toolkit's log of a build: its table of layers, and what it ignored.

The log is meant for people and has no defined format: what is not found in it is left out, never guessed. Seen with
rknn-toolkit2 2.5.0 (``verbose=True``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_STAMP = re.compile(r"^(?:\x1b\[[0-9;]*m)*[DIWE](?:\x1b\[[0-9;]*m)* RKNN: \[[0-9:.]+\] ?")
_ROW = re.compile(
    r"^(?P<id>\d+)\s+(?P<type>\S+)\s+(?P<dtype>\S+)\s+(?P<target>NPU|CPU|GPU)\s+(?P<shapes>.+?)\s+"
    r"(?P<cycles>\d+/\d+/\d+)\s+(?:[\d.]+%\s+)?(?P<rw>\d+)\s+(?P<name>\S+)\s*$"  # rk3576's has a share of zeros
)
_NO_LOWERING = re.compile(r"No lowering found for: (?P<name>.*), node type = (?P<type>[^,\s]+)")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
#: Lines of a traceback (whose last line says what was wrong), the toolkit's own version, and the node at which it was
#: when it refused the whole graph.
_TRACE = re.compile(r"Traceback \(most|: +File \"|: {3,}|\^{3}|toolkit2 version|^name: *OpType")
_PROBLEM = re.compile(r"^(?:E |E RKNN: \[[0-9:.]+\] )(?P<text>.+)$")


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One row of the table "Network Layer Information"."""

    op_type: str
    """The compiled operator: "ConvRelu", "Softmax" ..."""
    dtype: str
    """"FLOAT16", "INT8" ..."""
    target: str
    """Where the runtime runs it: "NPU", "CPU" or "GPU"."""
    name: str
    """"Conv:c1": the type, and the name of the ONNX node's first output or of the node."""
    cycles: int
    """The compiler's estimate for the layer, the larger of memory and NPU; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class LayerError:
    """The difference of a layer's output from the ONNX's."""

    op_type: str
    name: str
    entire: float
    """Cosine similarity with all preceding layers as compiled: errors accumulate."""
    single: float
    """Cosine similarity with exact inputs: the error of the layer itself."""


_LAYER_ERROR = re.compile(
    r"^\[(?P<type>[^\]]+)\] (?P<name>\S+)\s+(?P<entire>[0-9.]+) \| \S+\s+(?P<single>[0-9.]+) \| \S+\s*$"
)


def read_layer_errors(text: str) -> tuple[LayerError, ...]:
    """Parse the toolkit's table of layers, in graph order. Inputs are omitted, and so are layers without numbers, which
    were fused into the next one."""
    found = (m for line in text.splitlines() if (m := _LAYER_ERROR.match(line)))
    return tuple(
        LayerError(m["type"], m["name"], float(m["entire"]), float(m["single"])) for m in found if m["type"] != "Input"
    )


@dataclass(frozen=True, slots=True)
class BuildLog:
    """What one build logged."""

    layers: tuple[LayerRow, ...]
    no_lowering: tuple[tuple[str, str], ...]
    """Operators that the toolkit accepted and no runtime can run: (name, type)."""
    problems: tuple[str, ...]
    """Its error lines, oldest first."""


def read_build_log(text: str) -> BuildLog:
    """Parse a log. Of several tables, the last one counts."""
    layers: list[LayerRow] = []
    for table in _tables(text):
        layers = table
    plain = _ESCAPE.sub("", text)
    no_lowering = tuple(dict.fromkeys((m["name"], m["type"]) for m in _NO_LOWERING.finditer(plain)))
    found = (m["text"].strip() for line in plain.splitlines() if (m := _PROBLEM.match(line)))
    problems = tuple(dict.fromkeys(text for text in found if text and not _TRACE.search(text)))
    return BuildLog(tuple(layers), no_lowering, problems)


def _tables(text: str) -> Iterator[list[LayerRow]]:
    inside: list[LayerRow] | None = None
    for line in text.splitlines():
        row = _STAMP.sub("", line)
        if "Network Layer Information Table" in row:
            inside = []
        elif inside is not None and (match := _ROW.match(row)):
            if match["type"] not in ("InputOperator", "OutputOperator"):
                total = int(match["cycles"].rpartition("/")[2])
                inside.append(LayerRow(match["type"], match["dtype"], match["target"], match["name"], total))
        elif inside and "RKNNModelRegCmdbuildPass" in row:
            yield inside
            inside = None
