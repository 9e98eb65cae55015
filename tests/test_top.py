"""``top``: what processes publish about their load; published files are treated as untrusted input."""

import contextlib
import io
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.command_json import validate

import ort_rknn
from ort_rknn._cli.main import main
from ort_rknn._executor import published
from ort_rknn._executor.counters import CoreStats, ModelStats
from ort_rknn._measure import top as top_module
from ort_rknn._measure.top import top

MODELS = Path(__file__).parent / "models"
FEED = {"x": np.zeros((1, 3, 32, 32), np.float32)}


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """The user's runtime directory."""
    place = tmp_path / "run"
    place.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    monkeypatch.setattr(top_module, "_of_all_users", lambda root: iter(()))  # root sees this machine's other tests
    return place / "ort_rknn"


@pytest.fixture
def stats():
    """The statistics that a publisher of this test reads."""
    return [(1, "virtual:rk3588", ModelStats("net.rknn", {"core 0": CoreStats(contexts=1)}))]


@pytest.fixture
def publish(runtime, stats):
    """Writes this process's file with the given changes, and returns its path."""

    def write(**changes):
        one = published.Publisher(lambda: stats)
        data = one._snapshot(stats)
        model = {key[6:]: changes.pop(key) for key in list(changes) if key.startswith("model_")}
        data["models"][0].update(model)
        one._write({**data, **changes})
        return one._path

    yield write


def until(seen, seconds=10.0):
    end = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found


PROGRAM = """
import sys, numpy as np, ort_rknn
from ort_rknn_virtual.control import virtual_npu
virtual_npu("rk3588").run_time_us = 20_000
session = ort_rknn.InferenceSession(sys.argv[1], provider_options=[{"device": "virtual:rk3588", "schedule": "1"}])
feed = {"x": np.zeros((1, 3, 32, 32), np.float32)}
print("ready", flush=True)
import select
while not select.select([sys.stdin], [], [], 0)[0]:
    session.run(None, feed)
word = sys.stdin.readline().strip()
if word == "close":
    session.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def busy(runtime):
    """A process that keeps core 1 busy."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ORT_RKNN_")}
    environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, MODELS / "conv_f16.onnx"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    with process:
        yield process
        process.kill()


def of(process):
    return next((each for each in top().processes if each.pid == process.pid), None)


def test_the_load_of_another_process(busy, runtime):
    def loaded():
        found = of(busy)
        return found if found is not None and found.models and found.models[0].runs_per_second > 1 else None

    (model,) = until(loaded).models
    assert (model.model, model.device, model.errors) == ("conv_f16.rk3588.rknn", "virtual:rk3588", 0)
    assert list(model.cores) == ["core 1"] and 0.2 < model.cores["core 1"] <= 1.0
    assert 5 < model.runs_per_second < 55
    assert top().cores["virtual:rk3588 core 1"] > 0.2
    path = runtime / f"{busy.pid}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700


def test_the_file_goes_with_the_process(busy, runtime):
    path = runtime / f"{busy.pid}.json"
    until(path.exists)
    busy.communicate("end\n", timeout=20)
    assert busy.returncode == 0
    assert list(runtime.iterdir()) == []


def test_the_file_goes_with_the_last_session(busy, runtime):
    path = runtime / f"{busy.pid}.json"
    until(path.exists)
    busy.stdin.write("close\n")
    busy.stdin.flush()
    assert busy.stdout.readline() == "closed\n"
    until(lambda: not path.exists())


def test_the_file_of_a_killed_process_is_ignored_and_removed(busy, runtime):
    path = runtime / f"{busy.pid}.json"
    until(path.exists)
    busy.kill()
    busy.wait()
    assert of(busy) is None
    assert not path.exists()


def test_nothing_is_published_where_that_is_switched_off_and_no_thread_runs(python, runtime):
    code = """
import threading, numpy as np, ort_rknn
session = ort_rknn.InferenceSession({!r}, provider_options=[{{"device": "virtual:rk3588"}}])
session.run(None, {{"x": np.zeros((1, 3, 32, 32), np.float32)}})
print([t.name for t in threading.enumerate() if "top" in t.name])
""".format(str(MODELS / "conv_f16.onnx"))
    assert python(code, env={"ORT_RKNN_NO_TOP": "1", "XDG_RUNTIME_DIR": str(runtime.parent)}) == "[]\n"
    assert not runtime.exists()
    assert python(code, env={"XDG_RUNTIME_DIR": str(runtime.parent)}) == "['ort_rknn top']\n"


