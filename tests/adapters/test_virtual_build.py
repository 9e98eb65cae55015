"""Compiling the virtual NPU on first use, and its cache folder."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ort_rknn.adapter import AdapterError, Query
from ort_rknn_virtual import VirtualAdapter, _build
from ort_rknn_virtual._abi import is_open, open_library


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
    monkeypatch.setattr(_build, "_find_zig", lambda: None)


def test_compiles_once(cache, monkeypatch):
    assert _build.cached("rk3566") is None and not cache.exists()
    made = _build.library("rk3566")
    assert made.parent == cache and made.is_file()
    for path in (cache, cache.parent, made):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022
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
    assert [path.name for path in cache.iterdir()] == [".lock"]  # no incomplete file remains


def test_compiler_and_sources_are_in_the_name(cache, monkeypatch, tmp_path):
    plain = _build._file_name("rk3588", _build.Compiler(("cc",), "one"))
    assert plain != _build._file_name("rk3588", _build.Compiler(("cc",), "two"))
    assert plain != _build._file_name("rk3576", _build.Compiler(("cc",), "one"))
    (tmp_path / "other.c").write_text("int x;")
    monkeypatch.setattr(_build, "_SOURCE", tmp_path)
    assert plain != _build._file_name("rk3588", _build.Compiler(("cc",), "one"))


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_a_folder_that_others_can_write_is_refused(cache, which):
    """Also a parent folder: whoever can write to it can replace what is below."""
    cache.mkdir(parents=True, mode=0o700)
    folder = (cache, *cache.parents)[which]
    folder.chmod(0o777)
    with pytest.raises(AdapterError, match=r"0777.*chmod go-w"):
        _build.library("rk3588")


@pytest.mark.parametrize("compiler", [True, False])
def test_a_folder_that_others_can_write_later_on_is_refused(cache, compiler, request):
    """A library that was compiled earlier is not loaded from it."""
    _build.library("rk3566")
    if not compiler:
        request.getfixturevalue("no_compiler")
    for folder in (cache, cache.parent):
        folder.chmod(0o777)
        with pytest.raises(AdapterError, match=r"0777.*chmod go-w"):
            _build.cached("rk3566")
        survey = VirtualAdapter().find(Query(device="virtual:rk3566"))
        assert not survey.devices
        assert f"the folder {folder} is writable for others (mode 0777)" in survey.absences[0].reason
        folder.chmod(0o700)
    moved = cache.rename(cache.parent / "moved")
    cache.symlink_to(moved)
    with pytest.raises(AdapterError, match="link"):
        _build.cached("rk3566")


def test_a_library_in_use_is_chosen_without_asking_for_the_compiler(cache, monkeypatch):
    made = _build.library("rk3566")
    assert not is_open(str(made))
    open_library(str(made))
    assert is_open(str(made)) and _build.cached("rk3566") == made  # remembered from here on
    asked = []
    monkeypatch.setattr(_build, "find_compiler", lambda: asked.append(1))
    assert _build.cached("rk3566") == made and _build.library("rk3566") == made and not asked
    monkeypatch.setenv("CC", "gcc")
    _build.cached("rk3566")
    assert asked  # another request
    monkeypatch.delenv("CC")
    del asked[:]
    made.touch()
    assert not is_open(str(made))
    _build.cached("rk3566")
    assert asked  # another file


@pytest.mark.parametrize("what", ["file", "folder", "above", "owner", "link"])
def test_a_library_in_use_is_still_refused_where_others_can_write(cache, what):
    made = _build.library("rk3566")
    open_library(str(made))
    assert _build.cached("rk3566") == made
    if what == "owner":
        if os.geteuid():
            pytest.skip("only root can give a file away")
        os.chown(cache, 12345, -1)
    elif what == "link":
        cache.symlink_to(cache.rename(cache.parent / "moved"))
    else:
        {"file": made, "folder": cache, "above": cache.parent.parent}[what].chmod(0o777)
    if what == "file":
        assert _build.cached("rk3566") is None
    else:
        with pytest.raises(AdapterError, match="0777|belongs to user|link"):
            _build.cached("rk3566")


def test_a_replaced_library_is_opened_again(cache):
    made = _build.library("rk3566")
    first = open_library(str(made))
    assert open_library(str(made)) is first
    copy = made.with_name("copy.so")
    shutil.copyfile(made, copy)
    copy.replace(made)
    assert not is_open(str(made))
    assert open_library(str(made)) is not first


@pytest.mark.parametrize("content", [b"", b"no library"], ids=["empty", "damaged"])
def test_a_damaged_library_is_named_with_the_remedy(cache, content):
    path = _build.library("rk3566")
    whole = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(AdapterError, match=re.escape(f"{path} cannot be opened") + ".*Delete this file"):
        open_library(str(path))
    path.unlink()
    assert _build.library("rk3566") == path
    assert len(path.read_bytes()) == len(whole)
    open_library(str(path))


def test_a_folder_of_somebody_else_is_refused(cache, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    if os.geteuid() == 0:
        os.chown(cache, 12345, -1)
    else:
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
    assert made.read_bytes()[:4] == b"\x7fELF" and not made.stat().st_mode & 0o022


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


# What is run, and from where -------------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """The working directory is an untrusted project that contains programs with the compilers' names."""
    folder = tmp_path / "project"
    mark = tmp_path / "was run"
    (folder / "ziglang").mkdir(parents=True)
    (folder / "ziglang" / "__init__.py").write_text("")
    (folder / "ziglang" / "__main__.py").write_text(f"open({str(mark)!r}, 'w')")
    for name in ("cc", "gcc", "clang", "as", "ld", "zig", "ziglang/zig"):
        (folder / name).write_text(f"#!/bin/sh\n: > '{mark}'\nexit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.chdir(folder)
    return mark


@pytest.mark.parametrize("before", ["", ".", "./", "bin/..", "relative"])
def test_nothing_is_run_from_the_working_directory(cache, planted, monkeypatch, before):
    monkeypatch.setenv("PATH", before + os.pathsep + os.environ["PATH"])
    for entry in ("", ".", os.getcwd()):
        monkeypatch.syspath_prepend(entry)
    made = _build.library("rk3562")
    assert made.is_file() and not planted.exists()


@pytest.mark.parametrize("cwd_on_path", ["", ".", "absolute"])
def test_no_ziglang_of_the_working_directory(cache, planted, monkeypatch, cwd_on_path):
    """``python -m`` would load it, because it puts the working directory first."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.syspath_prepend(os.getcwd() if cwd_on_path == "absolute" else cwd_on_path)
    compiler = _build.find_compiler()
    assert compiler is None or not compiler.command[0].startswith(os.getcwd())
    if compiler is not None:
        assert os.path.isabs(compiler.command[0]) and compiler.command[1] == "cc"
        assert _build.library("rk3562").is_file()
    assert not planted.exists()


@pytest.mark.parametrize("chosen", ["./cc", "../project/cc", "cc"])
def test_a_named_compiler_is_not_taken_from_the_working_directory(cache, planted, monkeypatch, chosen):
    monkeypatch.setenv("PATH", "." + os.pathsep + ":")
    monkeypatch.setenv("CC", chosen)
    with pytest.raises(AdapterError, match="no such command at an absolute path"):
        _build.find_compiler()
    assert not planted.exists()


def test_a_compiler_that_others_can_exchange_is_not_run(cache, tmp_path, monkeypatch):
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "cc").write_text("#!/bin/sh\nexit 1\n")
    (folder / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder) + os.pathsep + os.environ["PATH"])
    assert _build.find_compiler().command == (str(folder / "cc"),)
    folder.chmod(0o777)
    compiler = _build.find_compiler()
    assert compiler is None or compiler.command[0] != str(folder / "cc")
    monkeypatch.setenv("CC", str(folder / "cc"))
    with pytest.raises(AdapterError, match=r"shared is writable for others \(mode 0777\)"):
        _build.find_compiler()


def test_a_deleted_working_directory_is_no_obstacle(cache, tmp_path):
    code = "import os, sys; d = sys.argv[1]; os.mkdir(d); os.chdir(d); os.rmdir(d)\n"
    code += "from ort_rknn_virtual import _build; print(_build.library('rk3562'))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "gone")], capture_output=True, text=True, env=_with_path()
    )
    assert done.returncode == 0, done.stderr


# Other users -----------------------------------------------------------------------------------------------------

_AS_NOBODY = """
import ctypes, grp, os, pwd, sys  # before: another user may not read this Python's own folders
from ort_rknn.adapter import AdapterError, Query
from ort_rknn_virtual import VirtualAdapter, _build
_build._stem("rk3562")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for flag in sys.argv[1:]:
    _build._FLAGS = tuple("-O0" if flag == "-O3" else flag for flag in _build._FLAGS)
try:
    survey = VirtualAdapter().find(Query(device="virtual:rk3562"))
    print("devices" if survey.devices else survey.absences[0].reason)
    print(ctypes.CDLL(str(_build.library("rk3562"))).rknn_virtual_cores())
except AdapterError as error:
    print("refused:", error)
"""


@pytest.fixture
def another_user(cache, monkeypatch):
    """Runs code as the user nobody, with a cache in a folder that this user may enter (pytest's are closed)."""
    if os.geteuid() != 0:
        pytest.skip("changing the user needs root")
    base = Path(tempfile.mkdtemp(prefix="ort_rknn_"))
    base.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(base / "cache"))

    def run(**environ):
        done = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, "quick"],
            capture_output=True,
            text=True,
            cwd="/",
            env={**_with_path(), "HOME": "/nonexistent", **environ},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield run
    shutil.rmtree(base)


