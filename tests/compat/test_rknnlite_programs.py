"""Whole programs that import ``rknnlite.api``, unchanged, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[1] / "models"

#: As rknnlite programs are written: a pool of objects, one per core, frames in uint8.
POOL = """
import sys
import threading
import numpy as np
from rknnlite.api import RKNNLite

def start(path, core):
    rknn = RKNNLite()
    if rknn.load_rknn(path) != 0:
        sys.exit("Load RKNN model failed")
    if rknn.init_runtime(core_mask=core) != 0:
        sys.exit("Init runtime environment failed")
    return rknn

pool = [start(sys.argv[1], core) for core in (RKNNLite.NPU_CORE_0, RKNNLite.NPU_CORE_1, RKNNLite.NPU_CORE_2)]
frames = [np.full((1, 24, 24, 3), 40 * k, np.uint8) for k in range(6)]
results = {}

def work(number):
    for k in range(number, len(frames), len(pool)):
        results[k] = pool[number].inference(inputs=[frames[k]])[0]

threads = [threading.Thread(target=work, args=(number,)) for number in range(len(pool))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for k in sorted(results):
    print(k, results[k].shape, results[k].dtype, int(np.argmax(results[k])))
for rknn in pool:
    rknn.release()
"""


def run(program, environ, *arguments, python=()):
    import os

    env = {k: v for k, v in os.environ.items() if not k.startswith("ORT_RKNN_")} | environ
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, *python, str(program), *arguments], env=env, capture_output=True, text=True, timeout=100
    )


@pytest.fixture
def program(tmp_path):
    (tmp_path / "program.py").write_text(POOL)
    return tmp_path / "program.py"


@pytest.mark.parametrize(
    "environ", [{"ORT_RKNN_DEVICE": "virtual:rk3588"}, {"ORT_RKNN_DISABLE": "1"}], ids=["virtual NPU", "CPU"]
)
def test_an_unchanged_program(program, environ):
    done = run(program, environ, str(MODELS / "image_u8.rk3588.rknn"), python=("-m", "ort_rknn_rknnlite"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.rsplit(" ", 1)[0] for line in lines] == [f"{k} (1, 10) float32" for k in range(6)]
    if "ORT_RKNN_DISABLE" in environ:
        assert "does not run on an NPU but its ONNX image_u8.onnx on the CPU" in done.stderr
        assert "FallbackWarning" in done.stderr
    else:
        assert done.stderr == ""


def test_the_one_changed_import(program):
    program.write_text(POOL.replace("from rknnlite.api", "from ort_rknn_rknnlite.api"))
    done = run(program, {"ORT_RKNN_DEVICE": "virtual:rk3588"}, str(MODELS / "image_u8.rk3588.rknn"))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6


def test_what_fails_is_on_stderr_without_any_logging_set_up(program):
    done = run(program, {"ORT_RKNN_DEVICE": "virtual:rk3588"}, "/nowhere.rknn", python=("-m", "ort_rknn_rknnlite"))
    assert done.returncode == 1
    assert done.stderr == "RKNNLite.load_rknn: the model '/nowhere.rknn' is not a file\nLoad RKNN model failed\n"


def test_usage():
    done = run("-", {}, python=("-m", "ort_rknn_rknnlite"))
    assert done.returncode == 1
    assert done.stderr.startswith("usage: python -m ort_rknn_rknnlite PROGRAM.py")
