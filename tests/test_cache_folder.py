"""The user's cache folder: one place for the toolkit, compiled models, hashes and the virtual NPU."""

import os
from pathlib import Path

import pytest

from ort_rknn import adapter
from ort_rknn._cli.main import main
from ort_rknn._compile.toolkit import ToolkitError, check_owner, find_toolkit, install, toolkit_folder
from ort_rknn._measure.check_software import cache as examine
from ort_rknn.adapter import cache_folder, why_unsafe
from ort_rknn.files.hashes import hashes_file
from ort_rknn_virtual import _build


@pytest.fixture
def base(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("ORT_RKNN_TOOLKIT", raising=False)
    return tmp_path


def test_everything_cached_lies_in_it(base):
    folder = base / "ort_rknn"
    assert cache_folder() == folder
    assert {toolkit_folder().parent, hashes_file().parent, _build.cache_folder().parent} == {folder}
    assert not folder.exists()


@pytest.mark.parametrize("value", ["", "relative"])
def test_without_a_folder_of_that_name_it_is_in_the_home_folder(monkeypatch, tmp_path, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "ort_rknn"


def test_without_a_home_folder(monkeypatch):
    def none(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)
    assert cache_folder() is None
    assert hashes_file() is None
    with pytest.raises(ToolkitError, match="no home folder.*XDG_CACHE_HOME"):
        toolkit_folder()
    with pytest.raises(adapter.AdapterError, match="no home folder.*XDG_CACHE_HOME"):
        _build.cache_folder()
    assert (examine().state, examine().seen) == ("warning", "there is no home folder for a cache")


@pytest.mark.parametrize("further_up", [False, True])
def test_programs_are_not_run_from_where_others_can_write(base, further_up, monkeypatch):
    """By any folder on the way to them."""
    python = toolkit_folder() / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho run >&2\n")
    python.chmod(0o755)
    check_owner(toolkit_folder())
    open_folder = base if further_up else toolkit_folder()
    open_folder.chmod(0o777)
    assert why_unsafe(toolkit_folder()) == f"the folder {open_folder} is writable for others (mode 0777)"
    for attempt in (find_toolkit, lambda: check_owner(toolkit_folder())):
        with pytest.raises(ToolkitError, match=r"is not used, because the folder .* is writable for others"):
            attempt()
    if further_up:
        assert (examine().state, "is not used: the folder" in examine().seen) == ("warning", True)


def test_nothing_is_installed_where_others_can_write(base, monkeypatch):
    base.chmod(0o777)
    ran = []
    monkeypatch.setattr("ort_rknn._compile.toolkit._interpreter", lambda python: python)
    with pytest.raises(ToolkitError, match="is not used, because the folder"):
        install(python="/usr/bin/python3", say=lambda text: None, run=ran.append)
    assert ran == []


def test_a_folder_that_cannot_be_looked_at_is_not_used(base):
    with pytest.raises(ToolkitError, match="is not used, because .*No such file"):
        check_owner(base / "nothing")


def test_a_healthy_cache(base, capsys):
    assert examine().state == "ok"
    os.mkdir(base / "ort_rknn")
    assert examine().state == "ok"
    assert main(["toolkit", "status", "--json"]) in (0, 1)
    assert str(base / "ort_rknn") in capsys.readouterr().out