def test_an_import_and_a_session_on_the_cpu_start_nothing(python, runtime):
    code = """
import sys, threading, ort_rknn
assert "ort_rknn._executor.published" not in sys.modules
ort_rknn.InferenceSession({!r}, providers=["CPUExecutionProvider"])
print(threading.active_count())
""".format(str(MODELS / "conv_f16.onnx"))
    assert python(code, env={"XDG_RUNTIME_DIR": str(runtime.parent)}) == "1\n"


def test_a_misspelled_switch_is_an_error_and_leaves_nothing_open(monkeypatch):
    from ort_rknn_virtual.control import virtual_npu

    monkeypatch.setenv("ORT_RKNN_NO_TOP", "yess")
    before = virtual_npu("rk3588").counters().contexts
    with pytest.raises(ValueError, match="ORT_RKNN_NO_TOP='yess'"):
        ort_rknn.InferenceSession(MODELS / "conv_f16.onnx", provider_options=[{"device": "virtual:rk3588"}])
    assert virtual_npu("rk3588").counters().contexts == before


def test_a_forked_child_publishes_for_itself_only(python, runtime):
    """It starts with its first run, not at the fork. The parent's file stays."""
    code = """
import os, time, threading, numpy as np, ort_rknn
from pathlib import Path
place = Path(os.environ["XDG_RUNTIME_DIR"], "ort_rknn")
session = ort_rknn.InferenceSession({!r}, provider_options=[{{"device": "virtual:rk3588"}}])
feed = {{"x": np.zeros((1, 3, 32, 32), np.float32)}}
session.run(None, feed)
def wait(pid):
    end = time.monotonic() + 10
    while not (place / f"{{pid}}.json").exists():
        assert time.monotonic() < end, pid
        time.sleep(0.02)
parent = os.getpid()
wait(parent)
import warnings
warnings.simplefilter("ignore")
child = os.fork()
if not child:
    try:
        time.sleep(0.3)
        assert not (place / f"{{os.getpid()}}.json").exists()
        session.run(None, feed)
        wait(os.getpid())
        code = 0
    except BaseException as error:
        print(repr(error), flush=True)
        code = 1
    from ort_rknn._executor import published
    published._at_exit()
    os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (place / f"{{parent}}.json").exists() and not (place / f"{{child}}.json").exists()
""".format(str(MODELS / "conv_f16.onnx"))
    python(code, env={"XDG_RUNTIME_DIR": str(runtime.parent)})


def test_a_session_that_comes_while_the_last_publisher_ends_is_published(runtime, stats):
    """A session that finds a running publisher is published by it."""
    there = []
    for _ in range(30):
        published.begin(lambda: list(there))
        there.append(stats[0])
        published.begin(lambda: list(there))
        thread = published._publisher.thread if published._publisher else None
        assert thread is not None
        until(lambda: (runtime / f"{os.getpid()}.json").exists())
        there.clear()
        published._publisher and published._publisher.stop()
        thread.join(5)
        assert published._publisher is None


def test_a_session_that_ends_at_once_writes_no_file(runtime, stats, monkeypatch):
    monkeypatch.setattr(published, "_FIRST", 60.0)  # "at once", however busy the machine is
    written = []
    monkeypatch.setattr(published.Publisher, "_write", lambda self, data: written.append(data))
    there = list(stats)
    published.begin(lambda: list(there))
    thread = published._publisher.thread
    there.clear()
    published.last_closed()
    thread.join(30)
    assert not thread.is_alive() and not written and published._publisher is None


def test_runs_do_not_wait_for_the_publisher(runtime, stats):
    """A full disk, or a folder that is not private, only costs a line in `top`."""
    runtime.mkdir(mode=0o700)
    runtime.chmod(0o777)
    one = published.Publisher(lambda: stats)
    one.thread.start()
    one.thread.join(5)
    assert not one.thread.is_alive()
    assert list(runtime.iterdir()) == []


