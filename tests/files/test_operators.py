"""The operators and the memory of compiled models, read from the file."""

import json
import random
import shutil
import struct
from collections import Counter

import pytest
from support.command_json import validate

import ort_rknn
from ort_rknn._cli.main import main
from ort_rknn.files import RknnFileError
from ort_rknn.files.operators import NO_LOWERING, alone, read_operators, splits


def without_lowering(models):
    """A compiled model whose ArgMax is an operator that no runtime has."""
    content = (models / "tokens_i64.rk3588.rknn").read_bytes()
    old, new = struct.pack("<I", 6) + b"ArgMax\0", struct.pack("<I", 4) + b"Size\0\0\0"
    assert content.count(old) == 1
    return content.replace(old, new)


def test_operators_are_those_of_the_converters_own_table(models):
    """Which its log of this build has: type, and NPU or CPU."""
    found = read_operators(models / "tokens_i64.rk3588.rknn")
    assert [(each.kind, each.where) for each in found.operators] == [
        ("Gather", "CPU"),
        ("Reshape", "NPU"),
        ("Transpose", "NPU"),
        ("ConvTanh", "NPU"),
        ("Conv", "NPU"),
        ("ArgMax", "CPU"),
        ("Reshape", "CPU"),
        ("Transpose", "NPU"),
        ("Reshape", "NPU"),
    ]
    assert found.operators[3].name == "Conv:MatMul_mixed#2"
    assert found.without_lowering == ()


def test_memory(models):
    """Float16: the weights of three convolutions in blocks of channels, 32 bit biases, two tables of 1 KiB."""
    found = read_operators(models / "conv_f16.rk3588.rknn")
    assert found.weights == 2304 + 4608 + 2304 + 3 * 64 + 2 * 1024
    assert found.internal == 14336 + 8192  # the last tensor in the buffer, and where it begins


@pytest.mark.parametrize(
    "name", ["dynamic.rk3588.rknn", "conv_i8.rk3588.rknn", "mean_std.rk3562.rknn", "nd.rk3588.rknn"]
)
def test_every_committed_model_can_be_read(models, name):
    found = read_operators(models / name)
    assert found.operators and found.weights and found.internal
    assert not found.without_lowering


def test_an_operator_without_lowering(models):
    (bad,) = read_operators(without_lowering(models)).without_lowering
    assert (bad.kind, bad.where) == ("Size", "nowhere")


def test_damaged_files_are_an_error_or_an_answer(models):
    content = (models / "nd.rk3588.rknn").read_bytes()
    chance = random.Random(3)
    for _ in range(400):
        broken = bytearray(content)
        for _ in range(8):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        try:
            read_operators(bytes(broken))
        except RknnFileError:
            pass
    for length in range(0, len(content), 997):
        with pytest.raises(RknnFileError):
            read_operators(content[:length])


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("Conv", True),
        ("ConvRelu", True),
        ("ConvLeakyRelu", True),
        ("ConvAddRelu", True),
        ("ConvSigmoid", False),
        ("ConvTranspose", False),
        ("Add", True),
        ("AddRelu", False),
        ("Softmax", False),
    ],
)
def test_what_splits(kind, wanted):
    assert splits(kind) is wanted


def test_operators_compiled_alone():
    assert (alone("Conv"), alone("ArgMax"), alone("Det"), alone("NonMaxSuppression")) == ("NPU", "CPU", "nowhere", None)
    assert alone("Conv", "com.mine") is None
    assert not any(alone(name) != "nowhere" for name in NO_LOWERING)


def test_info_lists_them_and_gives_1_for_one_that_nothing_runs(models, tmp_path, capsys):
    good = models / "tokens_i64.rk3588.rknn"
    assert main(["info", str(good)]) == 0
    out = capsys.readouterr().out
    assert "memory:        weights 19,848 bytes" in out
    assert "CPU, inside the runtime" in out
    bad = tmp_path / "bad.rknn"
    bad.write_bytes(without_lowering(models))
    assert main(["info", str(bad)]) == 1
    assert "No runtime can run Size" in capsys.readouterr().out
    assert main(["info", str(bad), "--json"]) == 1
    found = validate("info", capsys.readouterr().out)
    counted = Counter({(one["operator"], one["where"]): one["count"] for one in found["operators"]})
    assert counted[("Size", "nowhere")] == 1 and counted[("Reshape", "NPU")] == 2
    assert found["memory"]["weights"] == 19848


def test_info_counts_the_operators_of_an_onnx(models, capsys):
    assert main(["info", str(models / "conv_f16.onnx"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counted = {one["operator"]: one for one in found["operators"]}
    assert counted["Conv"]["count"] == 3 and counted["Conv"]["where"] == "NPU" and counted["Conv"]["splits"]


def test_explain_warns(models, tmp_path):
    shutil.copy(models / "tokens_i64.onnx", tmp_path / "net.onnx")
    (tmp_path / "net.rk3588.rknn").write_bytes(without_lowering(models))
    options = [{"device": "virtual:rk3588"}]
    with ort_rknn.InferenceSession(str(tmp_path / "net.onnx"), provider_options=options) as session:
        assert "warning:   net.rk3588.rknn: no runtime has the operator Size" in session.explain()
    with ort_rknn.InferenceSession(str(models / "tokens_i64.onnx"), provider_options=options) as session:
        assert "warning:" not in session.explain()
