"""The command line: what it prints, its exit codes, and that mistakes are reported in one line."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from support.fake_npu import FakeNpu, install

import ort_rknn
from ort_rknn._cli.main import main
from ort_rknn._cli.output import printable
from ort_rknn.files import Origin, read_rknn
from ort_rknn_virtual import _build

VIRTUAL = "virtual:rk3588"
MODELS = Path(__file__).parent / "models"


@pytest.fixture
def cli(capsys):
    """Runs the command line in this process; returns exit code, stdout and stderr."""

    def run(*argv):
        code = main([os.fspath(word) for word in argv])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def mistake(cli):
    """Runs a command that must fail; returns its one line on stderr."""

    def run(*argv, code=1):
        got, out, err = cli(*argv)
        assert (got, out) == (code, ""), (got, out, err)
        assert err.startswith("ort-rknn: ")
        assert err.count("\n") == 1, err
        return err

    return run


# The frame ----------------------------------------------------------------------------------------------------


def test_version_names_ours_and_onnxruntimes(cli):
    code, out, _ = cli("--version")
    assert code == 0
    assert f"ort-rknn {ort_rknn.package_version} " in out
    assert f"onnxruntime {ort_rknn.__version__}" in out


@pytest.mark.parametrize("argv", [(), ("paint",), ("info",), ("demo", "--part", "third"), ("explain", "m", "--nope")])
def test_wrong_use_is_exit_code_2_with_the_usage(cli, argv):
    code, out, err = cli(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("usage: ort-rknn")


@pytest.mark.parametrize("argv", [("--help",), ("demo", "-h"), ("devices", "-h"), ("explain", "-h"), ("info", "-h")])
def test_help_lists_the_exit_codes(cli, argv):
    code, out, _ = cli(*argv)
    assert code == 0
    assert "0 success, 1 failure" in " ".join(out.split())


@pytest.mark.parametrize("command", ["convert", "check"])
def test_without_the_package_onnx(mistake, models, monkeypatch, tmp_path, command):
    """It belongs to an extra."""
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    for name in [name for name in sys.modules if name.startswith(("onnx.", "ort_rknn._compile", "ort_rknn._checking"))]:
        package, _, module = name.rpartition(".")
        if hasattr(sys.modules.get(package), module):  # afterwards it is the same module again, there too
            monkeypatch.setattr(sys.modules[package], module, sys.modules[name])
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'ort-rknn[convert]'" in mistake(command, models / "conv_f16.onnx", code=2)


def test_python_dash_m_runs_it(models):
    paths = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "ort_rknn", "info", models / "nd.onnx"],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "an ONNX model" in done.stdout


def test_a_reader_that_stops_early_is_no_traceback(models):
    paths = os.pathsep.join(p for p in sys.path if p)
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ort_rknn", "info", models / "nd.onnx"],
            env={**os.environ, "PYTHONPATH": paths},
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("argv", [["devices"], ["info", "--json", MODELS / "nd.onnx"]])
def test_a_full_disk_and_a_closed_stdout_are_no_traceback(argv):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "ort_rknn", *argv]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "ort-rknn: the output cannot be written: No space left on device\n"
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *map(str, command)]
    done = subprocess.run(shell, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (0, 1) and done.stderr == ""


def test_what_would_steer_a_terminal_is_escaped():
    class Ascii:
        encoding = "ascii"

    assert printable("a\x1b[31mb\x07 é", sys.__stdout__).startswith("a\\x1b[31mb\\x07")
    assert printable("é\udcff", Ascii()) == "\\xe9\\udcff"


def test_commands_of_plugins(cli, tmp_path, monkeypatch, capsys):
    """Another distribution's command works; one that does not load, or whose name is taken, is skipped with a
    message."""
    (tmp_path / "good_plugin.py").write_text(
        "from ort_rknn.adapter import Command, hookimpl\n"
        "@hookimpl\n"
        "def ort_rknn_commands():\n"
        "    return [Command('paint', 'p', 'd', lambda parser: None, lambda given: print('painted') or 0),\n"
        "            Command('info', 'mine', 'd', lambda parser: None, lambda given: 5)]\n"
    )
    (tmp_path / "bad_plugin.py").write_text("import nowhere_to_be_found\n")
    info = tmp_path / "strangers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ort_rknn_commands]\ngood = good_plugin\nbad = bad_plugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, out, err = cli("paint")
    assert (code, out) == (0, "painted\n")
    assert "plugin bad_plugin does not load and is ignored: ModuleNotFoundError" in err
    assert "plugin good_plugin provides another command 'info', which is ignored" in err
    monkeypatch.setenv("ORT_RKNN_NO_PLUGINS", "1")
    assert cli("paint")[0] == 2
    assert cli("demo", "--help")[0] == 0


# devices ------------------------------------------------------------------------------------------------------


def test_devices_says_why_there_is_none_and_what_helps(cli, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_RUNTIME_LIBRARY", "/nowhere/librknnrt.so")
    code, out, err = cli("devices")
    assert (code, err) == (1, "")
    assert "librknnrt: none: " in out
    assert "/nowhere/librknnrt.so" in out
    assert "remedy: " in out
    assert "--device virtual:rk3588" in out


@pytest.mark.parametrize("compiled", [False, True], ids=["to be compiled", "compiled"])
def test_devices_lists_a_requested_virtual_one(cli, monkeypatch, tmp_path, compiled):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if compiled:
        _build.library("rk3576")
    code, out, _ = cli("devices", "--device", "virtual:rk3576")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("virtual:rk3576  "))
    assert re.match(r"virtual:rk3576  virtual NPU +2  virtual$", line)
    assert (f"\nvirtual:rk3576: runtime: {tmp_path}/" in out) == compiled
    assert ("\nvirtual:rk3576: library: compiled at the first load" in out) == (not compiled)


def test_devices_shows_no_virtual_one_that_cannot_be_built(cli, monkeypatch, tmp_path):
    """A compiler exists, but it fails: sessions would find no NPU, so neither does this."""
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'stdio.h: No such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out, _ = cli("devices", "--device", "virtual:rk3562")
    assert code == 1
    assert "virtual: none: there is no virtual NPU here: the C compiler" in out and "stdio.h: No such file" in out
    assert "virtual NPU  " not in out and "\ndevice " not in out


def test_devices_shows_no_virtual_one_that_cannot_be_opened(cli, tmp_path):
    (tmp_path / "lib.so").write_bytes(b"\x7fELF no more")
    code, out, _ = cli("devices", "--device", "virtual:rk3562", "--runtime-library", tmp_path / "lib.so")
    assert code == 1
    assert "cannot be opened" in out


def test_devices_lists_what_an_adapter_sees(cli, monkeypatch):
    install(FakeNpu(), monkeypatch.setattr)
    code, out, _ = cli("devices")
    assert code == 0
    assert re.search(r"NPU +3  fake$", out, re.MULTILINE)


def test_a_terminal_gets_a_table_and_paths_and_commands_in_one_piece(cli, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "50")
    _, out, _ = cli("devices", "--device", "virtual:rk3588")
    assert "\x1b[32mvirtual:rk3588\x1b[0m" in out
    assert re.search(r"^virtual:rk3588: runtime: /\S+\.so$", out, re.MULTILINE)
    monkeypatch.setenv("ORT_RKNN_RUNTIME_LIBRARY", "/nowhere/" + "long/" * 20 + "librknnrt.so")
    code, out, _ = cli("doctor")
    assert code == 1
    assert "\x1b[1;31mfailure\x1b[0m" in out and "─" in out
    assert any(line.startswith("  $ ") for line in out.splitlines())


def test_doctor_lists_the_findings_then_what_to_do(cli, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_RUNTIME_LIBRARY", "/nowhere/librknnrt.so")
    code, out, _ = cli("doctor")
    table, _, rest = out.partition("\n\n")
    head, *rows = table.splitlines()
    assert code == 1 and head.split() == ["state", "check", "seen"]
    bad = [re.split("  +", row)[1] for row in rows if not row.startswith("ok ")]
    assert bad and all(row.split()[0] in ("ok", "warning", "failure") for row in rows)
    first = next(re.split("  +", row)[1] for row in rows if row.startswith("failure "))
    assert set(re.findall(r"^(\S[^:]*):$", rest, re.MULTILINE)) <= set(bad)
    assert rest.splitlines()[-1].endswith(f"Begin with: {first}.")


def test_devices_of_an_unknown_name(mistake):
    assert "'virtual:z80': there is no such device" in mistake("devices", "--device", "virtual:z80", code=2)


def test_bad_libraries_are_wrong_use(mistake, models):
    for argv in (("devices",), ("explain", models / "conv_f16.onnx")):
        said = mistake(*argv, "--runtime-library", "/nowhere/librknnrt.so", code=2)
        assert "runtime_library='/nowhere/librknnrt.so': there is no such file" in said


def test_devices_with_an_adapter_that_is_not_installed(mistake):
    assert "'librknnrt'" in mistake("devices", "--adapter", "mine", code=2)


def test_devices_says_when_everything_is_switched_off(mistake, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DISABLE", "1")
    assert "ORT_RKNN_DISABLE=1" in mistake("devices")


# explain ------------------------------------------------------------------------------------------------------


def test_explain_on_the_virtual_npu(cli, models):
    code, out, err = cli("explain", models / "conv_f16.onnx", "--device", VIRTUAL, "--schedule", "2,0")
    assert (code, err) == (0, "")
    assert "conv_f16.rk3588.rknn" in out
    assert "dispatch:  runs go round the cores 2, 0" in out


@pytest.mark.parametrize("command", ["explain", "doctor"])
def test_the_folder_that_ultralytics_exports_to(cli, models, tmp_path, monkeypatch, command):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    folder = tmp_path / "m_rknn_model"
    folder.mkdir()
    shutil.copy(models / "conv_f16.rk3588.rknn", folder / "m-rk3588.rknn")
    assert "m-rk3588.rknn" in cli(command, folder)[1]


def test_explain_passes_other_options(cli, models):
    code, out, _ = cli(
        "explain", models / "conv_f16.onnx", "--device", VIRTUAL, "--option", "layout=nhwc", "--threads-per-core", "2"
    )
    assert code == 0
    assert "x float32 [1, 32, 32, 3]" in out
    assert "2 contexts" in out


def test_explain_reports_a_fallback_without_a_warning(cli, models, recwarn, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_RUNTIME_LIBRARY", "/nowhere/librknnrt.so")
    code, out, err = cli("explain", models / "conv_f16.onnx")
    assert (code, err, len(recwarn)) == (1, "", 0)
    assert "fell back: no NPU: " in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--schedule", "0,x"), "'x' is not a core number"),
        (("--schedule", "7", "--device", VIRTUAL), "names core 7"),
        (("--schedule", "0", "--tp-mode", "auto"), "exclude each other"),
        (("--option", "shedule=0"), "unknown provider option 'shedule'"),
        (("--option", "schedule"), "KEY=VALUE"),
    ],
)
def test_explain_with_a_bad_option_is_wrong_use(mistake, models, argv, said):
    assert said in mistake("explain", models / "conv_f16.onnx", *argv, code=2)


def test_explain_of_what_is_no_model(mistake, tmp_path):
    text = tmp_path / "poem.onnx"
    text.write_text("Two roads diverged in a yellow wood,\n" * 9)
    assert mistake("explain", text).count("poem.onnx: ") <= 1
    assert "poem.onnx" in mistake("explain", text)
    text = text.rename(tmp_path / "poem.rknn")
    assert mistake("explain", text).removesuffix("\n") == f"ort-rknn: {text}: not an .rknn model; it looks like text"
    assert "No such file" in mistake("explain", tmp_path / "none.onnx")
    assert "folder" in mistake("explain", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for command in ("explain", "info"):
        assert "pipe: expected a model file, this is not a regular file" in mistake(command, tmp_path / "pipe")


@pytest.mark.parametrize("command", ["explain", "info", "doctor", "bench", "trace", "check", "convert"])
def test_a_name_that_is_not_utf8(mistake, models, tmp_path, command):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.onnx")
    shutil.copy(models / "conv_f16.onnx", path)
    options = ["--target", "rk3588"] if command == "convert" else []
    assert "the name is not UTF-8" in mistake(command, path, *options)


def test_an_onnx_that_onnxruntime_refuses(mistake, tmp_path):
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], "g", sides[:1], sides[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    for command in ("explain", "check"):
        said = mistake(command, tmp_path / "m.onnx", "--device", "virtual:rk3588")
        assert "NoSuchOperator" in said and said.count("m.onnx: ") == 1


def test_explain_where_the_npu_is_insisted_on(mistake, models, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_STRICT", "1")
    monkeypatch.setenv("ORT_RKNN_RUNTIME_LIBRARY", "/nowhere/librknnrt.so")
    said = mistake("explain", models / "conv_f16.onnx")
    assert "ORT_RKNN_STRICT=1" in said


# info ---------------------------------------------------------------------------------------------------------


def test_info_of_a_compiled_model(cli, models):
    code, out, _ = cli("info", models / "conv_i8.rk3588.rknn")
    assert code == 0
    assert "compiled for:  rk3588\n" in out
    assert "input:         x float32 [1, 3, 32, 32], compiled int8 NHWC scale 0.03125 zero point -6\n" in out
    assert "output:        y float32 [1, 20, 8, 8], compiled int8 scale" in out


def test_info_of_a_dynamic_compiled_model_lists_its_shape_sets(cli, models):
    code, out, _ = cli("info", models / "dynamic.rk3588.rknn")
    assert code == 0
    assert out.count("shape set: ") == 3


def test_info_of_an_onnx_and_its_twins(cli, models):
    code, out, _ = cli("info", models / "conv_f16.onnx")
    assert code == 0
    assert "opsets:        ai.onnx 13\n" in out
    assert "input:         x float32 [1, 3, 32, 32]\n" in out
    assert "conv_f16.rk3588.rknn, for rk3588\n" in out
    assert "conv_f16.rk3566.rknn, for rk3566\n" in out


def test_info_says_why_a_twin_cannot_be_used(cli, models, tmp_path):
    onnx = shutil.copy(models / "conv_f16.onnx", tmp_path / "net.onnx")
    _, out, _ = cli("info", onnx)
    assert "no compiled model lies beside it" in out
    shutil.copy(models / "conv_f16.rk3576.rknn", tmp_path / "net.rk3588.rknn")
    _, out, _ = cli("info", onnx)
    assert "net.rk3588.rknn is not usable: it was compiled for rk3576" in out


def test_info_goes_by_content_not_by_name(cli, models, tmp_path):
    wrong = shutil.copy(models / "conv_f16.rk3588.rknn", tmp_path / "net.onnx")
    code, out, _ = cli("info", wrong)
    assert code == 0
    assert "a compiled model (.rknn)" in out


def test_info_of_damaged_and_missing_files(mistake, models, tmp_path):
    cut = tmp_path / "cut.rknn"
    cut.write_bytes((models / "conv_f16.rk3588.rknn").read_bytes()[:1000])
    assert "cut short" in mistake("info", cut)
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    mistake("info", empty)
    mistake("info", tmp_path)
    mistake("info", tmp_path / "none")


def test_info_bounds_what_a_file_makes_long(cli, tmp_path):
    from ort_rknn_demo._onnx import model, node, value

    names = [f"x{k}\x1b[2J" + "y" * 5000 for k in range(100)]
    path = tmp_path / "long.onnx"
    path.write_bytes(
        model("g", [node("Sum", names, "out")], inputs=[value(n, (1,)) for n in names], outputs=[value("out", (1,))])
    )
    code, out, _ = cli("info", path)
    assert code == 0
    assert "\x1b" not in out
    assert len(out) < 20_000
    assert "and 60 more" in out


# stamp --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stampable(tmp_path, models):
    """An ONNX, two models compiled from it, and one compiled from another."""
    names = ("conv_f16.onnx", "conv_f16.rk3588.rknn", "conv_f16.rk3566.rknn", "nd.rk3588.rknn")
    return [shutil.copyfile(models / name, tmp_path / name) for name in names]


def test_stamp_writes_the_record_into_each_file(cli, stampable):
    onnx, first, second, _ = stampable
    code, out, err = cli("stamp", onnx, first, second)
    assert (code, err) == (0, "")
    assert [line.split(": ")[0] for line in out.splitlines()] == [str(first), str(second)]
    assert "made from conv_f16.onnx" in out and "independent" not in out
    for path in (first, second):
        assert Origin.parse(read_rknn(path).custom_string).onnx_name == "conv_f16.onnx"
    code, out, _ = cli("stamp", onnx, first, "--independent")
    assert code == 0 and out.endswith("its samples are independent\n")
    assert Origin.parse(read_rknn(first).custom_string).independent is True


def test_stamp_refuses_what_does_not_fit(mistake, stampable):
    onnx, first, _, other = stampable
    content = other.read_bytes()
    assert "compiled from another model" in mistake("stamp", onnx, other)
    assert "looks like" in mistake("stamp", onnx, onnx)
    assert "looks like" in mistake("stamp", first, first)
    assert "No such file" in mistake("stamp", onnx, "nothing.rknn")
    assert other.read_bytes() == content
