"""The other end of :mod:`.converter`: a script for the toolkit's interpreter. It imports nothing of ort_rknn.

    python worker.py LOG

Reads one JSON request per line from stdin and answers each with a JSON line on stdout. Everything that the toolkit
prints, from Python or from C, goes to the file LOG. Ends with stdin. Python 3.8 and later.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
from typing import Any, Dict, Optional  # noqa: UP035  # Python 3.8

Request = Dict[str, Any]  # noqa: UP006

_FLUSH = ctypes.CDLL(None).fflush


class StepFailed(Exception):
    """A step of the toolkit failed. Its own messages are in the log."""

    def __init__(self, step: str, code: Optional[int]) -> None:  # noqa: UP045
        super().__init__(f"{step} returned {code}")
        self.step = step


class Worker:
    """The last build, and requests about it."""

    def __init__(self) -> None:
        self.rknn: Any = None
        self.simulating = False

    def hello(self, request: Request) -> Request:
        """Versions, without importing the toolkit."""
        from importlib.metadata import version

        return {"python": sys.version.split()[0], "toolkit": version("rknn-toolkit2"), "onnx": version("onnx")}

    def build(self, request: Request) -> Request:
        """Convert. ``config``, ``load`` and ``build`` are arguments for the toolkit's functions of these names, with
        ``hybrid`` in between if requested; the compiled model is written to ``out``."""
        from rknn.api import RKNN

        self.release()
        self.rknn = rknn = RKNN(verbose=True)
        _step("config", rknn.config(**request["config"]))
        _step("load_onnx", rknn.load_onnx(model=request["model"], **request["load"]))
        _step("build", rknn.build(**request["build"]))
        _step("export_rknn", rknn.export_rknn(request["out"]))
        return {}

    def simulate(self, request: Request) -> Request:
        """Run the last build on the toolkit's simulator: reads arrays from ``feeds`` (.npz, keys "0", "1" ... in the
        order of the inputs, NCHW or NHWC according to ``layouts``) and writes to ``out`` (.npz, keys "0", "1" ...)."""
        import numpy

        if not self.simulating:
            _step("init_runtime", self.rknn.init_runtime())
            self.simulating = True
        with numpy.load(request["feeds"], allow_pickle=False) as file:
            feeds = [file[str(i)] for i in range(len(file.files))]
        outputs = self.rknn.inference(inputs=feeds, data_format=request["layouts"])
        if outputs is None:
            raise StepFailed("inference", None)
        numpy.savez(request["out"], **{str(i): value for i, value in enumerate(outputs)})
        return {"outputs": len(outputs)}

    def layers(self, request: Request) -> Request:
        """Compare each layer of the last build with the ONNX's, on the simulator: reads the arrays at the paths
        ``feeds``, NCHW, and writes the toolkit's table to the folder ``out``."""
        _step("accuracy_analysis", self.rknn.accuracy_analysis(inputs=request["feeds"], output_dir=request["out"]))
        return {}

    def release(self) -> None:
        """Release the last build."""
        if self.rknn is not None:
            self.rknn.release()
        self.rknn, self.simulating = None, False


def _step(name: str, code: Optional[int]) -> None:  # noqa: UP045
    # "No lowering found" and similar messages are printed by C code, whose buffer would otherwise be written when the
    # process ends.
    _FLUSH(None)
    if code != 0:
        raise StepFailed(name, code)


def main(log: str) -> None:
    """Serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = dict(getattr(worker, request["do"])(request), ok=True)
        except StepFailed as refused:
            answer = {"ok": False, "step": refused.step, "error": str(refused)}
        except SystemExit as stop:  # the toolkit exits like this if it finds a mistake
            answer = {"ok": False, "step": "", "error": f"the toolkit ended with exit code {stop.code}"}
        except Exception as error:
            traceback.print_exc()
            answer = {"ok": False, "step": "", "error": f"{type(error).__name__}: {error}"}
        _FLUSH(None)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
