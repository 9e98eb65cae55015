"""``ort-rknn check``: whose numbers, which exit code."""

import json
import shutil

import numpy as np
import pytest

from ort_rknn._cli.main import main
from ort_rknn._compile.record import RecordError, read_record, record_path


@pytest.fixture
def conv(models, tmp_path):
    for ending in ("onnx", "rk3588.rknn"):
        shutil.copy(models / f"conv_f16.{ending}", tmp_path / f"conv.{ending}")
    return tmp_path / "conv.onnx"


def check(capsys, *argv):
    code = main(["check", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def test_virtual_numbers_are_plumbing_only(conv, capsys):
    code, out, _ = check(capsys, conv, "--device", "virtual:rk3588")
    assert code == 0
    assert "verdict: plumbing only" in out
    assert "accurate" not in out


def test_saved_there_and_compared_here(conv, capsys, tmp_path):
    run = tmp_path / "run.npz"
    assert check(capsys, conv, "--save", run)[0] == 0
    code, out, _ = check(capsys, conv, "--against", run, "--device", "virtual:rk3588", "--json")
    report = json.loads(out)
    assert (code, report["numbers"], report["within"]) == (0, "virtual", True)
    with np.load(run) as file:
        other = {key: value + (100 if "/out/" in key else 0) for key, value in file.items()}
    np.savez(run, **other)
    code, out, _ = check(capsys, conv, "--against", run, "--device", "virtual:rk3588")
    assert code == 1
    assert "NOT within the bound" in out
    np.savez(run, a=np.ones(1))
    assert check(capsys, conv, "--against", run, "--device", "virtual:rk3588")[0] == 2


@pytest.mark.filterwarnings("ignore::ort_rknn.FallbackWarning")
def test_nothing_compiled_ran(conv, capsys, monkeypatch):
    monkeypatch.delenv("ORT_RKNN_DEVICE", raising=False)
    code, _, err = check(capsys, conv, "--device", "rk3588")
    assert code == 1
    assert "nothing that was compiled ran" in err


def test_wrong_use(conv, capsys):
    assert check(capsys, conv, "--accuracy", "2")[0] == 2
    assert check(capsys, conv, "--simulator", "rk3588", "--save", "x.npz")[0] == 2
    assert "leaves beside its result" in check(capsys, conv, "--simulator", "rk3588")[2]


def test_a_record_is_input_from_strangers(conv, tmp_path):
    place = record_path(tmp_path, "conv", "rk3588")
    for text in ("", "[]", "{}", '{"version": 1}', '{"version": 1, "sha256": 3, "shapes": []}'):
        place.write_text(text)
        with pytest.raises(RecordError, match="damaged|another version"):
            read_record(place, str(conv))


def test_convert_leaves_a_record_that_holds_for_this_onnx(conv, toolkit, capsys, tmp_path):
    assert main(["convert", str(conv), "--target", "rk3588", "--toolkit", toolkit.python]) == 0
    place = record_path(tmp_path, "conv", "rk3588")
    assert read_record(place, str(conv)).whole
    conv.write_bytes(conv.read_bytes() + b"\x42\x00")
    with pytest.raises(RecordError, match="has changed"):
        read_record(place, str(conv))
