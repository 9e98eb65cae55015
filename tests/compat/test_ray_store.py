"""A model in the object store, with a stand-in for Ray: read once per node, with any number of actors."""

import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from support.virtual_sessions import MODELS

from ort_rknn_ray._store import StoredModel, on_this_node, put_model


@pytest.fixture
def store(monkeypatch, tmp_path):
    """``reads``: a file with a character per read."""
    reads = tmp_path / "reads"
    reads.touch()

    def get(reference):
        fd = os.open(reads, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b".")
        os.close(fd)
        return reference

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(put=bytes, get=get))
    node = tmp_path / "node"
    node.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(node))
    return SimpleNamespace(reads=lambda: reads.stat().st_size, node=node)


@pytest.fixture
def source(tmp_path):
    """A folder with the model, its twins and unrelated files."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn", "conv_f16.rk3576.rknn", "conv_i8.rk3588.rknn"):
        shutil.copy(MODELS / name, folder / name)
    (folder / "notes.txt").write_text("private")
    return folder


def test_many_actors_of_a_node_read_it_once(store, source):
    stored = put_model(source / "conv_f16.onnx")
    assert set(stored.references) == {"conv_f16.onnx", "conv_f16.rk3588.rknn", "conv_f16.rk3576.rknn"}
    with ThreadPoolExecutor(8) as pool:  # each opens the lock for itself, as processes do
        (path,) = set(pool.map(on_this_node, [stored] * 24))
    assert store.reads() == 3
    for name in stored.references:
        assert (store.node / os.path.dirname(path) / name).read_bytes() == (source / name).read_bytes()


def test_another_model_of_that_name_is_another_copy(store, source):
    first = on_this_node(put_model(source / "conv_f16.onnx"))
    (source / "conv_f16.rk3588.rknn").write_bytes(b"another")
    second = on_this_node(put_model(source / "conv_f16.onnx"))
    assert first != second
    assert os.path.basename(first) == os.path.basename(second) == "conv_f16.onnx"


def test_an_interrupted_copy_is_written_again(store, source, monkeypatch):
    stored = put_model(source / "conv_f16.onnx")
    get = sys.modules["ray"].get

    def lost(reference):
        if reference == stored.references["conv_f16.rk3588.rknn"]:
            raise OSError("the node that had it is gone")
        return get(reference)

    monkeypatch.setattr(sys.modules["ray"], "get", lost)
    with pytest.raises(OSError, match="gone"):
        on_this_node(stored)
    monkeypatch.setattr(sys.modules["ray"], "get", get)
    assert os.path.exists(on_this_node(stored))


@pytest.mark.parametrize("name", ["../m.onnx", "/m.onnx", "a/../../m.onnx"])
def test_a_stored_name_stays_in_its_folder(store, name):
    with pytest.raises(ValueError, match="outside"):
        on_this_node(StoredModel("m.onnx", "0" * 64, {"m.onnx": b"", name: b""}))


@pytest.mark.parametrize("digest", ["../../elsewhere", "", "x" * 64, "0" * 63, "/tmp"])
def test_a_digest_names_a_folder_of_ours(store, digest):
    with pytest.raises(ValueError, match="digest"):
        on_this_node(StoredModel("m.onnx", digest, {"m.onnx": b""}))


def test_a_model_name_is_one_of_its_files(store):
    with pytest.raises(ValueError, match="no file"):
        on_this_node(StoredModel("../m.onnx", "0" * 64, {"m.onnx": b""}))


def test_a_folder_that_others_may_write_to_is_not_used(store):
    (store.node / f"ort_rknn_ray-{os.getuid()}").mkdir(mode=0o777)
    os.chmod(store.node / f"ort_rknn_ray-{os.getuid()}", 0o777)
    with pytest.raises(OSError, match="open to others"):
        on_this_node(StoredModel("m.onnx", "0" * 64, {"m.onnx": b""}))