def test_what_root_compiled_may_be_used_by_another_user(another_user):
    made = _build.library("rk3562")
    assert another_user() == "devices\n1\n"
    made.rename(made.with_name(f"{_build._stem('rk3562')}-anotherc.so"))  # by another compiler: it cannot be rebuilt
    assert another_user() == "devices\n1\n"


@pytest.mark.parametrize("how", ["file", "folder", "parent", "owner"])
def test_what_others_could_have_changed_is_not_used(another_user, how):
    made = _build.library("rk3562")
    if how == "owner":
        os.chown(made, 12345, -1)
    else:
        {"file": made, "folder": made.parent, "parent": made.parents[2]}[how].chmod(0o777)
    said = another_user()
    assert said.startswith("there is no virtual NPU here: ")
    # A library that is not safe is not taken, and there is no room for another one.
    assert ("is closed to you" if how in ("file", "owner") else "is writable for others (mode 0777)") in said


def test_no_device_is_seen_where_the_library_cannot_be_kept(another_user):
    closed = _build.cache_folder().parents[2] / "closed"
    closed.mkdir(mode=0o700)
    for place in (closed, closed / "deeper"):
        said = another_user(XDG_CACHE_HOME=str(place)).split("\n")
        assert "there is no virtual NPU here: the virtual NPU cannot be kept in" in said[0]
        assert "Set XDG_CACHE_HOME to a folder of yours" in said[0]
        assert said[1].startswith("refused: the virtual NPU cannot be kept in") and "XDG_CACHE_HOME" in said[1]
