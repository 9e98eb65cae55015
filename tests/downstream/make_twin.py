"""Compile a program's ONNX model with the vendor's rknn-toolkit2; run by that package's own Python.

    python make_twin.py '{"onnx": "model.onnx", "out": "model.rk3588.rknn", "target": "rk3588",
                          "inputs": ["x"], "shape_sets": [[[1, 3, 32, 32]]]}'

Several shape sets make a dynamic-shape model. float16, nothing is quantized.
"""

import json
import sys

from rknn.api import RKNN


def main(task):
    sets = task["shape_sets"]
    rknn = RKNN(verbose=False)
    try:
        # Sizes are given once: with both, rknn-toolkit2 2.5.0 fails in its constant folding.
        dynamic = {"dynamic_input": sets} if len(sets) > 1 else {}
        sizes = {} if dynamic else {"inputs": task["inputs"], "input_size_list": sets[0]}
        done = rknn.config(target_platform=task["target"], **dynamic)
        assert done in (0, None), "config failed"
        assert rknn.load_onnx(model=task["onnx"], **sizes) == 0, "load_onnx failed"
        assert rknn.build(do_quantization=False) == 0, "build failed"
        assert rknn.export_rknn(task["out"]) == 0, "export_rknn failed"
    finally:
        rknn.release()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
