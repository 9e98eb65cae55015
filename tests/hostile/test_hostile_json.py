"""Untrusted records, reports and options: a result, or the documented error."""

import json
import math
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.hostile_inputs import at_most, careful, damaged_json, texts, values

import ort_rknn
from ort_rknn._bench.compare import read_report
from ort_rknn._compile.record import BuildRecord, RecordError, read_record
from ort_rknn._json import JsonError, parse_json, read_json
from ort_rknn._measure import top as top_module
from ort_rknn._options import Options, read_options
from ort_rknn.files import Origin, hashes

ONNX_SHA = "5" * 64
RECORD = {
    "version": 4,
    "sha256": ONNX_SHA,
    "result": "c" * 64,
    "target": "rk3588",
    "toolkit": "2.5.0",
    "shapes": {"x": [1, 3, 8, 8], "y": [1]},
    "mean": [[1.0, 2.0, 3.0]],
    "std": [[1.0, 2.0, 3.0], [4]],
    "freeze": {"z": [[1, 2.5], [3, 4]], "flag": True},
    "fit": "letterbox",
    "data": "/pictures",
    "samples": ["a" * 64, "b" * 64],
    "more_shapes": [{"x": [1, 3, 9, 9], "y": [2]}],
    "batch": 4,
    "whole": True,
    "lowered": True,
    "hybrid": False,
    "algorithm": "mmse",
    "on_cpu": {"3": "Loop: its inner graphs run on the CPU"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("json")


@pytest.fixture(autouse=True)
def _known_onnx(monkeypatch):
    monkeypatch.setattr("ort_rknn._compile.record.sha256_of", lambda path: ONNX_SHA)


def the_record(content, place):
    place.write_bytes(content)
    return read_record(place, "m.onnx")


def check_record(record):
    assert isinstance(record, BuildRecord)
    assert all(type(d) is int and 0 < d < 2**31 for of in record.shape_sets for shape in of.values() for d in shape)
    assert record.batch is None or (type(record.batch) is int and record.batch > 0)
    assert all(type(x) is float and math.isfinite(x) for side in (record.mean, record.std) for row in side for x in row)
    assert all(x != 0 for row in record.std for x in row)
    assert record.fit in ("letterbox", "stretch") and record.algorithm in ("normal", "mmse", "rounded")
    assert all(type(key) is int and key >= 0 for key in record.on_cpu)
    np.asarray([0, *record.freeze], object)
    for name in (*record.shapes, *record.freeze, *record.samples, record.data or "", record.toolkit):
        os.fsencode(name)


@pytest.mark.parametrize("algorithm", ["normal", "mmse", "rounded"])
def test_a_good_record_is_read_as_it_was_written(algorithm, folder):
    record = the_record(json.dumps({**RECORD, "algorithm": algorithm}).encode(), folder / "m.rk3588.build.json")
    check_record(record)
    assert record.algorithm == algorithm
    record.write(folder / "again.json")
    assert read_record(folder / "again.json", "m.onnx") == record
    assert (record.shapes["x"], record.std, record.freeze["z"]) == (
        (1, 3, 8, 8),
        ((1.0, 2.0, 3.0), (4.0,)),
        [[1, 2.5], [3, 4]],
    )


@careful
@given(content=damaged_json(RECORD))
def test_build_records(folder, content):
    try:
        check_record(the_record(content, folder / "m.rk3588.build.json"))
    except RecordError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("shapes", {"x": [1, -3], "y": [1]}, "the shape of 'x': expected an integer from 1"),
        ("shapes", {"x": [1.0], "y": [1]}, "the shape of 'x'"),
        ("shapes", {}, "not of the inputs that shapes names"),
        ("more_shapes", [{"x": [1, 3, 9, 9]}], "not of the inputs that shapes names"),
        ("more_shapes", [{"x": [1, 3, 9, 9], "y": [0]}], "the shape of 'y': expected an integer from 1"),
        ("batch", 0, "batch: expected an integer from 1"),
        ("batch", True, "batch: expected an integer"),
        ("whole", False, "a model in parts has neither"),
        ("mean", [[float("nan")]], "mean: expected a number"),
        ("mean", [[10**400]], "mean: expected a number .* found a large number"),
        ("mean", [[True]], "mean: expected a number"),
        ("mean", [[1]] * 3, "one for each of the 2, found 3"),
        ("std", [[0]], "divided by 0"),
        ("std", [[1e400]], "std: expected a number"),
        ("whole", "no", "whole: expected true or false, found 'no'"),
        ("on_cpu", {"-1": "x"}, "index of a node, found '-1'"),
        ("on_cpu", {"\u0663": "x"}, "index of a node"),
        ("samples", "ab", "samples: expected a list"),
        ("samples", ["ab"], "64 hex digits"),
        ("data", "a\0b", "data: expected text without NUL"),
        ("data", "\ud800", "data: expected Unicode"),
        ("freeze", {"z": "text"}, "freeze, 'z'"),
        ("target", "rk9999", "no SoC that is known"),
        ("fit", "other", "fit: expected 'letterbox' or 'stretch'"),
        ("toolkit", None, "toolkit: expected text, found null"),
        ("version", 2, "another version"),
    ],
)
def test_what_a_record_cannot_hold(folder, field, value, says):
    with pytest.raises(RecordError, match=says):
        the_record(json.dumps({**RECORD, field: value}).encode(), folder / "m.rk3588.build.json")


