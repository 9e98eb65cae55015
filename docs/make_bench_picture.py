"""Measures with ``ort-rknn bench`` on a virtual RK3588 and draws docs/pictures/bench.svg: what the README shows.

python docs/make_bench_picture.py [SECONDS]

The virtual NPU is set to 12 ms a run, and ``tp_mode`` to 0.7 of what three cores could do: the table is real, a board's
speed it is not, and the picture says so. Needs the extras `cli`, `test` and `virtual`.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent / "pictures" / "bench.svg"
_WIDTH = 144


def model(path: Path) -> None:
    """A detector's backbone in small: eight convolutions, about 2.5 billion multiplications."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, name, channels = [], [], "images", 3
    for k, (wide, stride) in enumerate([(32, 2), (64, 2), (64, 1), (64, 1), (128, 2), (128, 1), (128, 1), (84, 2)]):
        weights.append(numpy_helper.from_array(rng.standard_normal((wide, channels, 3, 3), np.float32) / 9, f"w{k}"))
        same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [stride, stride]}
        nodes.append(helper.make_node("Conv", [name, f"w{k}"], [f"c{k}"], **same))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}"]))
        name, channels = f"r{k}", wide
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 416, 416])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 26, 26])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def lines(report: Any) -> list[Any]:
    """What ``ort-rknn bench`` prints, without the columns that say where a call's time goes."""
    from rich.text import Text

    from ort_rknn._cli.bench import _COLUMNS, _table
    from ort_rknn._cli.output import TextTable, renderable

    whole = _table(report)
    shown = TextTable(_COLUMNS[:6], [row[:6] for row in whole.rows])
    told = [Text(f"{report.model} on {report.device}, {report.cores} cores", "bold")]
    told += [Text(note, "dim") for note in report.notes]
    paste = [Text(line, "green") for line in report.lines_to_paste()]
    return [*told, "", renderable(shown), "", *paste, "", report.advice]


def picture(parts: list[Any]) -> str:
    from rich._export_format import CONSOLE_SVG_FORMAT
    from rich.console import Console

    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for part in parts:
        console.print(part, highlight=False)
    # rich's own format would load a font from elsewhere.
    plain = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title="ort-rknn bench model.onnx", code_format=plain, unique_id="bench")


def main() -> int:
    os.environ["ORT_RKNN_VIRTUAL_COMPUTE"] = "pattern"  # the numbers cost no time on the CPU, as on a board
    import ort_rknn
    from ort_rknn_virtual.control import virtual_npu

    npu = virtual_npu("rk3588")
    npu.run_time_us = 12_000
    npu.tp_efficiency(0.7)
    with tempfile.TemporaryDirectory() as folder:
        model(Path(folder) / "model.onnx")
        os.chdir(folder)
        seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 40.0
        report = ort_rknn.bench("model.onnx", seconds=seconds, options={"device": "virtual:rk3588"})
    TARGET.write_text(picture(lines(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
