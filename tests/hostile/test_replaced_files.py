"""Files that are replaced, truncated or rewritten between two accesses, at every place where a file is accessed: the
outputs are those of one of the models, or the error is a documented one, and nothing stays open.

The change happens right before Python stats or opens a file.
"""

import builtins
import io
import os
import shutil
import stat
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.models_in_parts import TWO_PARTS, three_steps, write_in_parts
from support.virtual_sessions import emptied_rk3588

import ort_rknn
from ort_rknn import FallbackWarning
from ort_rknn._compile.record import BuildRecord, RecordError, read_record
from ort_rknn.files import (
    OnnxFileError,
    Origin,
    RknnFileError,
    StampError,
    ep_context_model,
    hashes,
    is_stale,
    read_onnx,
    stamp,
)

MODELS = Path(__file__).parents[1] / "models"
VIRTUAL = {"device": "virtual:rk3588"}
DOCUMENTED = (
    *(state.Fail, state.InvalidArgument, state.NoSuchFile, state.InvalidProtobuf, state.RuntimeException),
    *(state.InvalidGraph, state.NotImplemented, state.NoModel, RknnFileError, OnnxFileError, OSError),
)


class Exchange:
    """Does something when Python looks at a file of ``folder``, or opens it, for the ``at``-th time. ``waits``: pipes
    that were opened so that the other end is waited for."""

    def __init__(self, folder, at, what):
        self.folder, self.at, self.what, self.count, self.waits = str(folder), at, what, 0, []
        self.busy = False

    def seen(self, path, flags):
        if self.busy or not isinstance(path, (str, bytes, os.PathLike)):
            return
        path = os.fsdecode(path)
        if not path.startswith(self.folder):
            return
        self.busy = True
        try:
            if os.path.isfile(path):
                self.count += 1
                if self.count == self.at:
                    self.what()
            if flags is not None and not flags & os.O_NONBLOCK and is_pipe(path):
                self.waits.append(path)
        finally:
            self.busy = False


#: The other end of every pipe, for onnxruntime's own readers, which wait for one, older ones with the GIL held: it is
#: closed at once.
CLOSE_PIPES = """
import os, stat, sys, time
while os.getppid() == int(sys.argv[2]):
    for folder, _, names in os.walk(sys.argv[1]):
        for name in names:
            try:
                place = os.path.join(folder, name)
                if stat.S_ISFIFO(os.stat(place).st_mode):
                    os.close(os.open(place, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                pass
    time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def _other_ends(request, tmp_path):
    if request.node.callspec.params.get("how") is not pipe_instead:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", CLOSE_PIPES, str(tmp_path), str(os.getpid())])
    yield
    process.kill()
    process.wait()


@contextmanager
def exchange(folder, at=-1, what=None):
    made = Exchange(folder, at, what)

    def watched(real, flags_of):
        def call(path, *arguments, **named):
            made.seen(path, flags_of(*arguments, **named))
            return real(path, *arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        opened = watched(open, lambda mode="r", *_, opener=None, **__: None if opener else os.O_RDONLY)
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        patch.setattr(os, "open", watched(os.open, lambda flags, *_, **__: flags))
        patch.setattr(os, "stat", watched(os.stat, lambda *_, **__: None))
        yield made
    assert made.waits == []


def is_pipe(place):
    try:
        return stat.S_ISFIFO(os.stat(place).st_mode)
    except OSError:
        return False


def cut(place):
    os.truncate(place, os.path.getsize(place) // 2)


def emptied(place):
    os.truncate(place, 0)


def deleted(place):
    place.unlink()


def folder_instead(place):
    place.unlink()
    place.mkdir()


def pipe_instead(place):
    place.unlink()
    os.mkfifo(place)


def link_out(place):
    place.unlink()
    place.symlink_to("/etc/hostname")


def rewritten(place):
    place.write_bytes(bytes(reversed(place.read_bytes())))


def replaced(place):
    """By a good file of the same kind, of another model."""
    other = place.with_name(f"{place.name}.other")
    if not other.exists():
        other.write_bytes(b"other")
    shutil.copy(other, f"{place}.new")
    os.replace(f"{place}.new", place)


HOW = [cut, emptied, deleted, folder_instead, pipe_instead, link_out, rewritten, replaced]


device = pytest.fixture(emptied_rk3588, autouse=True)


def negated(path):
    """A model of the same signature with other numbers."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(-2 * values, tensor.name))
    return model.SerializeToString()


