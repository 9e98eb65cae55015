"""What ``tp_mode`` can gain: the share of a model's work that is in operators that split over several cores.

The table is the vendor's, of the RK3588: "RKNN Compiler Support Operator List" 2.3.2, sections on multi-core. The older
"RKNN SDK User Guide" 5.3 names more operators; the newer list is used.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..adapter.contract import ModelSource
from ..files.operators import operators_of, splits

#: Operators that are split over the cores on their own.
SPLIT = frozenset(("Conv", "Add", "Mul"))
#: Operators that may be fused to a convolution without keeping it from being split.
SPLIT_BEHIND_CONV = frozenset(("Relu", "Clip", "PRelu", "LeakyRelu", "Add", "Mul"))
#: Operators that, fused to a convolution, make it run on one core.
ONE_CORE_BEHIND_CONV = frozenset(("Sigmoid", "HardSwish", "HardSigmoid", "Mish", "Tanh", "Elu", "Softplus", "Swish"))
#: Nodes that are absent from compiled models.
LEFT_OUT = frozenset(("Identity", "Dropout"))


@dataclass(frozen=True, slots=True)
class SplitShare:
    """How much of a model's work is split under ``tp_mode``."""

    share: float
    """From 0 to 1, of multiplications and additions; operators without any count their output elements."""
    split: Mapping[str, int]
    """The number of nodes that are split, by operator."""
    one_core: Mapping[str, int]
    """The number of nodes that run on one core, by operator."""

    def gain(self, cores: int) -> float:
        """The maximum speedup of a run on ``cores`` cores, by Amdahl's law; 1.0: nothing to gain."""
        return 1.0 / ((1.0 - self.share) + self.share / cores)

    def sentence(self, cores: int) -> str:
        """A one-line text for people."""
        worst = ", ".join(f"{name} x{number}" for name, number in Counter(self.one_core).most_common(3))
        rest = f"; on one core: {worst}" if worst else ""
        return (
            f"tp_mode: {self.share:.0%} of the work is in operators that split over cores, so {cores} cores can make a "
            f"run at most {self.gain(cores):.1f} times as fast{rest}"
        )


def compiled_convolutions(sources: Iterable[ModelSource]) -> dict[str, bool]:
    """By name of the ONNX node: whether its compiled convolution is split. The compiler also fuses activations that an
    ONNX expresses as several nodes."""
    found: dict[str, bool] = {}
    for source in sources:
        compiled = operators_of(source)  # where they cannot be read, the ONNX alone must do
        for one in compiled.operators if compiled is not None else ():
            if one.name.startswith("Conv:"):
                found[one.name.removeprefix("Conv:")] = splits(one.kind)
    found.pop("", None)
    return found


def split_share(
    onnx: str | os.PathLike[str], session: Any, feed: Mapping[str, Any], compiled: Mapping[str, bool] | None = None
) -> SplitShare:
    """The share for an ONNX. ``session`` creates a plain session on it from SessionOptions, which runs once with
    ``feed`` to determine the shapes. ``compiled``: from :func:`compiled_convolutions`. Raises what onnxruntime raises,
    and OSError or ValueError for a file that cannot be read."""
    from ..files._onnx_part import read_nodes
    from ..files._source import open_source

    with open_source(os.fspath(onnx), ValueError) as data:
        # onnxruntime turns Constant nodes into initializers before it numbers the nodes
        nodes = [node for node in read_nodes(data).nodes if node.op_type != "Constant" or node.domain]
    work = _work_by_index(session, feed, [node.op_type for node in nodes])
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.reads:
            readers.setdefault(name, []).append(index)
    known = compiled or {}
    behind: dict[int, bool] = {}  # for nodes fused to a convolution: whether that is split
    split: Counter[str] = Counter()
    one_core: Counter[str] = Counter()
    sums = {True: 0.0, False: 0.0}
    for index, node in enumerate(nodes):
        if index not in work or (node.op_type in LEFT_OUT and not node.domain):
            continue
        shared = behind.get(index)
        if shared is None:
            shared = node.op_type in SPLIT and not node.domain
            if node.op_type == "Conv":
                followers = [(k, nodes[k].op_type) for name in node.outputs for k in readers.get(name, ())]
                shared = not any(kind in ONE_CORE_BEHIND_CONV for _, kind in followers)
                for k, kind in followers:
                    if kind in ONE_CORE_BEHIND_CONV or (len(followers) == 1 and kind in SPLIT_BEHIND_CONV):
                        behind[k] = shared
                shared = known.get(node.name, shared)
        sums[shared] += work[index]
        (split if shared else one_core)[node.op_type] += 1
    total = sums[True] + sums[False]
    return SplitShare(sums[True] / total if total else 0.0, split, one_core)


def _work_by_index(make_session: Any, feed: Mapping[str, Any], kinds: Sequence[str]) -> dict[int, float]:
    """By the node's index in ``kinds``: multiplications, from the shapes in a profiled run. ValueError if onnxruntime
    numbers the nodes differently."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="ort_rknn_bench") as folder:
        options.profile_file_prefix = os.path.join(folder, "run")
        session = make_session(options)
        session.run(None, dict(feed))
        with open(session.end_profiling(), encoding="utf-8", errors="replace") as file:
            events = json.load(file)
    out: dict[int, float] = {}
    for event in events:
        args = event.get("args", {})
        if event.get("cat") == "Node" and "output_type_shape" in args and event["name"].endswith("_kernel_time"):
            ins, outs = _shapes(args.get("input_type_shape", ())), _shapes(args["output_type_shape"])
            index = int(args["node_index"])
            if index < len(kinds) and kinds[index] != args["op_name"]:
                raise ValueError(f"node {index} is a {kinds[index]}, and onnxruntime ran a {args['op_name']}")
            out[index] = _multiplications(args["op_name"], ins, outs)
    return out


def _shapes(tensors: Sequence[Mapping[str, Sequence[int]]]) -> list[list[int]]:
    return [[int(d) for d in shape] for one in tensors for shape in one.values()]


def _multiplications(kind: str, ins: list[list[int]], outs: list[list[int]]) -> float:
    size = float(sum(math.prod(shape) for shape in outs))
    if kind == "Conv" and len(ins) > 1:
        return size * math.prod(ins[1][1:])
    if kind == "ConvTranspose" and len(ins) > 1:
        return float(math.prod(ins[0]) * math.prod(ins[1][1:]))
    if kind in ("MatMul", "Gemm", "FusedMatMul") and ins and ins[0]:
        return size * ins[0][-1]
    return size
