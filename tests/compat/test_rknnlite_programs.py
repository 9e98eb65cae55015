"""Complete programs that import ``rknnlite.api``, unchanged, in their own processes."""

import os
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


# Modules, and processes that a program starts ----------------------------------------------------------------------

CHILDREN = """
import multiprocessing
import subprocess
import sys

CODE = "from rknnlite.api import RKNNLite, rknn_runtime; import rknnlite.utils; print(RKNNLite.__module__)"

def which(queue):
    from rknnlite.api.rknn_lite import RKNNLite
    import rknnlite.api.rknn_runtime as inside
    queue.put(RKNNLite.__module__ + " " + inside.RKNNOutput.__name__)

if __name__ == "__main__":
    for way in ("spawn", "forkserver", "fork"):
        context = multiprocessing.get_context(way)
        queue = context.SimpleQueue()
        child = context.Process(target=which, args=(queue,))
        child.start()
        print(way, queue.get())
        child.join()
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    print("subprocess", done.stdout.strip() or done.stderr)
    inner = "import subprocess, sys; subprocess.run([sys.executable, '-c', %r])" % CODE
    done = subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True)
    print("of a subprocess", done.stdout.strip() or done.stderr)
"""
OURS = "ort_rknn_rknnlite.api"
EXPECTED = [
    *(f"{way} {OURS} RKNNOutput" for way in ("spawn", "forkserver", "fork")),
    f"subprocess {OURS}",
    f"of a subprocess {OURS}",
]


@pytest.mark.parametrize("how", [["-m", "ort_rknn_rknnlite"], ["-m", "ort_rknn", "run"]], ids=" ".join)
@pytest.mark.parametrize("module", [False, True], ids=["script", "module"])
def test_children_have_the_face(tmp_path, how, module):
    (tmp_path / "parent.py").write_text(CHILDREN)
    what = ["-m", "parent"] if module else [str(tmp_path / "parent.py")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *how, *what],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines() == EXPECTED, done.stderr


def test_a_package_as_a_module(tmp_path):
    """``python -m ort_rknn_rknnlite -m package``: relative imports, arguments, the exit code."""
    package = tmp_path / "detector"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("from rknnlite.api import RKNNLite\nNAME = RKNNLite.__module__\n")
    (package / "__main__.py").write_text(
        "import sys\nfrom .part import NAME\nprint(NAME, __name__, __package__, sys.argv[1:])\nsys.exit(7)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "ort_rknn_rknnlite", "-m", "detector", "-v", "--x"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert done.stdout == f"{OURS} __main__ detector ['-v', '--x']\n", done.stderr
    assert done.returncode == 7


@pytest.mark.parametrize("arguments", [[], ["-m"], ["-x", "y"]])
def test_the_module_used_wrongly(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "ort_rknn_rknnlite", *arguments], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert done.stderr.startswith("usage: python -m ort_rknn_rknnlite (PROGRAM.py | -m MODULE)")


def test_a_program_that_is_not_there(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ort_rknn_rknnlite", str(tmp_path / "gone.py")],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert "can't open file" in done.stderr


def test_a_program_that_does_not_ask_for_it_imports_nothing_of_it(tmp_path):
    """``ort-rknn run`` only offers the face."""
    (tmp_path / "p.py").write_text(
        "import sys\nprint([m for m in sys.modules if m.startswith('ort_rknn_rknnlite.')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "ort_rknn", "run", str(tmp_path / "p.py")], capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "[]\n", done.stderr


def test_another_interpreter_gets_the_vendor_s_package(tmp_path):
    """A child that has no ort_rknn: the folder on its path steps aside."""
    import ort_rknn_rknnlite

    (tmp_path / "rknnlite").mkdir()
    (tmp_path / "rknnlite" / "__init__.py").write_text("WHO = 'the vendor'\n")
    code = "import rknnlite; print(rknnlite.WHO)"
    path = [ort_rknn_rknnlite._SHADOW, str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {path!r}; {code}"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "the vendor\n", done.stderr
