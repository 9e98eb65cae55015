"""Compiling the virtual NPU on first use, and the folder that it is kept in."""

import os
import stat
import subprocess
import sys

import pytest

from ort_rknn.adapter import AdapterError, Query
from ort_rknn_virtual import VirtualAdapter, _build


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    quick = tuple("-O0" if flag == "-O3" else flag for flag in _build._FLAGS)
    assert quick != _build._FLAGS
    monkeypatch.setattr(_build, "_FLAGS", quick)
    return tmp_path / "cache" / "ort_rknn" / "virtual"


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    find = _build.importlib.util.find_spec
    monkeypatch.setattr(_build.importlib.util, "find_spec", lambda name: None if name == "ziglang" else find(name))


def test_compiles_once(cache, monkeypatch):
    assert _build.cached("rk3566") is None and not cache.exists()
    made = _build.library("rk3566")
    assert made.parent == cache and made.is_file()
    for path in (cache, cache.parent, made):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert _build.cached("rk3566") == made
    monkeypatch.setattr(_build, "_compile", None)  # not needed again
    assert _build.library("rk3566") == made
    assert sorted(path.name for path in cache.iterdir()) == sorted([".lock", made.name])


def test_without_a_compiler(cache, no_compiler):
    with pytest.raises(AdapterError) as error:
        _build.library("rk3588")
    assert "gcc" in str(error.value) and "pip install 'ort-rknn[virtual]'" in str(error.value)
    assert not cache.exists()


def test_without_a_compiler_an_earlier_library_does(cache, monkeypatch, request):
    made = _build.library("rk3566")
    request.getfixturevalue("no_compiler")
    assert _build.library("rk3566") == made
    with pytest.raises(AdapterError, match="no C compiler"):
        _build.library("rk3562")


def test_a_named_compiler_is_not_replaced(cache, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(AdapterError, match=r"CC is 'no-such-compiler -m64'.*unset"):
        _build.library("rk3588")
    monkeypatch.setenv("CC", "'")
    with pytest.raises(AdapterError, match="no command"):
        _build.library("rk3588")
    monkeypatch.setenv("CC", "false")
    with pytest.raises(AdapterError, match="false failed"):
        _build.library("rk3588")
    assert [path.name for path in cache.iterdir()] == [".lock"]  # nothing half-made stays


def test_compiler_and_sources_are_in_the_name(cache, monkeypatch, tmp_path):
    plain = _build._file_name("rk3588", _build.Compiler(("cc",), "one"))
    assert plain != _build._file_name("rk3588", _build.Compiler(("cc",), "two"))
    assert plain != _build._file_name("rk3576", _build.Compiler(("cc",), "one"))
    (tmp_path / "other.c").write_text("int x;")
    monkeypatch.setattr(_build, "_SOURCE", tmp_path)
    assert plain != _build._file_name("rk3588", _build.Compiler(("cc",), "one"))


@pytest.mark.parametrize("which", ["virtual", "ort_rknn"])
def test_a_folder_that_others_can_write_is_refused(cache, which):
    cache.mkdir(parents=True, mode=0o700)
    cache.parent.chmod(0o700)
    folder = cache if which == "virtual" else cache.parent
    folder.chmod(0o777)
    with pytest.raises(AdapterError, match=r"0777.*chmod go-w"):
        _build.library("rk3588")


@pytest.mark.parametrize("compiler", [True, False])
def test_a_folder_that_others_can_write_later_on_is_refused(cache, compiler, request):
    """A library that was compiled before is not taken out of it, whoever looks for one."""
    _build.library("rk3566")
    if not compiler:
        request.getfixturevalue("no_compiler")
    for folder in (cache, cache.parent):
        folder.chmod(0o777)
        with pytest.raises(AdapterError, match=r"0777.*chmod go-w"):
            _build.cached("rk3566")
        survey = VirtualAdapter().find(Query(device="virtual:rk3566"))
        assert not survey.devices
        assert f"the cache folder {folder} is writable for others (mode 0777)" in survey.absences[0].reason
        folder.chmod(0o700)
    moved = cache.rename(cache.parent / "moved")
    cache.symlink_to(moved)
    with pytest.raises(AdapterError, match="link"):
        _build.cached("rk3566")


def test_a_folder_of_somebody_else_is_refused(cache, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(AdapterError, match="belongs to user"):
        _build.library("rk3588")


def test_a_link_as_folder_is_refused(cache, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.parent.mkdir(parents=True, mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match="link"):
        _build.library("rk3588")


def test_a_library_that_others_can_write_is_not_taken(cache):
    made = _build.library("rk3562")
    made.write_bytes(b"planted")
    made.chmod(0o777)
    assert _build.cached("rk3562") is None
    assert _build.library("rk3562") == made
    assert made.read_bytes()[:4] == b"\x7fELF" and stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_place_that_cannot_be_written(cache, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(AdapterError, match="XDG_CACHE_HOME"):
        _build.library("rk3588")


def test_processes_at_the_same_time(cache):
    code = "import ctypes; from ort_rknn_virtual import _build; p = _build.library('rk3576'); "
    code += "ctypes.CDLL(str(p)); print(p)"
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=_with_path())
        for _ in range(4)
    ]
    said = {child.communicate(timeout=100)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0] * 4
    assert len(said) == 1
    assert len(list(cache.glob("*.so"))) == 1 and not list(cache.glob(".build-*"))


def _with_path():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_unknown_soc(cache):
    for call in (_build.library, _build.cached, lambda soc: _build.build(soc, "/nowhere")):
        with pytest.raises(AdapterError, match=r"rk9999.*rk3588"):
            call("rk9999")


def test_for_another_machine_with_zig(cache, tmp_path, monkeypatch):
    pytest.importorskip("ziglang", reason="cross compiling needs the package ziglang")
    _build.build("rk3588", tmp_path / "arm.so", target="aarch64-linux-gnu.2.31")
    assert (tmp_path / "arm.so").read_bytes()[:20][18:] == b"\xb7\x00"  # EM_AARCH64


def test_zig_where_there_is_nothing_else(cache, tmp_path, monkeypatch):
    pytest.importorskip("ziglang", reason="this is about the package ziglang")
    monkeypatch.setenv("PATH", "")
    compiler = _build.find_compiler()
    assert compiler is not None and compiler.zig
    made = _build.library("rk3588")
    code = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).rknn_virtual_cores())"
    assert subprocess.check_output([sys.executable, "-c", code, str(made)], text=True).strip() == "3"
