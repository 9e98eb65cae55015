"""The sha256 of files, remembered."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time

import pytest

from ort_rknn.files import hashes
from ort_rknn.files.hashes import hashes_file, sha256_of

OLD = time.time_ns() - 10**12


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ort_rknn"


@pytest.fixture
def reads(monkeypatch):
    """How often a file was read from end to end."""
    made = []
    real = hashes._digest
    monkeypatch.setattr(hashes, "_digest", lambda descriptor: made.append(descriptor) or real(descriptor))
    return made


def file(tmp_path, content=b"abc", mtime=OLD):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    os.utime(path, ns=(mtime, mtime))
    return path


def test_a_file_is_read_once(tmp_path, reads):
    path = file(tmp_path)
    expected = hashlib.sha256(b"abc").hexdigest()
    assert [sha256_of(path), sha256_of(str(path)), sha256_of(path)] == [expected] * 3
    assert len(reads) == 1


def test_a_change_is_noticed(tmp_path, reads):
    path = file(tmp_path)
    sha256_of(path)
    file(tmp_path, b"abd", OLD + 1)
    assert sha256_of(path) == hashlib.sha256(b"abd").hexdigest()
    replacement = tmp_path / "new"
    replacement.write_bytes(b"abe")
    os.utime(replacement, ns=(OLD + 1, OLD + 1))
    replacement.rename(path)  # same path, size and mtime: another inode
    assert sha256_of(path) == hashlib.sha256(b"abe").hexdigest()
    assert len(reads) == 3


def test_a_file_written_in_place_with_its_old_mtime(tmp_path, reads):
    """As ``cp -p`` and ``rsync --inplace -t`` write: same inode, size and mtime."""
    path = file(tmp_path)
    sha256_of(path)
    time.sleep(0.05)  # some file systems count in hundredths of a second
    file(tmp_path, b"abd")
    assert sha256_of(path) == hashlib.sha256(b"abd").hexdigest()
    assert len(reads) == 2


def test_what_was_written_just_now_is_not_remembered(tmp_path, reads):
    path = file(tmp_path, mtime=time.time_ns())
    sha256_of(path)
    sha256_of(path)
    assert len(reads) == 2


def test_the_file_is_private(tmp_path, cache):
    sha256_of(file(tmp_path))
    assert hashes_file() == cache / "hashes.json"
    assert stat.S_IMODE((cache / "hashes.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(cache.stat().st_mode) & 0o077 == 0
    assert [p.name for p in cache.iterdir()] == ["hashes.json"]


@pytest.mark.parametrize("mode", [0o644, 0o620, 0o602])
def test_a_file_that_others_can_write_is_not_used(tmp_path, cache, reads, mode):
    path = file(tmp_path)
    sha256_of(path)
    (cache / "hashes.json").chmod(mode)
    sha256_of(path)
    assert len(reads) == 2
    sha256_of(path)  # written again, privately
    assert len(reads) == 2


def test_a_link_is_not_followed(tmp_path, cache, reads):
    path = file(tmp_path)
    sha256_of(path)
    (cache / "hashes.json").rename(tmp_path / "elsewhere.json")
    (cache / "hashes.json").symlink_to(tmp_path / "elsewhere.json")
    sha256_of(path)
    assert len(reads) == 2


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "[" * 100_000, '{"a": 1}', '{"a": [1, 2, 3, 4, "zz"]}', '{"a": [1, 2, 3, 4, 5]}',
     '{"a": [1, 2, 3, 4, 5, 6]}', "\xff",
     "x" * (2 << 20)],
)  # fmt: skip
def test_damage_is_a_cache_without_entries(tmp_path, cache, content):
    path = file(tmp_path)
    cache.mkdir(parents=True)
    (cache / "hashes.json").write_bytes(content.encode("latin-1"))
    (cache / "hashes.json").chmod(0o600)
    assert sha256_of(path) == hashlib.sha256(b"abc").hexdigest()
    assert list(json.loads((cache / "hashes.json").read_text())) == [str(path)]


def test_it_does_not_grow_without_end(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(hashes, "_MOST", 3)
    for number in range(6):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(b"x")
        os.utime(path, ns=(OLD, OLD))
        sha256_of(path)
    names = [os.path.basename(name) for name in json.loads((cache / "hashes.json").read_text())]
    assert names == ["3.onnx", "4.onnx", "5.onnx"]


def test_without_a_cache_it_is_hashed_each_time(tmp_path, monkeypatch, reads):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    path = file(tmp_path)
    sha256_of(path)
    sha256_of(path)
    assert len(reads) == 2


def test_no_regular_file(tmp_path):
    with pytest.raises(OSError):
        sha256_of(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="regular"):
        sha256_of(tmp_path / "pipe")
