"""``ort-rknn check``: what computed the outputs, and the exit code."""

import json
import os
import shutil
import tempfile
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from ort_rknn._checking.check import Feeds, as_recorded
from ort_rknn._cli.main import main
from ort_rknn._compile.record import BuildRecord, RecordError, read_record, record_path
from ort_rknn.files.hashes import sha256_of


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


def test_int8_out_of_bound_is_no_fault_of_the_plumbing(models, tmp_path, capsys):
    for ending in ("onnx", "rk3588.rknn"):
        shutil.copy(models / f"conv_i8.{ending}", tmp_path / f"conv.{ending}")
    strict = ("--accuracy", "0.99999999", "--device", "virtual:rk3588")
    code, out, _ = check(capsys, tmp_path / "conv.onnx", *strict)
    assert code == 1
    assert "verdict: undecided: int8 rounds" in out and "plumbing is at fault" not in out


def test_float16_out_of_bound_is(conv, capsys, tmp_path):
    run = tmp_path / "run.npz"
    assert check(capsys, conv, "--save", run)[0] == 0
    with np.load(run) as file:
        other = {key: value + (100 if "/out/" in key else 0) for key, value in file.items()}
    np.savez(run, **other)
    code, out, _ = check(capsys, conv, "--against", run, "--device", "virtual:rk3588")
    assert code == 1 and "the plumbing is at fault" in out


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


def test_a_record_is_untrusted_input(conv, tmp_path):
    place = record_path(tmp_path, "conv", "rk3588")
    for text in ("", "[]", "{}", '{"version": 1}', '{"version": 1, "sha256": 3, "shapes": []}'):
        place.write_text(text)
        with pytest.raises(RecordError, match="damaged|another version"):
            read_record(place, str(conv))


def test_convert_leaves_a_record_that_holds_for_this_onnx(conv, toolkit, capsys, tmp_path):
    assert main(["convert", str(conv), "--target", "rk3588", "--toolkit", toolkit.python]) == 0
    place = record_path(tmp_path, "conv", "rk3588")
    assert read_record(place, str(conv)).whole
    result = tmp_path / "conv.rk3588.rknn"
    content = result.read_bytes()
    result.write_bytes(content + b"\x00")
    with pytest.raises(RecordError, match="of another result"):
        read_record(place, str(conv))
    result.write_bytes(content)
    conv.write_bytes(conv.read_bytes() + b"\x42\x00")
    with pytest.raises(RecordError, match="has changed"):
        read_record(place, str(conv))


def record(onnx, **given):
    """The record that ``convert`` writes beside ``onnx``."""
    fields = {"target": "rk3588", "toolkit": "2.5.0", "shapes": {"x": (1, 3, 32, 32)}, "mean": (), "std": ()}
    fields |= {"freeze": {}, "fit": "stretch", "data": None, "samples": (), "whole": True, "on_cpu": {}}
    fields |= {"lowered": False, "hybrid": False}
    made = BuildRecord(sha256=sha256_of(str(onnx)), result="0" * 64, **{**fields, **given})
    result = onnx.with_name(f"{onnx.stem}.{made.target}.rknn")
    if result.exists():
        made = replace(made, result=sha256_of(result))
    made.write(record_path(onnx.parent, onnx.stem, made.target))


@pytest.fixture
def pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    for number in range(3):
        image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / f"pictures/{number}.png")
    return tmp_path / "pictures"


def fed(path):
    with np.load(path) as file:
        return [value for key, value in file.items() if "/in/" in key]


def test_pictures_are_normalized_as_in_the_conversion(conv, pictures, capsys, tmp_path):
    run = tmp_path / "run.npz"
    assert check(capsys, conv, "--data", pictures, "--save", run)[0] == 0
    assert max(value.max() for value in fed(run)) > 200  # nothing is known of a mean
    record(conv, mean=((0.0,),), std=((255.0,),))
    assert check(capsys, conv, "--data", pictures, "--save", run)[0] == 0
    assert 0.5 < max(value.max() for value in fed(run)) <= 1
    assert check(capsys, conv, "--data", pictures, "--std", "1", "--save", run)[0] == 0  # what is said counts
    assert max(value.max() for value in fed(run)) > 200
    record(conv, target="rk3576", std=((1.0,),))
    code, _, err = check(capsys, conv, "--data", pictures, "--save", run)
    assert code == 2 and "in more than one way" in err