def deep(depth):
    return b"[" * depth + b"]" * depth


READERS = {
    "record": (lambda place: read_record(place, "m.onnx"), RecordError),
    "report": (read_report, (ValueError, OSError)),
    "any": (read_json, (JsonError, OSError)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", deep(100_000), b'{"a":' * 100_000, b"[" + b"9" * 6000 + b"]", b"[]" * 2, b'"\\ud800"'],
    ids=["empty", "bytes", "lists", "objects", "digits", "two", "surrogate"],
)
def test_no_json_of_ours(folder, reader, content):
    read, error = READERS[reader]
    place = folder / "damaged.json"
    place.write_bytes(content)
    try:
        read(place)
    except error as found:
        assert str(found)
    else:
        assert reader == "any"


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_a_folder_and_a_device_in_a_files_place(tmp_path, reader):
    read, error = READERS[reader]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "device"):
        began = time.monotonic()
        with pytest.raises(error):
            read(tmp_path / name)
        assert time.monotonic() - began < 30  # a reader of the pipe would wait forever


@pytest.mark.parametrize("reader", READERS)
def test_memory_is_bounded(tmp_path, reader):
    read, error = READERS[reader]
    for number, content in enumerate((b" " * (64 << 20), b"[" + b"[]," * (2 << 20) + b"0]", b'["' + b"x" * (9 << 20))):
        place = tmp_path / f"{number}.json"
        place.write_bytes(content)
        with at_most(40), pytest.raises(error):
            read(place)
        place.unlink()
    sparse = tmp_path / "sparse.json"
    with open(sparse, "wb") as file:
        file.truncate(1 << 40)
    with at_most(40), pytest.raises(error):
        read(sparse)


REPORT = {
    "schema": "ort-rknn/bench/1",
    "report": {
        "results": [
            {"name": "one", "measured": {"runs_per_second": 12.5, "p50_ms": 1}, "skipped": None},
            {"name": "two", "measured": None, "skipped": "why"},
        ]
    },
}


@careful
@given(content=damaged_json(REPORT))
def test_bench_reports(folder, content):
    place = folder / "report.json"
    place.write_bytes(content)
    try:
        found = read_report(place)
    except ValueError as error:
        assert str(error)
    else:
        assert all(type(name) is str and 0 < speed < 1e39 for name, speed in found.items())


ORIGIN = {
    "ort_rknn_origin": {
        "v": 1,
        "onnx": ["m.onnx", 5, 6, "a" * 64],
        "external": [["w.bin", 7, 8, "b" * 64]],
        "toolkit": "2.5.0",
        "options": "",
        "independent": True,
    },
    "other": [1],
}


