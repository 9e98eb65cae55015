"""Writing the record of its origin into a compiled model."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest

import ort_rknn
from ort_rknn.files import Origin, RknnFileError, StampError, hashes, is_stale, judge_twin, read_rknn, stamp

MODELS = Path(__file__).parents[1] / "models"
COMPILED = sorted(path.name for path in MODELS.glob("*.rknn"))


def pair(tmp_path: Path, name: str = "conv_f16.rk3588.rknn") -> tuple[Path, Path]:
    """A compiled model and its ONNX, as twins in a folder."""
    onnx_name = f"{name.split('.')[0]}.onnx"
    for each in (name, onnx_name):
        shutil.copyfile(MODELS / each, tmp_path / each)
    return tmp_path / onnx_name, tmp_path / name


@pytest.mark.parametrize("name", COMPILED)
def test_all_but_the_record_stays(tmp_path, name):
    onnx_path, path = pair(tmp_path, name)
    before, content = read_rknn(path), path.read_bytes()
    record = stamp(onnx_path, path)
    after = read_rknn(path)
    assert Origin.parse(after.custom_string) == record == Origin.of(onnx_path, toolkit=before.toolkit_version)
    assert dataclasses.replace(after, size=before.size, custom_string=before.custom_string) == before
    assert is_stale(record, onnx_path) is None
    # Weights and programs keep their places: only the length, one offset and the end of the model part differ.
    length = struct.unpack("<Q", content[16:24])[0]
    new = path.read_bytes()
    changed = [at for at in range(64 + length) if content[at] != new[at]]
    assert set(changed) - set(range(16, 24)) <= set(range(min(changed, default=0), 64 + length))
    assert len(changed) <= 8
    new_length = struct.unpack("<Q", new[16:24])[0]
    assert new_length % 64 == 0 and new[64 + new_length :] == content[64 + length :]


@pytest.mark.parametrize("name", ["conv_i8.rk3588.rknn", "dynamic.rk3588.rknn", "batch4.rk3588.rknn"])
def test_a_stamped_model_runs(tmp_path, name):
    """On the virtual NPU, which reads the file with separate C code."""
    onnx_path, path = pair(tmp_path, name)
    options = {"device": "virtual:rk3588", "rknn_model": str(path)}

    def results():
        with ort_rknn.InferenceSession(onnx_path, provider_options=options) as session:
            rng = np.random.default_rng(1)
            shapes = session.shape_sets[0] if session.shape_sets else [item.shape for item in session.get_inputs()]
            feeds = {}
            for item, shape in zip(session.get_inputs(), shapes):
                shape = [dim if isinstance(dim, int) else 4 for dim in shape]
                feeds[item.name] = rng.normal(size=shape).astype(np.float32)
            return session.run(None, feeds), session.explain()

    plain, told = results()
    assert "no record of its origin" in told
    stamp(onnx_path, path)
    stamped, told = results()
    assert "no record of its origin" not in told
    for one, other in zip(plain, stamped):
        np.testing.assert_array_equal(one, other)


def test_a_second_stamp_takes_the_place_of_the_first(tmp_path):
    onnx_path, path = pair(tmp_path)
    stamp(onnx_path, path, independent=True)
    size = path.stat().st_size
    assert stamp(onnx_path, path).independent is True  # nothing new was stated
    assert stamp(onnx_path, path, independent=False).independent is False
    assert path.stat().st_size - size <= 64 + 1024
    onnx.save(onnx.load(onnx_path), onnx_path)
    os.utime(onnx_path, ns=(1, 1))
    content = onnx_path.read_bytes() + b"\x32\x00"  # an empty documentation: another sha256
    onnx_path.write_bytes(content)
    assert stamp(onnx_path, path).independent is None  # stated about another ONNX
    assert is_stale(Origin.parse(read_rknn(path).custom_string), onnx_path) is None


def test_staleness_is_noticed(tmp_path):
    onnx_path, path = pair(tmp_path)
    stamp(onnx_path, path)
    model = onnx.load(onnx_path)
    model.doc_string = "changed"
    onnx.save(model, onnx_path)
    with pytest.warns(ort_rknn.FallbackWarning, match="stale"):
        ort_rknn.InferenceSession(onnx_path, provider_options={"device": "virtual:rk3588"})


def test_without_a_record_it_is_said_quietly(tmp_path, caplog, recwarn):
    """One line in the report and one INFO record, both with the command that writes a record."""
    onnx_path, path = pair(tmp_path)
    command = f"ort-rknn stamp {onnx_path} {path}"

    def told():
        caplog.clear()
        with caplog.at_level("INFO", "ort_rknn"):
            session = ort_rknn.InferenceSession(onnx_path, provider_options={"device": "virtual:rk3588"})
        with session:
            lines = [line for line in session.explain().splitlines() if command in line]
        return lines, [record for record in caplog.records if command in record.getMessage()]

    lines, records = told()
    assert len(lines) == 1 and [record.levelname for record in records] == ["INFO"]
    stamp(onnx_path, path)
    assert told() == ([], [])
    assert not recwarn


def test_a_copied_onnx_is_hashed_once(tmp_path, monkeypatch):
    """Copying changes the mtime, as scp does: the first session reads the file to see that it is the same."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    (tmp_path / "m").mkdir()
    onnx_path, path = pair(tmp_path / "m")
    stamp(onnx_path, path)
    os.utime(onnx_path, ns=(10**18, 10**18))
    made = []
    real = hashes._digest
    monkeypatch.setattr(hashes, "_digest", lambda descriptor: made.append(descriptor) or real(descriptor))
    for _ in range(3):
        file = read_rknn(path)
        assert judge_twin(file, soc="rk3588", onnx_path=onnx_path).fit
    assert len(made) == 1