def test_a_session_is_fed_as_the_conversion_for_its_soc_was(conv, pictures):
    record(conv, mean=((127.5,),), std=((127.5,),), fit="letterbox")
    record(conv, target="rk3576", std=((1.0,),))
    found = as_recorded(str(conv), Feeds(data=pictures), "rk3588")
    assert (found.data, found.mean, found.std, found.fit) == (pictures, ((127.5,),), ((127.5,),), "letterbox")
    said = Feeds(data=pictures, mean=((1.0,),), fit="stretch")
    assert as_recorded(str(conv), said, "rk3588") == said
    assert as_recorded(str(conv), Feeds(), "rk3562") == Feeds()


def test_free_axes_are_as_in_the_conversion(models, capsys, tmp_path):
    onnx = tmp_path / "d.onnx"
    shutil.copy(models / "dynamic.onnx", onnx)
    run = tmp_path / "run.npz"
    code, _, err = check(capsys, onnx, "--save", run)
    assert code == 2 and "--shape" in err
    record(onnx, shapes={"x": (1, 3, 16, 24)})
    assert check(capsys, onnx, "--save", run)[0] == 0
    assert {value.shape for value in fed(run)} == {(1, 3, 16, 24)}


def test_missing_files_are_reported_as_elsewhere(conv, capsys, tmp_path):
    code, _, err = check(capsys, conv, "--against", tmp_path / "no.npz", "--device", "virtual:rk3588")
    assert (code, "[Errno" in err, "no.npz: No such file" in err) == (1, False, True)
    code, _, err = check(capsys, conv, "--save", tmp_path / "no" / "run.npz")
    assert code == 2 and err.endswith("run.npz: cannot be written\n")


def test_a_stamp_is_not_another_result(conv, tmp_path):
    compiled = tmp_path / "conv.rk3588.rknn"
    record(conv, std=((255.0,),))
    assert main(["stamp", str(conv), str(compiled), "--independent"]) == 0
    assert read_record(record_path(tmp_path, "conv", "rk3588"), str(conv)).std == ((255.0,),)
    compiled.write_bytes(compiled.read_bytes() + b" ")
    assert main(["stamp", str(conv), str(compiled)]) == 0  # the record was of something else before, and is
    with pytest.raises(RecordError, match="another result"):
        read_record(record_path(tmp_path, "conv", "rk3588"), str(conv))


def test_a_record_that_cannot_be_used_is_named_where_it_matters(conv, pictures, capsys, tmp_path):
    record(conv, std=((255.0,),))
    place = record_path(tmp_path, "conv", "rk3588")
    place.write_text(place.read_text().replace('"version": ', '"version": 9'))
    fed = ("--data", pictures, "--device", "virtual:rk3588")
    code, out, _ = check(capsys, conv, *fed)
    assert code == 0 and "were not used" not in out  # nothing hangs on it
    code, out, _ = check(capsys, conv, *fed, "--accuracy", "0.999999999999")  # more than float16 holds
    assert code == 1 and "written by another version" in out