# What is read -----------------------------------------------------------------------------------------------------


def test_a_file_in_its_written_form_is_read(publish):
    publish()
    (process,) = top().processes
    assert (process.pid, process.user) == (os.getpid(), os.geteuid())
    assert process.models[0].model == "net.rknn"


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"pid": 1},
        {"pid": True},
        {"start": 0},
        {"start": None},
        {"at": -1e9},
        {"at": 1e300},
        {"at": "now"},
        {"models": {}},
        {"models": [7]},
        {"models": [{}] * 65},
        {"model_session": -1},
        {"model_model": 5},
        {"model_model": None},
        {"model_runs": float("inf")},
        {"model_runs": float("nan")},
        {"model_runs": 10**40},
        {"model_errors": True},
        {"model_cores": []},
        {"model_cores": {"core 0": 0.5}},
        {"model_cores": {"core 0": {"load": "1"}}},
        {"model_cores": {str(k): {"load": 0, "contexts": 1} for k in range(33)}},
    ],
    ids=str,
)
def test_what_is_not_as_expected_is_passed_over(publish, changes):
    publish(**changes)
    assert top().processes == ()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", b"[]", b'{"version": 1, "pid": "\\ud800"}', b" " * (1 << 20)],
    ids=lambda content: repr(content[:12]),
)
def test_damaged_files_are_passed_over(publish, content):
    publish().write_bytes(content)
    assert top().processes == ()