@pytest.mark.parametrize("independent", [True, False])
def test_what_is_stated_about_the_samples_is_heeded(tmp_path, independent):
    onnx_path, path = pair(tmp_path, "free_batch.rk3588.rknn")
    stamp(onnx_path, path, independent=independent)
    with ort_rknn.InferenceSession(onnx_path, provider_options={"device": "virtual:rk3588"}) as session:
        told = next(line for line in session.explain().splitlines() if line.startswith("batch:"))
        assert "record says" in told and told.startswith("batch:     any") is independent


def test_mode_is_kept_and_nothing_is_left_over(tmp_path):
    onnx_path, path = pair(tmp_path)
    path.chmod(0o640)
    with open(path, "rb") as held:
        inode = os.fstat(held.fileno()).st_ino
        stamp(onnx_path, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640 and path.stat().st_ino != inode
        assert len(held.read()) < path.stat().st_size  # a process that has the old file open keeps it
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((onnx_path.name, path.name))


def test_what_does_not_fit_is_left_alone(tmp_path):
    _, path = pair(tmp_path)
    before = path.read_bytes()
    for other in ("two_io.onnx", "nd.onnx", "batch4.onnx", "image_u8.onnx"):
        with pytest.raises(StampError, match="another model"):
            stamp(MODELS / other, path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_the_custom_string_of_somebody_else(tmp_path):
    onnx_path, path = pair(tmp_path)
    record = stamp(onnx_path, path)
    text = read_rknn(path).custom_string
    content = path.read_bytes()
    theirs = "labels: cat, dog".ljust(len(text)).encode()
    path.write_bytes(content.replace(text.encode(), theirs))
    with pytest.raises(StampError, match="custom string 'labels: cat, dog"):
        stamp(onnx_path, path)
    # A JSON object keeps its members.
    theirs = '{"labels":["cat","dog"]}'.ljust(len(text)).encode()
    path.write_bytes(content.replace(text.encode(), theirs))
    assert stamp(onnx_path, path) == record
    found = read_rknn(path).custom_string
    assert Origin.others_in(found) == {"labels": ["cat", "dog"]} and Origin.parse(found) == record
    assert len(found) < 1024


def test_a_record_that_is_too_long(tmp_path):
    onnx_path, path = pair(tmp_path)
    long = onnx_path.with_name("x" * 240 + ".onnx")
    onnx_path.rename(long)
    assert stamp(long, path).onnx_name == long.name
    text = read_rknn(path).custom_string.encode()
    labels = b'{"labels":"' + b"y" * (len(text) - 13) + b'"}'
    for _ in range(2):  # each time what is not ours grows
        path.write_bytes(path.read_bytes().replace(text, labels))
        stamped = path.read_bytes()
        try:
            stamp(long, path)
        except StampError as error:
            assert "fewer than 1024" in str(error) and path.read_bytes() == stamped
            return
        text = read_rknn(path).custom_string.encode()
        labels = b'{"labels":"' + b"y" * (len(text) - 13) + b'"}'
    pytest.fail("a custom string of 1024 characters or more was written")


def test_links_are_not_replaced(tmp_path):
    onnx_path, path = pair(tmp_path)
    link = tmp_path / "link.rknn"
    link.symlink_to(path)
    with pytest.raises(StampError, match="is a link"):
        stamp(onnx_path, link)


def test_other_files(tmp_path):
    onnx_path, path = pair(tmp_path)
    with pytest.raises(RknnFileError):
        stamp(onnx_path, onnx_path)
    with pytest.raises(FileNotFoundError):
        stamp(onnx_path, tmp_path / "nothing.rknn")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RknnFileError, match="cut short"):
        stamp(onnx_path, path)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_stamped_well_or_not_at_all(tmp_path, seed):
    onnx_path, path = pair(tmp_path)
    rng = np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    for at in rng.integers(0, min(4096, len(content)), 6):
        content[at] = rng.integers(256)
    path.write_bytes(content)
    try:
        record = stamp(onnx_path, path)
    except (StampError, RknnFileError):
        assert path.read_bytes() == content
    else:
        assert Origin.parse(read_rknn(path).custom_string) == record
    assert len(list(tmp_path.iterdir())) == 2
