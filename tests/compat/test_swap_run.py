"""``python -m ort_rknn run``: a whole program, against the same program under the plain interpreter."""

import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

MODELS = Path(__file__).parent.parent / "models"
APP = """
import os, sys, json
import onnxruntime
print(json.dumps({
    "argv": sys.argv, "path0": sys.path[0], "file": __file__, "name": __name__, "package": __package__,
    "spec": getattr(__spec__, "name", None), "main": sys.modules["__main__"].__dict__ is globals(),
    "builtins": __builtins__.__name__, "onnxruntime": onnxruntime.__file__,
}))
def fail():
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    if what == "error":
        raise ValueError("of the program")
    if what == "chained":
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "number":
        sys.exit(7)
    if what == "text":
        sys.exit("a last word")
    if what == "hook":
        def hook(kind, error, trace):
            print("hook", kind.__name__, trace.tb_frame.f_code.co_name, file=sys.stderr)
        sys.excepthook = hook
        raise ValueError
    if what == "atexit":
        import atexit, threading, time
        atexit.register(lambda: print("the end", sys.modules["__main__"].fail.__name__))
        threading.Thread(target=lambda: (time.sleep(0.2), print("a late thread"))).start()
    if what == "fork":
        sys.stdout.flush()
        pid = os.fork()
        if not pid:  # not sys.exit: onnxruntime 1.32 itself never ends in a forked child
            import atexit
            sys.stdout.flush()
            atexit._run_exitfuncs()
            os._exit(3)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    if what == "_exit":
        sys.stdout.flush()
        os._exit(9)
fail()
"""


def start(*args, cwd, stdin=None, **env):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ORT_RKNN_")}
    paths = [str(Path(p).resolve()) for p in sys.path if p]
    environ |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "error", **env}
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environ, input=stdin, capture_output=True, text=True, timeout=100
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "link.py").symlink_to(tmp_path / "app.py")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "__main__.py").write_text(APP)
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", APP)
    (tmp_path / "wrong.py").write_text("def f(:\n")
    import py_compile

    py_compile.compile(str(tmp_path / "app.py"), str(tmp_path / "compiled.pyc"))
    return tmp_path


WHATS = ["", "error", "chained", "interrupt", "number", "text", "hook", "atexit", "fork", "_exit"]
PROGRAMS = [*(("app.py", what) for what in WHATS)]
PROGRAMS += [("linked/link.py", "error"), ("package", "error"), ("app.zip", "error"), ("compiled.pyc", "")]
PROGRAMS += [("-m", "app", "error"), ("-m", "package", "a", "--b=c"), ("-m", "package.nothing"), ("-m", "nothing")]
PROGRAMS += [("wrong.py",), ("nothing.py",), ("app.py", "--", "-m", "--policy", "only", "-h")]


@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_a_program_sees_no_difference(folder, program):
    plain = start(*program, cwd=folder)
    assert start("-m", "ort_rknn", "run", *program, cwd=folder) == plain
    assert plain[1] or plain[0]


