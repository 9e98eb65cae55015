"""Sessions on models with EPContext attributes that no tool writes: they run, or raise a documented error."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.ep_models import conv_in_a_node
from support.virtual_sessions import emptied_rk3588

import ort_rknn

MODELS = Path(__file__).parents[1] / "models"
X = np.random.default_rng(1).standard_normal((1, 3, 32, 32), dtype=np.float32)
DOCUMENTED = (
    *(state.Fail, state.InvalidArgument, state.NoSuchFile, state.InvalidProtobuf, state.RuntimeException),
    *(state.InvalidGraph, state.NotImplemented),
)


device = pytest.fixture(emptied_rk3588, autouse=True)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    place.mkdir()
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", place)
    (tmp_path / "outside.rknn").write_bytes((MODELS / "conv_f16.rk3588.rknn").read_bytes())
    return place


def written(folder, change):
    proto = onnx.ModelProto.FromString(conv_in_a_node(embed_mode=0))
    change(proto.graph.node[0])
    (folder / "m_ctx.onnx").write_bytes(proto.SerializeToString())
    return folder / "m_ctx.onnx"


def outcome(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ort_rknn.FallbackWarning)
        try:
            with ort_rknn.InferenceSession(path, provider_options={"device": "virtual:rk3588"}) as made:
                return made.run(None, {"x": X})[0].shape
        except DOCUMENTED as error:
            assert str(error)
            return str(error)


def attribute(name, value):
    def change(node):
        kept = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, *([] if value is None else [onnx.helper.make_attribute(name, value)])])

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(attribute("embed_mode", value) for value in (-1, 1, 2, 2**62, 0.5, "0", None)),
        *(attribute("main_context", value) for value in (0, -1, 2**62, "x", None)),
        *(attribute("ep_cache_context", value) for value in (b"", b"\0", b"\xff\xfe", b"x" * 100_000, 7, [1, 2], None)),
        # Not bytes that are no UTF-8: such a node is none of ours, and onnxruntime cannot put its own text together.
        *(attribute("source", value) for value in ("", "other", 3)),
        *(attribute("hardware_architecture", value) for value in ("rk9999", "\x1b[2J", 1, "x" * 100_000)),
        *(attribute("partition_name", value) for value in ("", 5, b"\xff\0")),
        *(attribute("ep_sdk_version", value) for value in ("9" * 5000, "9.9.9.9.9", 1.5)),
        *(attribute("onnx_model_filename", value) for value in ("../../etc/passwd", "/etc/passwd", "m_ctx.onnx", 1)),
    ],
)  # fmt: skip
def test_attributes(folder, change):
    found = outcome(written(folder, change))
    assert found == (1, 8, 16, 16) or isinstance(found, str)


OUTSIDE = ["../outside.rknn", "./../outside.rknn", "a/../../outside.rknn", "..\\outside.rknn", "link.rknn"]


@pytest.mark.parametrize("name", [*OUTSIDE, "way/outside.rknn"])
def test_nothing_outside_of_the_folder_is_loaded(folder, device, name):
    (folder / "a").mkdir()
    os.symlink("../outside.rknn", folder / "link.rknn")
    os.symlink("..", folder / "way")
    found = outcome(written(folder, attribute("ep_cache_context", name.encode())))
    assert "leads out of the model's folder" in found


@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_no_model_in_a_compiled_models_place(folder, what):
    place = folder / "conv_f16.rk3588.rknn"
    place.unlink()
    if what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/zero")
    assert isinstance(outcome(written(folder, lambda node: None)), str)


def test_embedded_bytes_that_are_no_model(folder):
    content = (MODELS / "conv_f16.rk3588.rknn").read_bytes()
    for damaged in (b"", b"RKNN", content[:100], content[:-100], content[:16] + b"\xff" * 8 + content[24:]):

        def change(node, damaged=damaged):
            attribute("embed_mode", 1)(node)
            attribute("ep_cache_context", damaged)(node)

        assert isinstance(outcome(written(folder, change)), str)


def test_nodes_that_are_there_twice_or_have_other_tensors(folder):
    def twice(node):
        node.output.append("more")

    def none(node):
        del node.input[:]

    def same(node):
        node.input.append(node.input[0])

    for change in (twice, none, same):
        found = outcome(written(folder, change))
        assert found == (1, 8, 16, 16) or isinstance(found, str)