def with_twin(folder):
    for name in ("conv_f16.onnx", "conv_f16.rk3588.rknn"):
        shutil.copy(MODELS / name, folder / name)
    (folder / "conv_f16.onnx.other").write_bytes(negated(MODELS / "conv_f16.onnx"))
    shutil.copy(MODELS / "image_u8.rk3588.rknn", folder / "conv_f16.rk3588.rknn.other")
    return folder / "conv_f16.onnx", ["conv_f16.onnx", "conv_f16.rk3588.rknn"]


def with_context_node(folder):
    _, names = with_twin(folder)
    model = read_onnx(folder / "conv_f16.onnx")
    made = ep_context_model(
        model=model, inputs=model.inputs, outputs=model.outputs, source="RKNNExecutionProvider",
        cache_context=b"conv_f16.rk3588.rknn", node_name="conv", embed_mode=0,
    )  # fmt: skip
    (folder / "conv_f16_ctx.onnx").write_bytes(made)
    (folder / "conv_f16_ctx.onnx.other").write_bytes(made)
    return folder / "conv_f16_ctx.onnx", ["conv_f16_ctx.onnx", *names]


def in_parts(folder):
    model = three_steps()
    onnx.save(model, folder / "m.onnx")
    (folder / "m.onnx.other").write_bytes(negated(folder / "m.onnx"))
    write_in_parts(folder, model, TWO_PARTS)
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".onnx", ".rknn"))
    return folder / "m.onnx", names


