"""What all commands have in common: JSON as declared, exit codes, a page each, and completion."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fastjsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.command_json import closed, validate

from ort_rknn._cli.main import main
from ort_rknn._cli.registry import commands
from ort_rknn.adapter.json_output import array, boolean, enum, integer, nullable, number, record, table, text

ROOT = Path(__file__).resolve().parent.parent
VIRTUAL = "virtual:rk3588"


@pytest.fixture(autouse=True)
def ours_only(monkeypatch):
    monkeypatch.setenv("ORT_RKNN_NO_PLUGINS", "1")


@pytest.fixture
def files(tmp_path, models):
    """A folder with an ONNX, its twins, and a broken file."""
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn", "conv_f16.rk3566.rknn", "conv_i8.rk3588.rknn", "nd.onnx"):
        shutil.copyfile(models / name, tmp_path / name)
    shutil.copyfile(models / "dynamic.rk3588.rknn", tmp_path / "dynamic.rk3588.rknn")
    (tmp_path / "poem.onnx").write_text("Two roads diverged in a yellow wood,\n" * 9)
    custom = helper.make_node("Mystery", ["x"], ["y"], domain="strange\x1b[2J")
    shape = ["n", None, 3]
    graph = helper.make_graph(
        [custom],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), tmp_path / "free.onnx")
    return tmp_path


#: The arguments of each command, and its exit code.
JSON_RUNS = [
    (0, "devices", "--device", VIRTUAL),
    (1, "devices", "--adapter", "lite2"),
    (0, "explain", "conv_f16.onnx", "--device", VIRTUAL),
    (1, "explain", "conv_f16.onnx", "--adapter", "lite2"),
    (0, "info", "conv_f16.onnx"),
    (0, "info", "conv_i8.rk3588.rknn"),
    (0, "info", "dynamic.rk3588.rknn"),
    (0, "info", "free.onnx"),
    (0, "stamp", "conv_f16.onnx", "conv_f16.rk3588.rknn", "conv_f16.rk3566.rknn"),
    (0, "stamp", "conv_f16.onnx", "conv_f16.rk3588.rknn", "--independent"),
    (0, "bench", "conv_f16.onnx", "--device", VIRTUAL, "--seconds", "0.5"),
    (None, "toolkit", "status"),
    (None, "doctor", "--device", VIRTUAL),
    (None, "doctor", "conv_f16.onnx"),
    (0, "top"),
    (0, "selftest", "--quick", "--device", VIRTUAL),
    (1, "selftest", "--adapter", "lite2"),
    (0, "check", "conv_f16.onnx", "--device", VIRTUAL),
    (0, "check", "conv_f16.onnx", "--save", "run.npz"),
    (0, "demo", "--part", "npu"),
    (0, "ray-resources"),
    (0, "run", "app.py"),
    (0, "trace", "--device", VIRTUAL, "conv_f16.onnx"),
    # `convert` needs a toolkit: tests/compile/test_convert.py
]


@pytest.mark.parametrize(("code", "name", "words"), [(c, n, w) for c, n, *w in JSON_RUNS])
def test_json_is_as_declared(code, name, words, files, monkeypatch, capfd):
    monkeypatch.chdir(files)
    if name == "run":
        app = "import onnxruntime as ort, numpy as np\ns = ort.InferenceSession('conv_f16.onnx')\n"
        (files / "app.py").write_text(app + "s.run(None, {'x': np.zeros((1, 3, 32, 32), 'f')})\n")
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "ORT_RKNN_DEVICE": VIRTUAL}
        done = subprocess.run(
            [sys.executable, "-m", "ort_rknn", "run", "--policy", "prefer", "--json", *words],
            env=environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        found = validate(name, done.stderr.splitlines()[-1])
        assert found["sessions"][0]["runs"] == 1
        return
    if name == "ray-resources":
        monkeypatch.setenv("ORT_RKNN_DEVICE", VIRTUAL)
    got = main([name, *words, "--json"])
    out, _ = capfd.readouterr()
    assert code in (None, got)
    assert got in (0, 1)
    validate(name, out)


def test_every_command_has_json_that_is_tried():
    tried = {name for _, name, *_ in JSON_RUNS} | {"convert"}
    assert {name for name, command in commands().items() if command.json_output is not None} == tried
    assert tried == set(commands())


def test_free_axes_and_strange_names_in_json(files, capsys):
    assert main(["info", os.fspath(files / "free.onnx"), "--json"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    (x,) = validate("info", out)["onnx"]["inputs"]
    assert x == {"name": "x", "type": "float32", "dims": ["n", None, 3]}


def test_fell_back_is_a_finding(files, capsys):
    """Also without JSON."""
    assert main(["explain", os.fspath(files / "conv_f16.onnx"), "--adapter", "lite2"]) == 1
    assert "fell back: " in capsys.readouterr().out


# Exit codes ---------------------------------------------------------------------------------------------------

#: Every command that takes a file, with an unusable one.
FINDINGS = [
    ("bench", "poem.onnx", "--seconds", "1"),
    ("check", "poem.onnx"),
    ("explain", "poem.onnx"),
    ("info", "poem.onnx"),
    ("stamp", "conv_f16.onnx", "poem.onnx"),
    ("doctor", "none.onnx"),
    ("trace", "poem.onnx"),
    ("convert", "none.onnx", "--target", "rk3588"),
]


@pytest.mark.parametrize("json_too", [(), ("--json",)])
@pytest.mark.parametrize("words", FINDINGS, ids=lambda words: words[0])
def test_an_unusable_file_is_exit_code_1_with_one_line(words, json_too, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    code = main([*words, *json_too])
    out, err = capsys.readouterr()
    assert (code, out) == (1, "")
    assert err.startswith("ort-rknn: ") and err.count("\n") == 1


@pytest.mark.parametrize("name", sorted(commands()))
def test_an_option_that_does_not_exist_is_exit_code_2(name, capsys):
    command = commands()[name]
    if command.takes_over is None:
        code = main([name, "--no-such-option"])
    else:
        with pytest.raises(SystemExit) as stop:
            main([name, "--no-such-option"])
        code = stop.value.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert "--no-such-option" in err or "required" in err or "wanted" in err


# The schemas' own words ---------------------------------------------------------------------------------------

WHOLE = record(
    {"a": nullable(enum("x", "y")), "b": array(number()), "c": table(integer()), "d": nullable(boolean()), "e": text()}
)


@pytest.mark.parametrize(
    "change",
    [{"a": "z"}, {"b": ["1"]}, {"c": {"k": 1.5}}, {"d": 0}, {"e": None}, {"b": None}, {"c": []}],
    ids=str,
)
def test_a_schema_refuses_what_is_not_declared(change):
    good = {"a": None, "b": [1, 2.5, None], "c": {"k": 1}, "d": None, "e": ""}
    check = fastjsonschema.compile(closed(WHOLE))
    check(good)
    for bad in ({**good, **change}, {**good, "more": 1}, {k: v for k, v in good.items() if k not in change}):
        with pytest.raises(fastjsonschema.JsonSchemaException):
            check(bad)


# Pages --------------------------------------------------------------------------------------------------------


@pytest.fixture
def maker():
    place = importlib.util.spec_from_file_location("make_commands", ROOT / "docs" / "make_commands.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def test_pages_are_current(maker):
    there = {path.name: path.read_text() for path in maker.FOLDER.glob("*.md")}
    assert there == maker.pages(), "run python docs/make_commands.py"


def test_a_page_lists_every_argument_and_member(maker):
    import argparse

    for command in commands().values():
        text = maker.page(command)
        parser = argparse.ArgumentParser(add_help=False)
        command.add_arguments(parser)
        for action in parser._actions:
            assert all(f"`{option}" in text for option in action.option_strings), (command.name, action)
        for member in command.json_output:
            assert f"| `{member}` |" in text


# Completion ---------------------------------------------------------------------------------------------------

WORDS = [
    (("ort-rknn", "expl"), {"explain"}),
    (("ort-rknn", "convert", "--int"), {"--int8"}),
    (("ort-rknn", "toolkit", ""), {"install", "status"}),
    (("ort-rknn", "check", "--fit", "l"), {"letterbox"}),
    (("ort-rknn", "info", "conv_i"), {"conv_i8.rk3588.rknn"}),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(("words", "wanted"), WORDS, ids=lambda each: "_".join(each))
def test_bash_completes(words, wanted, files, capsys):
    assert main(["--print-completion", "bash"]) == 0
    (files / "completion").write_text(capsys.readouterr().out)
    quoted = " ".join(f"'{each}'" for each in words)
    script = (
        f"source ./completion; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        f"$(complete -p ort-rknn | sed 's/.*-F \\([^ ]*\\).*/\\1/') ort-rknn '{words[-1]}' '{words[-2]}'; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], cwd=files, capture_output=True, text=True)
    assert wanted <= {word.strip() for word in done.stdout.splitlines()}, (done.stdout, done.stderr)
    assert all(word.startswith(words[-1]) for word in done.stdout.split())


def test_completion_without_its_package_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 1
    assert "pip install 'ort-rknn[cli]'" in capsys.readouterr().err


def test_a_shell_that_shtab_does_not_know_yet(monkeypatch, capsys):
    shtab = pytest.importorskip("shtab")
    monkeypatch.setattr(shtab, "SUPPORTED_SHELLS", ["bash", "zsh", "tcsh"])
    assert main(["--print-completion", "fish"]) == 1
    assert capsys.readouterr().err == "ort-rknn: this version of shtab has no fish: pip install --upgrade shtab\n"


@pytest.mark.parametrize("shell", ["zsh", "tcsh", "fish"])
def test_other_shells_complete_commands_and_options(shell, capsys):
    shtab = pytest.importorskip("shtab")
    if shell not in shtab.SUPPORTED_SHELLS:
        pytest.skip(f"shtab {shtab.__version__} has no {shell}")
    assert main(["--print-completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("ort-rknn", "bench", "selftest", "int8"))


def test_numbers_that_json_has_not_are_null(capsys):
    from ort_rknn._cli.output import say_json

    say_json("info", {"a": float("nan"), "b": np.float64(1.5).item()})
    assert json.loads(capsys.readouterr().out) == {"schema": "ort-rknn/info/1", "a": None, "b": 1.5}