@careful
@given(content=damaged_json(ORIGIN))
@example(content=b'{"ort_rknn_origin":' * 100)
def test_origin_records(content):
    content = content.decode("utf-8", "replace")
    found = Origin.parse(content)
    assert found is None or isinstance(found, Origin)
    others = Origin.others_in(content)
    assert others is None or isinstance(others, dict)
    if found is not None:
        assert found.size >= 0 and all(".." not in file.name.split("/") for file in found.external)


# The files of `top` -----------------------------------------------------------------------------------------------


def published(**changes):
    whole = {
        "version": 1,
        "pid": os.getpid(),
        "start": top_module.start_of(os.getpid()),
        "at": time.monotonic(),
        "models": [
            {
                "session": 1,
                "model": "m",
                "device": "virtual",
                "cores": {"core 0": {"load": 0.5, "contexts": 1, "in_use": 0}},
                "runs_per_second": 1.5,
                "runs": 3,
                "errors": 0,
                "queued": 0,
                "cpu_calls": 0,
            }
        ],
    }
    return {**whole, **changes}


@careful
@given(content=st.deferred(lambda: damaged_json(published())))
def test_files_of_top(folder, content):
    runtime = folder / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    (runtime / "ort_rknn").mkdir(mode=0o700, exist_ok=True)
    (runtime / "ort_rknn" / f"{os.getpid()}.json").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime))
        patch.setattr(top_module, "_of_all_users", lambda root: iter(()))
        for process in top_module.published():
            for model in process.models:
                assert all(0 <= load <= 1 for load in model.cores.values())
                assert len(model.model) < 300 and 0 <= model.runs < 2**63


def test_other_things_in_the_place_of_a_file_of_top(tmp_path, monkeypatch):
    place = tmp_path / "ort_rknn"
    place.mkdir(mode=0o700)
    tmp_path.chmod(0o700)
    os.mkfifo(place / "1.json")
    (place / "2.json").mkdir()
    (place / "3.json").symlink_to("/dev/zero")
    (place / "4.json").write_bytes(deep(30_000))
    (place / "5.json").write_bytes(b"9" * 6000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(top_module, "_of_all_users", lambda root: iter(()))
    assert list(top_module.published()) == []


# Remembered hashes and trials -------------------------------------------------------------------------------------


@careful
@given(content=damaged_json({"/a/m.onnx": [1, 2, 3, 4, 5, "a" * 64]}))
def test_remembered_hashes(folder, content):
    model = folder / "m.onnx"
    model.write_bytes(b"model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        place = hashes.hashes_file()
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.write_bytes(content)
        place.chmod(0o600)
        assert hashes.sha256_of(model) == "9372c470eeadd5ecd9c3c74c2b3cb633f8e2f2fad799250a0f70d652b6b825e4"


@careful
@given(content=damaged_json({"trials": {"a" * 64: None, "b" * 64: "Conv: no"}}))
def test_remembered_trials(folder, content):
    pytest.importorskip("onnx")
    from ort_rknn._compile.fate import remembered

    place = folder / "trials-2.5.0.json"
    place.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ort_rknn._compile.fate._cache", lambda version: place)
        found = remembered("2.5.0")
    assert all(type(key) is str and (why is None or type(why) is str) for key, why in found.items())


# Options ----------------------------------------------------------------------------------------------------------

KEYS = sorted(ort_rknn.RknnProviderOptions.__optional_keys__)
GIVEN = st.one_of(values, values.map(json.dumps))


@careful
@given(given=st.dictionaries(st.one_of(st.sampled_from(KEYS), texts), GIVEN, max_size=4))
@example(given={"axes": "[" * 20_000})
@example(given={"schedule": "9" * 6000})
def test_provider_options(given):
    try:
        assert isinstance(read_options(given), Options)
    except ort_rknn.OptionError as error:
        assert len(str(error)) < 20_000


def test_deep_json_on_a_thread_with_a_small_stack():
    """The parser's recursion must end in an error, not in a stack overflow."""
    found = []
    old = threading.stack_size(256 << 10)
    try:
        thread = threading.Thread(target=lambda: found.append(_refusal(deep(100_000))))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(old)
    assert found == ["it is nested too deeply"]


def _refusal(content):
    try:
        parse_json(content)
    except JsonError as error:
        return str(error)
    return None
