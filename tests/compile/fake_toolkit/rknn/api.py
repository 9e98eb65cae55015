"""Stands in for the vendor's converter in tests: answers with models that the real one made, and with its own words.

It knows the models of tests/models (by the ONNX's contents and the target) and what the real converter printed for a
refusal. Everything else it refuses as the real one would: a code and a line on stdout.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

_MODELS = Path(os.environ["FAKE_TOOLKIT_MODELS"])
_TABLE = """\
D RKNN: [12:00:00.000] >>>>>> start: rknn::RKNNModelRegCmdbuildPass
D RKNN: [12:00:00.000]             Network Layer Information Table
D RKNN: [12:00:00.000] ID   OpType         DataType Target InputShape           OutputShape   Cycles(DDR/NPU/Total) RW(KB) FullName
D RKNN: [12:00:00.000] 0    InputOperator  FLOAT16  CPU    \\                    (1,3,32,32)   0/0/0                 0      InputOperator:x
D RKNN: [12:00:00.000] 1    ConvRelu       FLOAT16  NPU    (1,3,32,32),(4,3,3,3) (1,4,32,32)  263/2304/2304         2      Conv:c
D RKNN: [12:00:00.000] 2    Reshape        FLOAT16  CPU    (1,4,32,32)          (1,4096)      0/0/0                 4      Reshape:r
D RKNN: [12:00:00.000] 3    OutputOperator FLOAT16  CPU    (1,4096)             \\             0/0/0                 0      OutputOperator:y
D RKNN: [12:00:00.000] <<<<<<<< end: rknn::RKNNModelRegCmdbuildPass
"""  # noqa: E501

_LAYERS = """\
# simulator_error: calculate the output error of each layer of the simulator (compared to the 'golden' value).
layer_name                               simulator_error
                                     entire              single
                                  cos      euc        cos      euc
------------------------------------------------------------------------
[Input] x                       1.00000 | 0.00000   1.00000 | 0.00000
[Conv] c
[Relu] r                        0.99999 | 0.55774   0.99999 | 0.55774
[Sigmoid] s#1                   0.91250 | 4.04089   0.99990 | 0.01283
[exDataConvert] y               0.90001 | 12.5657   1.00000 | 12.2182
"""


_TRACEBACK = """\
Traceback (most recent call last):
  File "rknn/api/rknn_log.py", line 344, in rknn.api.rknn_log.error_catch_decorator.error_catch_wrapper
  File "rknn/api/rknn_base.py", line 2795, in rknn.api.rknn_base.RKNNBase.inference
  File "rknn/api/rknn_utils.py", line 262, in rknn.api.rknn_utils.get_input_img
IndexError: list index out of range
"""


def _note(what, given):
    """Appends what was asked for to a file of JSON lines."""
    if "FAKE_TOOLKIT_CALLS" in os.environ:
        with open(os.environ["FAKE_TOOLKIT_CALLS"], "a") as file:
            file.write(json.dumps({what: given}) + "\n")


class RKNN:
    def __init__(self, verbose=False):
        self.target = None
        self.compiled = None
        self.model = None
        print("fake toolkit", verbose)

    def config(self, target_platform, **rest):
        self.target = target_platform
        self.given = rest
        _note("config", rest)
        if target_platform == "rk3568":
            print("E config: Invalid target_platform 'rk3568'!")
            return -1
        return 0

    def load_onnx(self, model, inputs=None, input_size_list=None, outputs=None):
        self.model = model
        _note("load", {"inputs": inputs, "input_size_list": input_size_list})
        if os.environ.get("FAKE_TOOLKIT_DIES") == "load_onnx":
            os._exit(7)
        if os.environ.get("FAKE_TOOLKIT_RAISES") == "load_onnx":
            raise KeyError("axes")
        if os.environ.get("FAKE_TOOLKIT_EXITS") == "load_onnx":
            raise SystemExit(3)
        Path("check0.onnx").write_bytes(b"dropped where it runs")
        return 0

    def build(self, do_quantization, dataset=None, **rest):
        _note("build", rest)
        if os.environ.get("FAKE_TOOLKIT_ANY"):  # whatever it is becomes this model, except with an operator of a domain
            if b"a.domain" in Path(self.model).read_bytes():
                print("E build: it has an operator of a domain")
                return -1
            self.compiled = _MODELS / os.environ["FAKE_TOOLKIT_ANY"]
            print(_TABLE)
            return 0
        digest = hashlib.sha256(Path(self.model).read_bytes()).hexdigest()
        files = json.loads((_MODELS / "MANIFEST.json").read_text())["files"]
        for name, entry in files.items():
            if entry["sha256"]["onnx"] == digest and entry["target"] == self.target:
                self.compiled = _MODELS / name
                print(_TABLE)
                return 0
        print("E build: Meet unsupported split")
        return -1

    def export_rknn(self, path):
        special = os.environ.get("FAKE_TOOLKIT_EXPORTS")
        if special == "nothing":
            return 0
        if special == "rubbish":
            Path(path).write_bytes(b"not a model")
            return 0
        if special == "no lowering":
            print("No lowering found for: det, node type = Det, use CustomOperatorLower instead.")
        shutil.copy(self.compiled, path)
        return 0

    def init_runtime(self):
        return 0

    def inference(self, inputs, data_format):
        _note("inference", [list(value.shape) for value in inputs])
        if os.environ.get("FAKE_TOOLKIT_RAISES") == "inference":
            raise ValueError(_TRACEBACK)
        return [np.asarray(value) * 2 for value in inputs]

    def accuracy_analysis(self, inputs, output_dir):
        assert all(np.load(path).ndim for path in inputs)
        Path(output_dir).mkdir()
        if os.environ.get("FAKE_TOOLKIT_LAYERS") != "none":
            (Path(output_dir) / "error_analysis.txt").write_text(_LAYERS)
        return 0

    def release(self):
        pass