def test_an_absolute_path_from_another_folder(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    program = (str(folder / "app.py"), "error")
    plain = start(*program, cwd=tmp_path / "elsewhere")
    assert start("-m", "ort_rknn", "run", *program, cwd=tmp_path / "elsewhere") == plain


@pytest.mark.parametrize("source", [APP, "def f(:\n", ""], ids=["app", "wrong", "nothing"])
def test_a_program_on_standard_input(folder, source):
    program = ("-", "error", "-m", "--policy", "x")
    plain = start(*program, cwd=folder, stdin=source)
    assert start("-m", "ort_rknn", "run", *program, cwd=folder, stdin=source) == plain
    assert bool(plain[0]) == bool(source)


def test_an_interrupt_ends_it_as_one(folder):
    code, _, _ = start("-m", "ort_rknn", "run", "app.py", "interrupt", cwd=folder)
    assert code == -signal.SIGINT


SESSION = f"""
import numpy as np, onnxruntime, sys
session = onnxruntime.InferenceSession({str(MODELS / "conv_f16.onnx")!r}, providers=["CPUExecutionProvider"])
session.run(None, {{"x": np.zeros((1, 3, 32, 32), np.float32)}})
print(session.get_providers()[0], session.get_provider_options().get("RKNNExecutionProvider", {{}}).get("schedule"))
if len(sys.argv) > 1:
    raise SystemExit(int(sys.argv[1]))
"""


@pytest.fixture
def session(tmp_path):
    (tmp_path / "session.py").write_text(SESSION)
    return tmp_path


def test_policy_device_and_options(session):
    run = ("-m", "ort_rknn", "run")
    npu = ("--device", "virtual:rk3588")
    assert start(*run, *npu, "session.py", cwd=session) == (0, "CPUExecutionProvider None\n", "")
    ours = "RKNNExecutionProvider 0,2\n"
    given = (*run, *npu, "--policy=prefer", "--options", "schedule=0,2", "--options=threads_per_core=2")
    assert start(*given, "session.py", cwd=session) == (0, ours, "")
    assert start(*given, "-m", "session", cwd=session) == (0, ours, "")
    by_environment = {"ORT_RKNN_POLICY": "only", "ORT_RKNN_DEVICE": "virtual:rk3588"}
    code, out, err = start(*run, "--options=schedule=0,2", "session.py", cwd=session, **by_environment)
    assert (code, out, err) == (0, ours, "")


CHILDREN = f"""
import multiprocessing, sys
import onnxruntime

def work(_):
    session = onnxruntime.InferenceSession({str(MODELS / "conv_f16.onnx")!r}, providers=["CPUExecutionProvider"])
    return session.get_providers()[0], session.get_provider_options()["RKNNExecutionProvider"]["schedule"]

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(*pool.map(work, [0])[0])
        pool.close()
        pool.join()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_multiprocessing_starts_have_the_swap(tmp_path, method):
    (tmp_path / "children.py").write_text(CHILDREN)
    given = ("--policy=prefer", "--device=virtual:rk3588", "--options=schedule=0,2", "--report")
    got = start("-m", "ort_rknn", "run", *given, "children.py", method, cwd=tmp_path)
    assert got == (0, "RKNNExecutionProvider 0,2\n", "ort_rknn: no session was made\n")


@pytest.mark.parametrize("code", [0, 5])
def test_the_report_at_the_end(session, code):
    given = ("--report", "--device", "virtual:rk3588", "--policy", "prefer", "session.py", str(code))
    got, out, err = start("-m", "ort_rknn", "run", *given, cwd=session)
    assert (got, out) == (code, "RKNNExecutionProvider None\n")
    told = err.splitlines()
    assert told[0] == "ort_rknn: 1 session"
    assert re.match(r"  conv_f16\.onnx: RKNNExecutionProvider on virtual:rk3588, 1 runs in \d", told[1])
    assert told[2] == "    because: compiled model conv_f16.rk3588.rknn"


def test_no_report_of_a_forked_child(folder):
    _, _, err = start("-m", "ort_rknn", "run", "--report", "app.py", "fork", cwd=folder)
    assert err == "ort_rknn: no session was made\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--device", "rk99", "app.py"], "device='rk99': there is no such device"),
        ((), "expected a program"),
        (("--policy", "always", "app.py"), "invalid choice: 'always'"),
        (("--policy",), "expected one argument"),
        (("--options", "schedule", "app.py"), "expected KEY=VALUE"),
        (("--options", "shedule=0", "app.py"), "unknown provider option 'shedule'"),
        (("--nonsense", "app.py"), "unrecognized arguments: --nonsense"),
        (("-m",), "expected one argument"),
    ],
)
def test_used_wrongly(folder, arguments, text):
    code, out, err = start("-m", "ort_rknn", "run", *arguments, cwd=folder)
    assert (code, out) == (2, "")
    assert text in err
    assert "Traceback" not in err


def test_it_is_among_the_commands(folder):
    code, out, err = start("-m", "ort_rknn", "--help", cwd=folder)
    assert (code, err) == (0, "")
    assert "run a Python program with ort_rknn in place of onnxruntime" in " ".join(out.split())
    code, out, err = start("-m", "ort_rknn", "run", "--help", cwd=folder)
    assert (code, err) == (0, "")
    assert "--policy" in out
