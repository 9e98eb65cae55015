"""A session does not need its files after creation: it keeps its model if they are deleted or replaced, or were
relative before a chdir."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import Fail, RuntimeException
from support.ep_models import conv_in_a_node

import ort_rknn as ort
from ort_rknn._executor.cpu_twin import CpuTwin
from ort_rknn.adapter import AdapterError, ModelSource
from ort_rknn.files.pinned import FileChangedError, Pinned, PinnedModel

MODELS = Path(__file__).parent / "models"
VIRTUAL = {"device": "virtual:rk3588"}
NPU, CPU = "RKNNExecutionProvider", "CPUExecutionProvider"


def descriptors() -> list[str]:
    """The paths of the open descriptors."""
    out = []
    for number in os.listdir("/proc/self/fd"):
        try:
            out.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass
    return out


def open_models(folder: Path) -> int:
    return sum(path.startswith(str(folder)) for path in descriptors())


def put(folder: Path, *, external: bool = False) -> Path:
    """The dynamic model and its twin in ``folder``."""
    path = folder / "m.onnx"
    if external:
        model = onnx.load(MODELS / "dynamic.onnx")
        onnx.save_model(model, path, save_as_external_data=True, location="m.bin", size_threshold=0)
    else:
        shutil.copy(MODELS / "dynamic.onnx", path)
    shutil.copy(MODELS / "dynamic.rk3588.rknn", folder / "m.rknn")
    return path


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def replaced(folder: Path) -> None:
    """All files by others of their names, as a download does it."""
    for path in folder.iterdir():
        other = folder.parent / "other"
        other.write_bytes(b"something else")
        os.replace(other, path)


def left(folder: Path) -> None:
    """The working directory is another one."""
    os.chdir("/")


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal(shape, dtype=np.float32)}


def on_cpu(data: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(MODELS / "dynamic.onnx").run(None, data)[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    gc.collect()
    assert open_models(tmp_path) == 0


@pytest.mark.parametrize("after", [gone, replaced, left])
@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
def test_a_shape_that_was_not_compiled(folder, external, after):
    """The CPU session is created at the first call that needs it."""
    put(folder, external=external)
    with ort.InferenceSession("m.onnx", provider_options={**VIRTUAL, "on_missing_shape": "cpu"}) as session:
        after(folder)
        data = feed(1, 3, 20, 12)
        assert np.array_equal(session.run(None, data)[0], on_cpu(data))
        assert np.array_equal(session.run(None, data)[0], on_cpu(data))
    assert open_models(folder) == 0


@pytest.mark.parametrize("after", [gone, replaced])
def test_external_data_of_a_model_in_memory(folder, after):
    """It is in a folder that the SessionOptions name."""
    path = put(folder, external=True)
    shutil.copy(folder / "m.rknn", folder.parent / "m.rknn")
    so = ort.SessionOptions()
    so.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options = {**VIRTUAL, "on_missing_shape": "cpu", "rknn_model": str(folder.parent / "m.rknn")}
    with ort.InferenceSession(path.read_bytes(), so, provider_options=options) as session:
        after(folder)
        for shape in ((1, 3, 20, 12), (1, 3, 32, 32)):
            data = feed(*shape)
            assert np.abs(session.run(None, data)[0] - on_cpu(data)).max() < 1e-2


@pytest.mark.parametrize("name", ["m.onnx", "m.bin"])
def test_a_model_that_is_rewritten_in_place_is_an_error(folder, name):
    """Never another model's numbers."""
    put(folder, external=True)
    data = feed(1, 3, 32, 32)
    with ort.InferenceSession("m.onnx", provider_options={**VIRTUAL, "on_missing_shape": "cpu"}) as session:
        before = session.run(None, data)[0]
        content = (folder / name).read_bytes()
        os.utime(folder / name, ns=(1, 1))
        (folder / name).write_bytes(content[::-1])
        with pytest.raises(Exception, match=rf"{name} was changed in place.*make the session again"):
            session.run(None, feed(1, 3, 20, 12))
        with pytest.raises(Fail, match=rf"{name} was changed in place"):
            session.set_providers([CPU])
        assert session.get_providers()[0] == NPU
        assert np.array_equal(session.run(None, data)[0], before)