def doubling(path, dims):
    """An ONNX that computes the same as the fake toolkit's simulator."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    ends = [value("x", TensorProto.FLOAT, dims)], [value("y", TensorProto.FLOAT, dims)]
    graph = helper.make_graph(nodes, "g", *ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def calls(toolkit, monkeypatch, tmp_path):
    """The requests to the toolkit, which compiles any model into the same one."""
    monkeypatch.setenv("FAKE_TOOLKIT_ANY", "conv_f16.rk3588.rknn")
    monkeypatch.setenv("FAKE_TOOLKIT_CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("ORT_RKNN_TOOLKIT", toolkit.python)

    def read():
        lines = (tmp_path / "calls").read_text().splitlines()
        (tmp_path / "calls").unlink()
        return [json.loads(line) for line in lines]

    return read


def test_shape_sets_are_repeated_on_the_simulator(calls, capsys, tmp_path):
    path = doubling(tmp_path / "m.onnx", ["n", 3, "h"])
    shapes = ("--shape", "x=1,3,8", "--shape", "x=1,3,5")
    assert main(["convert", str(path), "--target", "rk3588", *shapes]) == 0
    converted = calls()
    code, out, _ = check(capsys, path, "--simulator", "rk3588")
    assert code == 0 and "16 random samples" in out
    repeated = calls()
    sets = {"dynamic_input": [[[1, 3, 8]], [[1, 3, 5]]]}
    assert [call["config"].items() >= sets.items() for call in converted + repeated if "config" in call] == [True] * 2
    fed = [call["inference"] for call in repeated if "inference" in call]
    assert fed == [[[1, 3, 8]]] * 8 + [[[1, 3, 5]]] * 8
    np.savez(tmp_path / "data.npz", x=np.ones((3, 1, 3, 8), np.float32))
    code, out, _ = check(capsys, path, "--simulator", "rk3588", "--data", tmp_path / "data.npz")
    assert code == 0 and "the first of 2 shape sets" in out
    np.savez(tmp_path / "data.npz", x=np.ones((3, 1, 3, 5), np.float32))
    code, _, err = check(capsys, path, "--simulator", "rk3588", "--data", tmp_path / "data.npz")
    assert code == 2 and "data.npz, a sample: input 'x' takes [1, 3, 8], and this is [1, 3, 5]" in err


def test_a_batch_is_repeated_on_the_simulator(calls, capsys, tmp_path):
    path = doubling(tmp_path / "m.onnx", ["n", 3, 4])
    assert main(["convert", str(path), "--target", "rk3588", "--batch", "3"]) == 0
    calls()
    code, out, _ = check(capsys, path, "--simulator", "rk3588")
    assert code == 0 and "8 random samples" in out
    asked = calls()
    assert [call["build"]["rknn_batch_size"] for call in asked if "build" in call] == [3]
    assert [call["inference"] for call in asked if "inference" in call] == [[[3, 3, 4]]] * 3  # 8 samples, and one again


def test_the_log_of_a_folder_that_is_read_only(calls, capsys, tmp_path, monkeypatch):
    path = doubling(tmp_path / "m.onnx", [1, 3, 4])
    assert main(["convert", str(path), "--target", "rk3588"]) == 0
    writable = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: place != str(tmp_path) and writable(place, mode))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    assert check(capsys, path, "--simulator", "rk3588")[0] == 0
    assert not (tmp_path / "m.check.log").exists() and list(tmp_path.glob("other/*/m.check.log"))


def test_inputs_that_no_output_needs_are_not_named_to_the_toolkit(calls, capsys, tmp_path):
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [node("Add", ["x", "x"], ["y"]), node("Neg", ["dead"], ["unread"])]
    inputs = [value("unused", 1, [1, 2]), value("x", 1, [1, 3, 4]), value("dead", 1, [1])]
    graph = onnx.helper.make_graph(nodes, "g", inputs, [value("y", 1, None)])
    path = tmp_path / "m.onnx"
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    named = {"inputs": ["x"], "input_size_list": [[1, 3, 4]]}
    assert main(["convert", str(path), "--target", "rk3588", "--mean", "1", "--std", "2"]) == 0
    assert (tmp_path / "m.rk3588.rknn").exists()
    asked = calls()
    assert [call["load"] for call in asked if "load" in call] == [named]
    assert [call["config"]["mean_values"] for call in asked if "config" in call] == [[[1.0] * 3]]
    assert check(capsys, path, "--simulator", "rk3588")[0] == 0
    assert [call["load"] for call in calls() if "load" in call] == [named]


def test_a_batch_of_an_onnx_that_has_its_own_is_refused(calls, capsys, tmp_path):
    path = doubling(tmp_path / "m.onnx", [1, 3, 4])
    assert main(["convert", str(path), "--target", "rk3588", "--batch", "3"]) == 2
    assert "input 'x' has a first axis of 1 in the ONNX" in capsys.readouterr().err
    assert main(["convert", str(path), "--target", "rk3588", "--batch", "1"]) == 0
    assert main(["convert", str(path), "--target", "rk3588", "--batch", "0"]) == 2
    assert "--batch 0: expected a number of samples" in capsys.readouterr().err
    assert main(["convert", str(path), "--target", "rk3588", "--batch", "0", "-o", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_a_record_of_parts_has_neither_sets_nor_a_batch(conv, tmp_path):
    place = record_path(tmp_path, "conv", "rk3588")
    for given in ({"batch": 2}, {"more_shapes": [{"x": [1, 3, 8, 8]}]}):
        record(conv, whole=False)
        place.write_text(json.dumps({**json.loads(place.read_text()), **given}))
        with pytest.raises(RecordError, match="a model in parts has neither"):
            read_record(place, str(conv))
    record(conv)
    place.write_text(json.dumps({**json.loads(place.read_text()), "more_shapes": [{"y": [1]}]}))
    with pytest.raises(RecordError, match="more_shapes"):
        read_record(place, str(conv))


def test_the_simulators_error_is_one_line(calls, capsys, monkeypatch, tmp_path):
    path = doubling(tmp_path / "m.onnx", [1, 3, 4])
    assert main(["convert", str(path), "--target", "rk3588"]) == 0
    monkeypatch.setenv("FAKE_TOOLKIT_RAISES", "inference")
    code, _, err = check(capsys, path, "--simulator", "rk3588")
    assert code == 1
    assert err.splitlines()[-1] == "ort-rknn: the toolkit's simulator: IndexError: list index out of range"
