"""Reading files that other processes may change: without mmap, and never half of one version and half of another."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap

import onnx
import pytest
from onnx import helper

from ort_rknn.files import OnnxFileError, RknnFileError, read_onnx
from ort_rknn.files._source import FileData, open_source
from ort_rknn.files._wire import WireError, WireReader
from ort_rknn.files.pinned import Pinned


def many_nodes(count: int = 9000) -> bytes:
    """More than a megabyte of nodes, so that it is read block by block."""
    nodes = [
        helper.make_node("Relu", [f"/module/{i}/some/layer"], [f"/module/{i + 1}/some/layer"], name=f"n{i:0120}")
        for i in range(count)
    ]
    value = [helper.make_tensor_value_info("x", 1, [1, "height"])]
    model = helper.make_model(helper.make_graph(nodes, "graph", value, value), producer_name="p" * 5000)
    helper.set_model_props(model, {f"key{i}": "v" * i for i in range(50)})
    content: bytes = model.SerializeToString()
    assert len(content) > 1 << 20
    return content


def test_a_file_reads_as_its_bytes_do(tmp_path):
    content = many_nodes()
    (tmp_path / "m.onnx").write_bytes(content)
    assert read_onnx(tmp_path / "m.onnx") == read_onnx(content)


def test_every_place_of_a_file(tmp_path):
    content = random.Random(1).randbytes((1 << 20) + 777)
    path = tmp_path / "f"
    path.write_bytes(content)
    with open_source(path, OnnxFileError) as data:
        assert isinstance(data, FileData)
        assert len(data) == len(content)
        draw = random.Random(2)
        for _ in range(3000):
            start = draw.randrange(len(content))
            stop = start + draw.choice([0, 1, 4, 63, 64, 65, 2000, 2048, 2112, 5000, 1 << 21])
            assert data[start:stop] == content[start:stop]
            assert data[start] == content[start]
        assert data[:10] == content[:10]
        with pytest.raises(IndexError):
            data[len(content)]


def fields_of(data: object, size: int) -> list[tuple[int, int, int, int]] | str:
    try:
        return list(WireReader(data, 100_000).fields(0, size))  # type: ignore[arg-type]
    except WireError as problem:
        return str(problem)


@pytest.mark.parametrize("seed", range(20))
def test_damaged_fields_read_alike(tmp_path, seed):
    """Field heads of any length at and across the ends of blocks, with damage."""
    draw = random.Random(seed)
    parts = []
    for _ in range(4000):
        size = draw.choice([0, 1, 100, 127, 128, 300, 2000, 2047])
        number = draw.choice([1, 15, 16, 2047, 1 << 20])
        parts.append(onnx.StringStringEntryProto(key="k" * size).SerializeToString() if size else b"")
        parts.append(_varint(number << 3) + _varint(draw.getrandbits(draw.choice([7, 14, 63]))))
    content = bytearray(b"".join(parts))
    assert len(content) > 1 << 20
    for _ in range(draw.choice([0, 1, 5])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path = tmp_path / "f"
    path.write_bytes(content)
    with open_source(path, OnnxFileError) as data:
        assert fields_of(data, len(content)) == fields_of(bytes(content), len(content))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@pytest.mark.parametrize("size", [1000, 3 << 20], ids=["read at once", "read in blocks"])
@pytest.mark.parametrize("how", ["shorter", "longer", "same size"])
def test_a_file_that_changes_while_it_is_read(tmp_path, descriptors, size, how):
    path = tmp_path / "m.rknn"
    path.write_bytes(b"x" * size)
    os.utime(path, ns=(1, 1))
    before = descriptors()
    said = r"m\.rknn was changed in place.*wait until it is written"
    with pytest.raises(RknnFileError, match=said), open_source(path, RknnFileError) as data:
        with path.open("r+b") as file:
            if how == "shorter":
                file.truncate(size // 2)
            else:
                file.seek(size if how == "longer" else 0)
                file.write(b"y")
        assert data[size - 100 : size]
    assert descriptors() == before


def test_the_reader_of_a_model_that_became_another_one_says_so(tmp_path, monkeypatch):
    """Not "a damaged model", which it never was."""
    path = tmp_path / "m.onnx"
    path.write_bytes(many_nodes())
    os.utime(path, ns=(1, 1))
    window = FileData.window

    def cut(self: FileData, position: int) -> tuple[bytes, int]:
        if position > 300_000:
            os.truncate(path, 100_000)
        return window(self, position)

    monkeypatch.setattr(FileData, "window", cut)
    with pytest.raises(OnnxFileError, match="changed in place: it had"):
        read_onnx(path)


def test_no_signal_when_a_model_is_cut_short_and_written_again(tmp_path):
    """Sessions and readers, while another process rewrites the file as fast as it can."""
    content = many_nodes()
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    script = f"""
        import time, ort_rknn
        from ort_rknn.files import read_onnx, read_rknn
        end, read = time.monotonic() + 2, 0
        while time.monotonic() < end or not read:
            for make in (read_onnx, read_rknn, ort_rknn.InferenceSession):
                try:
                    make({str(path)!r})
                except Exception:
                    pass
                read += 1
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    while child.poll() is None:
        with path.open("r+b") as file:
            file.truncate(4096)
            file.write(content)
    assert child.returncode == 0