@pytest.mark.parametrize("after", [gone, replaced, left])
@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
def test_other_providers_later(folder, external, after):
    """To the CPU, back, and to other options: the session still has the model that it was created with."""
    put(folder, external=external)
    data = feed(1, 3, 32, 32)
    with ort.InferenceSession("m.onnx", provider_options=VIRTUAL) as session:
        after(folder)
        assert np.abs(session.run(None, data)[0] - on_cpu(data)).max() < 1e-2
        for _ in range(2):
            session.set_providers([CPU])
            assert session.get_providers() == [CPU]
            assert np.array_equal(session.run(None, data)[0], on_cpu(data))
            session.set_providers([NPU], [{**VIRTUAL, "on_missing_shape": "cpu"}])
            assert session.get_providers()[0] == NPU
            assert np.abs(session.run(None, data)[0] - on_cpu(data)).max() < 1e-2
            other = feed(1, 3, 20, 12)
            assert np.array_equal(session.run(None, other)[0], on_cpu(other))
        assert session._model_path == "m.onnx"
    assert open_models(folder) == 0


def test_a_compiled_model_and_its_onnx(folder):
    put(folder)
    data = feed(1, 3, 32, 32)
    with ort.InferenceSession("m.rknn", provider_options=VIRTUAL) as session:
        gone(folder)
        session.set_providers([CPU])
        assert np.array_equal(session.run(None, data)[0], on_cpu(data))


def test_a_cpu_session_finds_its_model_after_a_chdir(folder):
    put(folder)
    session = ort.InferenceSession("m.onnx", providers=[CPU])
    os.chdir("/")
    session.set_providers([NPU], [VIRTUAL])
    assert session.get_providers()[0] == NPU
    session.set_providers([CPU])
    session.close()


def test_a_twin_that_is_new_is_taken(folder):
    """set_providers() plans again: a model at its path is examined again, with the files beside it."""
    put(folder)
    (folder / "m.rknn").rename(folder / "hidden")
    session = ort.InferenceSession("m.onnx", providers=[CPU])
    (folder / "hidden").rename(folder / "m.rknn")
    session.set_providers([NPU], [VIRTUAL])
    assert "m.rknn" in session.explain()
    session.close()


@pytest.mark.parametrize("how", ["close", "drop", "set_providers", "failed"])
def test_descriptors(folder, how):
    path = put(folder, external=True)
    options = {**VIRTUAL, "on_missing_shape": "cpu", "schedule": "0,1", "disable_dup_context": True}
    for _ in range(3):
        if how == "failed":
            with pytest.raises(ort.OptionError):
                ort.InferenceSession(path, provider_options={**options, "schedule": "7"})
            with pytest.raises(ort.OptionError):
                ort.InferenceSession(path, provider_options={**options, "input_dtype": {"nothing": "int8"}})
            continue
        session = ort.InferenceSession(path, provider_options=options)
        assert 0 < open_models(folder) < 10
        session.run(None, feed(1, 3, 20, 12))
        if how == "close":
            session.close()
        elif how == "set_providers":
            session.set_providers([NPU], [VIRTUAL])
            few = open_models(folder)
            session.set_providers([NPU], [VIRTUAL])
            assert open_models(folder) == few
        del session
        gc.collect()
        assert open_models(folder) == 0


def test_a_cpu_session_holds_nothing_open(folder):
    path = put(folder)
    sessions = [ort.InferenceSession(path, providers=[CPU]) for _ in range(3)]
    assert open_models(folder) == 0
    del sessions