def outcome(path, feed):
    """The result of a session: its outputs, or a documented error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        try:
            with ort_rknn.InferenceSession(path, provider_options=VIRTUAL) as made:
                return [np.asarray(value, np.float32) for value in made.run(None, feed)]
        except DOCUMENTED as error:
            assert str(error)
            return None


def close_to(found, wanted):
    return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-2, atol=1e-2) for a, b in zip(found, wanted))


@pytest.mark.parametrize("make", [with_twin, with_context_node, in_parts])
@pytest.mark.parametrize("how", HOW, ids=lambda how: how.__name__)
@pytest.mark.skipif(sys.platform != "linux", reason="the virtual NPU is for Linux")
def test_a_session_while_its_files_are_exchanged(tmp_path, descriptors, make, how):
    def fresh(name):
        folder = tmp_path / name
        folder.mkdir()
        return folder, *make(folder)

    folder, path, names = fresh("counted")
    shape = read_onnx(path).inputs[0].dims
    feed = {"x": np.random.default_rng(1).standard_normal(shape, dtype=np.float32)}
    with exchange(folder) as seen:
        first = outcome(path, feed)
    assert first is not None and seen.count > 1
    onnx_path = folder / names[-2 if make is with_context_node else names.index(path.name)]
    plain = [onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]).run(None, feed)
             for p in (onnx_path, f"{onnx_path}.other")]  # fmt: skip
    assert close_to(first, plain[0])
    results = 0
    before = descriptors()
    for name in names:
        for at in sampled(seen.count):
            folder, path, _ = fresh(f"{name}-{at}")
            with exchange(folder, at, lambda place=folder / name: how(place)):
                found = outcome(path, feed)
            if found is not None:
                results += 1
                assert [value.shape for value in found] == [value.shape for value in first]
                # What has not its ONNX computes a pattern on the virtual NPU; a session on the ONNX would not.
                assert make is not with_twin or any(close_to(found, wanted) for wanted in plain), (name, at)
            shutil.rmtree(folder)
    assert descriptors() <= before
    if how is not emptied:
        assert results  # from the copy that was read, the ONNX, or the new model


def sampled(count):
    """All of them if ``HOSTILE_EXAMPLES`` is set, else three."""
    every = range(1, count + 1)
    return every if os.environ.get("HOSTILE_EXAMPLES") else sorted({every[i * (count - 1) // 2] for i in range(3)})


# Records and cache entries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW, ids=lambda how: how.__name__)
def test_a_build_record_and_its_onnx(tmp_path, monkeypatch, how):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    for name in ("m.onnx", "m.rk3588.build.json"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(MODELS / "conv_f16.onnx", folder / "m.onnx")
        place = folder / "m.rk3588.build.json"
        record = BuildRecord(
            hashes.sha256_of(folder / "m.onnx"), "rk3588", "2.5.0", {"x": (1, 3, 32, 32)}, (), (), {}, "stretch", None,
            (), True, False, False, {}, result="0" * 64,
        )  # fmt: skip
        record.write(place)
        assert read_record(place, str(folder / "m.onnx")) == record
        for at in (1, 2):
            with exchange(folder, at, lambda target=folder / name: how(target)):
                try:
                    assert read_record(place, str(folder / "m.onnx")) == record
                except (RecordError, OSError) as error:
                    assert str(error)
            shutil.rmtree(folder)
            folder.mkdir()
            shutil.copy(MODELS / "conv_f16.onnx", folder / "m.onnx")
            record.write(place)


@pytest.mark.parametrize("how", HOW, ids=lambda how: how.__name__)
def test_the_onnx_that_an_origin_is_compared_with(tmp_path, monkeypatch, how):
    """Not stale only if the contents were those of the record when they were read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "m.onnx"
    for at in (1, 2, 3):
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)
        shutil.copy(MODELS / "conv_f16.onnx", place)
        origin = Origin.of(place)
        os.utime(place, ns=(1, 1))  # so that it is read
        with exchange(tmp_path, at, lambda: how(place)) as seen:
            said = is_stale(origin, place)
        assert said is None or said
        if at == 1 and seen.count:
            assert said is not None or not place.is_file()


@pytest.mark.parametrize("how", HOW, ids=lambda how: how.__name__)
@pytest.mark.parametrize("name", ["m.onnx", "m.rk3588.rknn"])
def test_stamping_a_model_while_it_changes(tmp_path, monkeypatch, how, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    content = {"m.onnx": "conv_f16.onnx", "m.rk3588.rknn": "conv_f16.rk3588.rknn"}
    for at in range(1, 7):
        folder = tmp_path / str(at)
        folder.mkdir()
        for own, source in content.items():
            shutil.copy(MODELS / source, folder / own)
        with exchange(folder, at, lambda folder=folder: how(folder / name)):
            try:
                stamp(folder / "m.onnx", folder / "m.rk3588.rknn")
            except (StampError, OnnxFileError, RknnFileError, OSError, ValueError) as error:
                assert str(error)
        assert {p.name.removesuffix(".other") for p in folder.iterdir()} <= set(content)  # no scratch file is left


@pytest.mark.parametrize("how", HOW, ids=lambda how: how.__name__)
def test_the_file_of_remembered_hashes(tmp_path, monkeypatch, how):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "m"
    model.write_bytes(b"model")
    os.utime(model, ns=(1, 1))
    wanted = hashes.sha256_of(model)
    place = hashes.hashes_file()
    for at in (1, 2, 3):
        with exchange(tmp_path / "cache", at, lambda: how(place)):
            assert hashes.sha256_of(model) == wanted
        shutil.rmtree(tmp_path / "cache")
        assert hashes.sha256_of(model) == wanted