def test_nothing_is_mapped():
    """In the product: a mapped file that is cut short ends the process."""
    import ort_rknn
    import ort_rknn_librknnrt

    for package in (ort_rknn, ort_rknn_librknnrt):
        for folder, _, names in os.walk(os.path.dirname(package.__file__)):
            for name in (name for name in names if name.endswith(".py")):
                path = os.path.join(folder, name)
                if path.endswith("ort_rknn/adapter/testing/_shared.py"):
                    continue  # memory that it has just created
                with open(path) as file:
                    assert "import mmap" not in file.read(), name


# A pinned file ----------------------------------------------------------------------------------------------------


def test_a_pinned_file_outlives_its_path(tmp_path):
    content = many_nodes()
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with Pinned(path) as file:
        assert file.is_at_its_path()
        os.replace(_written(tmp_path / "other", b"other"), path)
        assert not file.is_at_its_path()
        assert file.change() is None
        assert read_onnx(file) == read_onnx(content)
        path.unlink()
        assert not file.is_at_its_path()
        with open(file.reopen_path(), "rb") as again:
            assert again.read() == content


def _written(path, content):
    path.write_bytes(content)
    return path


def test_a_pinned_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _written(tmp_path / "m", b"1")
    with Pinned("m") as file:
        monkeypatch.chdir("/")
        assert file.path == str(tmp_path / "m")
        assert file.is_at_its_path()


def test_a_pinned_file_that_is_rewritten(tmp_path):
    path = _written(tmp_path / "m", b"12345")
    os.utime(path, ns=(1, 1))
    with Pinned(path) as file:
        path.write_bytes(b"54321")
        assert "written to again" in (file.change() or "")
        path.write_bytes(b"1234")
        assert "it had 5 bytes, now it has 4" in (file.change() or "")
        with pytest.raises(EOFError, match="ends at byte 4"):
            file.read(0, 5)


def test_a_pinned_file_is_closed(tmp_path, descriptors):
    path = _written(tmp_path / "m", b"1")
    before = descriptors()
    file = Pinned(path)
    assert descriptors() == before + 1
    assert not os.get_inheritable(file.descriptor)
    file.close()
    file.close()
    assert descriptors() == before
    file = Pinned(path)
    del file
    assert descriptors() == before


def test_what_cannot_be_pinned(tmp_path, descriptors):
    os.mkfifo(tmp_path / "pipe")
    before = descriptors()
    with pytest.raises(IsADirectoryError):
        Pinned(tmp_path)
    with pytest.raises(ValueError, match="not a regular file"):
        Pinned(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        Pinned(tmp_path / "nothing")
    assert descriptors() == before


def test_a_child_reads_the_same_places(tmp_path):
    """A descriptor's position is shared with a forked child; none is used."""
    path = _written(tmp_path / "m", bytes(range(256)))
    with Pinned(path) as file:
        child = os.fork()
        if child == 0:
            os._exit(0 if all(file.read(i, 1) == bytes([i]) for i in range(256)) else 1)
        assert all(file.read(i, 1) == bytes([i]) for i in range(256))
        assert os.waitpid(child, 0)[1] == 0


def test_memory_while_reading(tmp_path):
    import tracemalloc

    path = tmp_path / "m.onnx"
    path.write_bytes(many_nodes(40_000))
    tracemalloc.start()
    try:
        read_onnx(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