def test_contexts_made_later_are_of_the_same_file(folder):
    """``disable_dup_context``, and adapters that load the model for every context."""
    put(folder)
    options = {**VIRTUAL, "disable_dup_context": True}
    with ort.InferenceSession("m.onnx", provider_options=options) as session:
        model = session._npu.executor.model
        replaced(folder)
        context = model.context(2)
        context.close()
        (folder / "m.rknn").unlink()
        model.context(2).close()


def test_the_source_of_a_file_that_was_changed(folder):
    path = put(folder)
    with Pinned(path) as file:
        source = ModelSource(path=str(path), file=file)
        assert source.open_path() == str(path)
        path.rename(folder / "elsewhere")
        assert source.open_path() == f"/proc/self/fd/{file.descriptor}"
        (folder / "elsewhere").write_bytes(b"1")
        with pytest.raises(AdapterError, match="changed in place"):
            source.open_path()
        assert source == ModelSource(path=str(path))


def test_an_ep_context_model_and_its_side_file(folder):
    from ort_rknn.files import read_onnx

    model = read_onnx(MODELS / "conv_f16.onnx")
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", folder / "part.rknn")
    shutil.copy(MODELS / "conv_f16.onnx", folder / "m.onnx")
    (folder / "m_ctx.onnx").write_bytes(conv_in_a_node("part.rknn", embed_mode=0))
    data = {model.inputs[0].name: np.ones(model.inputs[0].dims, np.float32)}
    with ort.InferenceSession("m_ctx.onnx", provider_options=VIRTUAL) as session:
        before = session.run(None, data)[0]
        gone(folder)
        session.set_providers([NPU], [{**VIRTUAL, "schedule": "0,1"}])
        assert np.array_equal(session.run(None, data)[0], before)
        session.set_providers([CPU])
        assert np.array_equal(
            session.run(None, data)[0], onnxruntime.InferenceSession(MODELS / "conv_f16.onnx").run(None, data)[0]
        )


# The parts --------------------------------------------------------------------------------------------------------


def test_external_data_in_many_files(folder):
    """Files are too many to keep open, but changes to them are still detected."""
    path = put(folder)
    names = [f"weight{i}" for i in range(40)]
    for name in names:
        (folder / name).write_bytes(b"1")
    model = PinnedModel(path, names)
    assert open_models(folder) < 20
    with model.at_a_path() as where:
        assert where == str(path)
    (folder / names[-1]).unlink()
    with pytest.raises(FileChangedError, match="weight39 was deleted or replaced"), model.at_a_path():
        pass
    model.close()


def test_names_that_lead_out_of_the_folder_are_not_opened(folder, tmp_path):
    path = put(folder)
    (tmp_path / "secret").write_bytes(b"1")
    model = PinnedModel(path, ["../secret", str(tmp_path / "secret"), "", "a\0b", "m.rknn"])
    assert open_models(tmp_path) == 2
    model.close()
    assert open_models(tmp_path) == 0


def test_the_private_folder_goes(folder):
    path = put(folder, external=True)
    model = PinnedModel(path, ["m.bin"], ["m.rknn"])
    gone(folder)
    with model.at_a_path(with_all=True) as where:
        private = Path(where).parent
        assert sorted(p.name for p in private.iterdir()) == ["m.bin", "m.onnx", "m.rknn"]
        assert private.stat().st_mode & 0o777 == 0o700
        assert (private / "m.rknn").read_bytes() == (MODELS / "dynamic.rk3588.rknn").read_bytes()
    assert not private.exists()
    model.close()


def test_a_closed_twin_says_so(folder):
    twin = CpuTwin(str(put(folder)))
    twin.close()
    twin.close()
    with pytest.raises(RuntimeException, match="the session was closed"):
        twin._made()


def test_a_twin_that_cannot_be_opened(folder):
    with pytest.raises(Fail, match="the ONNX twin for the CPU cannot be opened: .*nothing"):
        CpuTwin(str(folder / "nothing.onnx"))
