"""ort_rknn.convert and ort_rknn.check, as a program calls them."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

import ort_rknn
from ort_rknn._cli.main import main
from ort_rknn._compile.converter import Converter


@pytest.fixture
def conv(models, tmp_path):
    return str(shutil.copy(models / "conv_f16.onnx", tmp_path / "conv.onnx"))


def test_convert_then_check(toolkit, conv):
    steps = []
    report = ort_rknn.convert(conv, "RK3588S", toolkit=toolkit.python, progress=steps.append)
    (made,) = report.compiled
    assert (made.target, made.whole) == ("rk3588", True)
    assert "compiling for rk3588" in steps
    found = ort_rknn.check(conv, provider_options={"device": "virtual:rk3588"})
    assert (found.numbers, found.within, found.note) == ("virtual", True, "virtual:rk3588")
    assert "accurate" not in found.verdict
    assert [output.name for output in found.outputs] == ["y"]
    mine = ort_rknn.check(
        conv, data=lambda: np.ones((3, 1, 3, 32, 32), np.float32), provider_options={"device": "virtual:rk3588"}
    )
    assert mine.outputs[0].samples == 3
    assert (found.random, mine.random) == (True, False)


def test_several_targets_and_a_folder(toolkit, conv, tmp_path):
    report = ort_rknn.convert(conv, ["rk3588", "rk3576"], out=tmp_path / "board", toolkit=toolkit.python)
    assert [made.target for made in report.compiled] == ["rk3588", "rk3576"]
    assert (tmp_path / "board" / "conv.onnx").exists()


def test_misuse_is_a_value_error(toolkit, conv):
    with pytest.raises(ValueError, match="target='z80': expected one or more of rk3588"):
        ort_rknn.convert(conv, "z80", toolkit=toolkit.python)
    with pytest.raises(ValueError, match="accuracy=2"):
        ort_rknn.convert(conv, "rk3588", accuracy=2, toolkit=toolkit.python)
    with pytest.raises(ValueError, match="no input 'z'"):
        ort_rknn.convert(conv, "rk3588", shapes={"z": [1]}, toolkit=toolkit.python)
    with pytest.raises(ort_rknn.ConversionError, match="no input 'z' to freeze"):
        ort_rknn.convert(conv, "rk3588", freeze={"z": 1}, toolkit=toolkit.python)
    with pytest.raises(ValueError, match="accuracy=0"):
        ort_rknn.check(conv, accuracy=0)
    with pytest.raises(ValueError, match="does not go with against"):
        ort_rknn.check(conv, simulator="rk3588", against="run.npz")
    with pytest.raises(ValueError, match="as they were in the conversion"):
        ort_rknn.convert(conv, "rk3588", toolkit=toolkit.python)
        ort_rknn.check(conv, simulator="rk3588", mean=[0], toolkit=toolkit.python)


def test_a_refusal_and_no_toolkit(toolkit, conv, monkeypatch, tmp_path):
    with pytest.raises(ort_rknn.ConversionError, match="Invalid target_platform"):
        ort_rknn.convert(conv, "rk3568", toolkit=toolkit.python)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ort_rknn.ToolkitError, match="ort-rknn toolkit install"):
        ort_rknn.convert(conv, "rk3588")


def test_nothing_compiled_is_nothing_compared(conv):
    with (
        pytest.warns(ort_rknn.FallbackWarning),
        pytest.raises(ort_rknn.NothingCompared, match="nothing was compared"),
    ):
        ort_rknn.check(conv, provider_options={"device": "rk3588"})


def test_importing_ort_rknn_imports_none_of_it():
    code = "import sys, ort_rknn; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not [
        name for name in loaded if name == "onnx" or name.startswith(("ort_rknn._compile", "ort_rknn._checking"))
    ]


def test_layers_show_where_it_goes_wrong(toolkit, conv, monkeypatch):
    ort_rknn.convert(conv, "rk3588", toolkit=toolkit.python)
    with pytest.raises(ValueError, match="layers are compared on the vendor's simulator"):
        ort_rknn.check(conv, layers=True)
    monkeypatch.setattr(Converter, "simulate", lambda self, feeds, layouts: [np.zeros((1, 8, 16, 16), np.float32)])
    found = ort_rknn.check(conv, simulator="rk3588", layers=True, toolkit=toolkit.python)
    assert [(layer.op_type, layer.name) for layer in found.layers] == [
        ("Relu", "r"),
        ("Sigmoid", "s#1"),
        ("exDataConvert", "y"),
    ]
    assert (found.first_bad_layer.name, found.first_bad_layer.single) == ("s#1", 0.9999)
    monkeypatch.setenv("FAKE_TOOLKIT_LAYERS", "none")
    with pytest.raises(ort_rknn.ConversionError, match="left no table"):
        ort_rknn.check(conv, simulator="rk3588", layers=True, toolkit=toolkit.python)


def test_layers_on_the_command_line(toolkit, conv, monkeypatch, capsys):
    ort_rknn.convert(conv, "rk3588", toolkit=toolkit.python)
    monkeypatch.setattr(Converter, "simulate", lambda self, feeds, layouts: [np.zeros((1, 8, 16, 16), np.float32)])
    assert main(["check", conv, "--simulator", "rk3588", "--layers", "--toolkit", toolkit.python]) == 1
    out = capsys.readouterr().out
    assert "8 random samples" in out and "give samples with --data" in out
    assert "  Sigmoid s#1: 0.91250, 0.99990" in out and "first bad layer: Sigmoid s#1" in out
    assert main(["check", conv, "--layers"]) == 2
    assert "--layers goes with --simulator" in capsys.readouterr().err
