"""Files and folders that are closed to the user: the text names the model, the folder, and what to do."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import pytest

import ort_rknn as ort
from ort_rknn.files import find_twins, is_there, why_unreadable

MODELS = Path(__file__).parent / "models"
NOBODY = 65534


@pytest.fixture
def folder():
    """A folder that every user may enter, unlike pytest's."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def as_another_user(function):
    """What ``function`` returns in a child that is not root; root may read everything."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = function()
        except BaseException:
            answer = traceback.format_exc()
        os.write(send, pickle.dumps(answer))
        os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        answer = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    return answer


def put(folder: Path) -> Path:
    shutil.copy(MODELS / "conv_f16.onnx", folder / "m.onnx")
    return folder / "m.onnx"


def explained(path: Path, **options: str) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ort.InferenceSession(path, provider_options={"device": "rk3588", **options}).explain()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def test_a_twin_that_may_not_be_read(npu, folder):
    path = put(folder)
    explained(path)  # whatever is imported late; the other user may not read the interpreter
    twin = folder / "m.rknn"
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", twin)
    twin.chmod(0)
    said = as_another_user(lambda: explained(path))
    assert f"{twin} may not be read by this user: chmod a+r '{twin}', or run as its owner" in said


def test_a_twin_behind_a_closed_folder(npu, folder):
    """As a hub's cache that another user filled."""
    path = put(folder)
    explained(path)
    closed = folder / "blobs"
    closed.mkdir()
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", closed / "blob")
    (folder / "m.rknn").symlink_to("blobs/blob")
    closed.chmod(0o700 if os.geteuid() == 0 else 0)
    assert as_another_user(lambda: find_twins(path, "rk3588")) == [folder / "m.rknn"]
    said = as_another_user(lambda: explained(path))
    closed.chmod(0o755)
    assert f"{folder / 'm.rknn'} (a link to {closed / 'blob'}) lies in a folder that is closed to this user" in said
    assert f"open {closed} (chmod a+x), or copy the model" in said


def test_a_named_onnx_that_may_not_be_read(npu, folder):
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", folder / "m.rknn")
    other = put(folder)
    explained(other)
    other.chmod(0)
    said = as_another_user(lambda: explained(folder / "m.rknn", onnx_model=str(other)))
    assert said.startswith("OptionError")
    assert f"{other} may not be read by this user: chmod a+r" in said


def test_other_errors_keep_their_words(folder):
    assert why_unreadable("x", ValueError("not a model")) == "not a model"
    assert not is_there(folder / "nothing")
    assert is_there(folder)
    assert not is_there("a\0b")


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME"])
def test_a_cache_below_a_closed_folder(folder, variable, monkeypatch):
    """The toolkit's cache; the virtual NPU's has its own tests."""
    from ort_rknn._compile import toolkit
    from ort_rknn._compile.toolkit import ToolkitError, install

    monkeypatch.setattr(toolkit, "_interpreter", lambda python: python)  # another user may not run this one
    closed = folder / "home"
    closed.mkdir()
    closed.chmod(0o700 if os.geteuid() == 0 else 0)

    def attempt() -> str:
        os.environ.pop("XDG_CACHE_HOME", None)
        os.environ[variable] = str(closed)
        try:
            install(python=sys.executable, say=lambda text: None, run=lambda command: None)
        except ToolkitError as error:
            return str(error)
        return "nothing"

    said = as_another_user(attempt)
    assert "rknn-toolkit2 cannot be kept in" in said
    assert str(closed) in said
    assert "set XDG_CACHE_HOME to a folder of yours" in said


def test_a_compiled_model_that_was_given(npu, folder):
    compiled = folder / "m.rknn"
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", compiled)
    explained(compiled)  # whatever is imported late
    compiled.chmod(0)
    said = as_another_user(lambda: explained(compiled))
    assert said.startswith("Fail") and said.endswith(
        f"{compiled} may not be read by this user: chmod a+r '{compiled}', or run as its owner"
    )


def written_by_another_user(folder: Path, function):
    """What ``function`` says in a folder that only its owner may write to."""
    folder.chmod(0o555)
    said = as_another_user(function)
    folder.chmod(0o755)
    text = f"this user may not write into this folder; run as its owner, or use a folder of your own: '{folder}'"
    assert text in said, said
    return said


def test_a_folder_where_nothing_may_be_written(folder):
    from ort_rknn._compile.put import put as put_file
    from ort_rknn.files import saved, stamp

    path = put(folder)
    compiled = folder / "m.rknn"
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", compiled)

    def refusal(function):
        def attempt():
            try:
                function()
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return "nothing"

        return attempt

    stamp(path, compiled)  # whatever is imported late
    writing = refusal(lambda: saved.put(os.fspath(folder / "m_ctx.onnx"), b"x", replace=False))
    written_by_another_user(folder, writing)
    written_by_another_user(folder, refusal(lambda: stamp(path, compiled)))
    written_by_another_user(folder, refusal(lambda: put_file(compiled, lambda file: None)))
    assert sorted(os.listdir(folder)) == ["m.onnx", "m.rknn"]
