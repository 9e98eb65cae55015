"""``ort-rknn convert`` and ``toolkit``: shapes, names, errors, and files that are whole or absent."""

import json
import os
import shutil

import pytest
from support.command_json import validate

from ort_rknn._cli.main import main
from ort_rknn._compile.shapes import ShapeError, compiled_shapes, group_shapes, parse_shape
from ort_rknn.files import read_onnx


@pytest.fixture
def cli(toolkit, capsys):
    def run(*argv):
        code = main([os.fspath(word) for word in argv])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def conv(models, tmp_path):
    return shutil.copy(models / "conv_f16.onnx", tmp_path / "conv.onnx")


def test_for_two_targets_beside_the_onnx(cli, toolkit, conv, tmp_path):
    code, out, err = cli("convert", conv, "--target", "RK3588,rk3576", "--toolkit", toolkit.python)
    assert code == 0, err
    assert sorted(os.listdir(tmp_path)) == [
        "conv.convert.log",
        "conv.onnx",
        "conv.rk3576.build.json",
        "conv.rk3576.rknn",
        "conv.rk3588.build.json",
        "conv.rk3588.rknn",
    ]
    assert "2 layers (1 ConvRelu, 1 Reshape), 1 on the NPU" in out
    assert "inside the runtime, on the CPU: Reshape:r" in out
    assert f'ort_rknn.InferenceSession("{conv}")' in out


def test_to_a_folder_of_its_own_with_the_onnx(cli, toolkit, conv, tmp_path):
    folder = tmp_path / "board"
    code, out, _ = cli("convert", conv, "--target", "rk3588", "-o", folder, "--json", "--toolkit", toolkit.python)
    report = validate("convert", out)
    assert (code, report["toolkit"], report["compiled"][0]["target"]) == (0, "2.5.0", "rk3588")
    assert sorted(os.listdir(folder)) == ["conv.convert.log", "conv.onnx", "conv.rk3588.build.json", "conv.rk3588.rknn"]


def test_a_failure_leaves_the_older_result(cli, toolkit, conv, tmp_path, monkeypatch):
    older = tmp_path / "conv.rk3588.rknn"
    older.write_bytes(b"older")
    monkeypatch.setenv("FAKE_TOOLKIT_EXPORTS", "rubbish")
    code, _, err = cli("convert", conv, "--target", "rk3588", "--toolkit", toolkit.python)
    assert code == 1
    assert "made no model" in err
    assert older.read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path)) == ["conv.convert.log", "conv.onnx", "conv.rk3588.rknn"]


def test_one_mean_counts_for_all_channels(cli, toolkit, conv, tmp_path):
    given = ("--mean", "0", "--std", "255", "--toolkit", toolkit.python)
    assert cli("convert", conv, "--target", "rk3588", *given)[0] == 0
    record = json.loads((tmp_path / "conv.rk3588.build.json").read_text())
    assert (record["mean"], record["std"]) == ([[0.0] * 3], [[255.0] * 3])
    code, _, err = cli("convert", conv, "--target", "rk3588", "--mean", "1,2", "--toolkit", toolkit.python)
    assert code == 2
    assert "mean: input 'x' has 3 channels; expected 1 or 3 numbers, got 2" in err


def test_wrong_use(cli, toolkit, conv, models, tmp_path, monkeypatch):
    def refused(*argv):
        code, out, err = cli("convert", *argv, "--toolkit", toolkit.python)
        assert (code, out) == (2, "")
        return err.splitlines()[-1]

    assert "expected one or more of rk3588" in refused(conv, "--target", "z80")
    assert "say which with --target" in refused(conv)
    assert "expected NAME=N,N" in refused(conv, "--target", "rk3588", "--shape", "x")
    assert "no input 'y'" in refused(conv, "--target", "rk3588", "--shape", "y=1,3,32,32")
    assert "expected numbers" in refused(conv, "--target", "rk3588", "--mean", "a,b")
    dynamic = shutil.copy(models / "dynamic.onnx", tmp_path / "dynamic.onnx")
    assert "--shape x=1,3,N,N" in refused(dynamic, "--target", "rk3588")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli("convert", conv, "--target", "rk3588")[2].endswith("or ORT_RKNN_TOOLKIT\n")


def test_toolkit_status(cli, toolkit, monkeypatch, tmp_path):
    monkeypatch.setenv("ORT_RKNN_TOOLKIT", toolkit.python)
    code, out, _ = cli("toolkit", "status", "--json")
    assert (code, validate("toolkit", out)["version"]) == (0, "2.5.0")
    monkeypatch.delenv("ORT_RKNN_TOOLKIT")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli("toolkit", "status")[0] == 1


def test_shapes():
    assert parse_shape("a=b=1x3,4") == ("a=b", (1, 3, 4))
    for bad in ("x", "x=", "=1,2", "x=0,1", "x=1,-2", "x=1,a"):
        with pytest.raises(ShapeError):
            parse_shape(bad)
    pairs = [("x", (1, 2)), ("y", (3,)), ("x", (2, 2)), ("x", (4, 2)), ("y", (5,))]
    assert group_shapes(pairs) == [
        {"x": (1, 2), "y": (3,)},
        {"x": (2, 2), "y": (3,)},
        {"x": (4, 2), "y": (5,)},
    ]


def test_shapes_of_a_model(models):
    free = read_onnx(models / "free_batch.onnx")
    assert compiled_shapes(free, []).sets == ({"x": (1, 3, 16, 16)},)
    assert compiled_shapes(free, [{"x": (4, 3, 16, 16)}]).sets == ({"x": (4, 3, 16, 16)},)
    with pytest.raises(ShapeError, match="axis 1 is 3, not 4"):
        compiled_shapes(free, [{"x": (1, 4, 16, 16)}])
    with pytest.raises(ShapeError, match="4 axes"):
        compiled_shapes(free, [{"x": (1, 3)}])