def test_links_pipes_and_other_names_are_passed_over(publish, runtime, tmp_path):
    path = publish()
    (tmp_path / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert top().processes == ()
    path.unlink()
    os.mkfifo(path)
    assert top().processes == ()
    path.unlink()
    for name in ("0.json", "-1.json", "1.json.new", "99999999999999.json", "x.json"):
        (runtime / name).write_bytes((tmp_path / "elsewhere").read_bytes())
    assert top().processes == ()


def test_a_folder_that_others_can_write_is_not_read(publish, runtime):
    publish()
    runtime.chmod(0o777)
    assert top().processes == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_a_file_of_somebody_else_is_not_read(publish):
    os.chown(publish(), 65534, -1)
    assert top().processes == ()


def test_the_folders_of_all_users(tmp_path):
    """For root. A folder that does not belong to the user in its name is skipped."""
    uid = os.geteuid()
    names = (f"run/user/{uid}/ort_rknn", f"tmp/ort_rknn-{uid}", f"tmp/ort_rknn-{uid + 1}", "tmp/ort_rknn-x")
    for name in names:
        (tmp_path / name).mkdir(parents=True, mode=0o700)
    (tmp_path / "run/user/7").mkdir()
    (tmp_path / "run/user/7/ort_rknn").symlink_to(tmp_path / names[0])
    assert list(top_module._of_all_users(tmp_path)) == [(tmp_path / names[0], uid), (tmp_path / names[1], uid)]


def test_names_do_not_steer_a_terminal(publish, capsys, monkeypatch):
    evil = "net\x1b[2J\x07\n\x9b31m[bold]x[/bold].rknn"
    publish(model_model=evil, model_device=evil, model_cores={evil: {"load": 0.5, "contexts": 1, "in_use": 0}})
    assert main(["top", "--once"]) == 0
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b"} & set(out)
    assert "net\\x1b[2J" in out and "[bold]x[/bold]" in out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["top", "--once"]) == 0
    colored = capsys.readouterr().out
    assert "\x1b[2J" not in colored and "\x07" not in colored and "\x9b" not in colored
    assert "[bold]x[/bold]" in colored
    assert main(["top", "--json"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert validate("top", out)["processes"][0]["models"][0]["model"] == evil


def test_random_files(publish):
    """Any change of one byte is handled."""
    import random

    chance = random.Random(5)
    path = publish()
    content = path.read_bytes()
    for _ in range(500):
        broken = bytearray(content)
        broken[chance.randrange(len(broken))] = chance.randrange(256)
        path.write_bytes(bytes(broken))
        json.dumps(top().as_json())


# The board's own numbers, and the display ---------------------------------------------------------------------------


def board(root, load=None):
    def write(name, text):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("sys/class/drm/renderD129/device/uevent", "DRIVER=RKNPU\n")
    write("dev/dri/renderD129", "")
    clock = "sys/class/devfreq/fdab0000.npu/"
    for name, value in (("governor", "rknpu_ondemand"), ("cur_freq", "300000000"), ("max_freq", "1000000000")):
        write(clock + name, value + "\n")
    write("sys/class/thermal/thermal_zone6/type", "npu-thermal\n")
    write("sys/class/thermal/thermal_zone6/temp", "48076\n")
    if load is not None:
        write("sys/kernel/debug/rknpu/load", load)
    (root / "proc/777/fd").mkdir(parents=True)
    (root / "proc/777/fd/5").symlink_to(root / "dev/dri/renderD129")
    write("proc/777/comm", "other\n")
    return root


def test_the_boards_own_numbers(tmp_path, runtime):
    found = top(root=board(tmp_path / "board", "NPU load:  Core0:  9%, Core1: 429496%, Core2:  0%,\n"))
    assert found.driver == (9, 100, 0)
    assert found.clock.now == 300_000_000
    assert found.temperature == ("npu-thermal", 48.076)
    assert [(user.pid, user.name) for user in found.others] == [(777, "other")]
    assert found.hint == ""


def test_the_command_that_makes_the_drivers_load_readable_is_shown(tmp_path, runtime, monkeypatch, capsys):
    found = top(root=board(tmp_path / "board"))
    assert (found.driver, found.hint) == (None, top_module.READ_LOAD)
    monkeypatch.setattr(top_module, "top", lambda: found)
    assert main(["top", "--once"]) == 0
    out = capsys.readouterr().out
    assert "NPU: 300 of 1000 MHz (rknpu_ondemand); 48 C" in out
    assert "sudo mount -o remount,mode=755 /sys/kernel/debug" in out
    assert "777  other    another library" in out


def test_force_color_makes_no_terminal_of_a_pipe(publish, monkeypatch, capsys):
    def sleep(seconds):
        raise AssertionError("it would never end")

    monkeypatch.setattr("ort_rknn._cli.top.time", type("Clock", (), {"sleep": staticmethod(sleep)}))
    monkeypatch.setenv("FORCE_COLOR", "1")
    publish()
    assert main(["top"]) == 0
    assert "net.rknn" in capsys.readouterr().out


def test_live_until_ctrl_c(publish, monkeypatch):
    pytest.importorskip("rich")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    looks = []
    monkeypatch.setenv("TERM", "xterm-256color")

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("ort_rknn._cli.top.time", type("Clock", (), {"sleep": staticmethod(sleep)}))
    publish()
    stream = Terminal()
    with contextlib.redirect_stdout(stream):
        assert main(["top", "--interval", "0.5"]) == 0
    assert looks == [0.5] * 3
    assert stream.getvalue().count("net.rknn") >= 2


def test_without_users(runtime, capsys):
    assert main(["top", "--once"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "No process of this user runs a model on an NPU through ort_rknn."
    )


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "1e9", "x"])
def test_bad_intervals_are_wrong_use(interval, capsys):
    assert main(["top", "--interval", interval]) == 2


def test_loads_add_up_by_core(runtime, stats):
    stats[:] = [
        (1, "rk3588", ModelStats("a", {"core 0": CoreStats(contexts=2, run_seconds=0.0)})),
        (2, "rk3588", ModelStats("b", {"cores 0,1 together": CoreStats(contexts=1, run_seconds=0.0)})),
        (3, "rk3588", ModelStats("c", {"one core of the runtime's choice": CoreStats(contexts=1)})),
    ]
    one = published.Publisher(lambda: stats)
    one._snapshot(stats)
    one._at -= 1.0
    stats[0][2].cores["core 0"] = CoreStats(contexts=2, run_seconds=1.9, runs=10)
    stats[1][2].cores["cores 0,1 together"] = CoreStats(contexts=1, run_seconds=0.25)
    one._write(one._snapshot(stats))
    found = top()
    assert found.cores["rk3588 core 0"] == 1.0
    assert found.cores["rk3588 core 1"] == pytest.approx(0.25, abs=0.02)
    assert found.cores["rk3588 core any"] == 0.0
    assert threading.current_thread().is_alive()
