"""Calls over several boards: correct, in order, and none lost if a board dies, hangs or falls back."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import ray
from support.timed_model import Broken, Dying, Gone, Hanging, OnCpu, SlowBatches, Timed

import ort_rknn
from ort_rknn_ray import Boards, CallFailed, NpuBatches, put_model
from ort_rknn_ray._store import StoredModel, on_this_node


def frame(k):
    return {"x": np.full((1, 3, 32, 32), k / 1000, np.float32)}


@pytest.fixture
def want(models):
    session = onnxruntime.InferenceSession(models / "conv_f16.onnx", providers=["CPUExecutionProvider"])
    return lambda k: session.run(None, frame(k))[0]


def right(results, want, numbers=None):
    for k, (result,) in zip(numbers or range(len(results)), results, strict=False):
        np.testing.assert_allclose(result, want(k), atol=0.01)


def test_two_boards_in_order_and_as_they_come(cluster, models, want):
    cluster.add(2)
    cluster.connect()
    with Boards(models / "conv_f16.onnx", actor_class=Timed) as boards:
        assert len(boards) == 2
        assert all(told["on_npu"] for told in boards.describe())
        right(list(boards.map(frame(k) for k in range(60))), want)
        assert len(list(boards.map((frame(k) for k in range(60)), ordered=False))) == 60
        right([boards.run(frame(7))], want, [7])
        with pytest.raises(Exception, match="x"):  # a call that is wrong in itself is not tried elsewhere
            list(boards.map([{"x": np.zeros((1, 3, 5, 5), np.float32)}]))
        right(list(boards.map(frame(k) for k in range(5))), want)


def test_a_thousand_runs_with_a_board_killed_in_the_middle_and_back(cluster, models, want):
    cluster.add(2)
    cluster.connect()
    with Boards(models / "conv_f16.onnx", actor_class=Timed) as boards:
        results = []
        for k, result in enumerate(boards.map(frame(k) for k in range(1000))):
            results.append(result)
            if k == 300:
                cluster.kill()
            if k == 600:
                cluster.add()
        assert len(results) == 1000
        right(results, want)
        end = time.monotonic() + 40
        while sum("error" not in told for told in boards.describe()) < 2:
            assert time.monotonic() < end, "the board that came back is not used"
            time.sleep(0.5)
        right(list(boards.map(frame(k) for k in range(40))), want)


def test_two_programs_at_once(cluster, models, want, monkeypatch):
    """A board belongs to one of them; the other one begins with what is left, and gets the board later."""
    monkeypatch.setattr("ort_rknn_ray._boards._START", 8.0)
    cluster.add(2)
    cluster.connect()
    first = Boards(models / "conv_f16.onnx", actor_class=Timed, boards=1)
    try:
        with pytest.warns(RuntimeWarning, match="[12] of 2 boards have not answered"):
            second = Boards(models / "conv_f16.onnx", actor_class=Timed)
        results = {}
        other = threading.Thread(target=lambda: results.update(first=list(first.map(frame(k) for k in range(90)))))
        other.start()
        right(list(second.map(frame(k) for k in range(90))), want)
        other.join()
        right(results["first"], want)
    finally:
        first.close()
    end = time.monotonic() + 60
    while sum("error" not in told for told in second.describe()) < 2:
        assert time.monotonic() < end, "the board that is free again is not used"
    right(list(second.map(frame(k) for k in range(40))), want)
    second.close()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_actor_killed_with_groups_in_flight(cluster, models, want, place):
    """By its first, middle or last feed; Ray starts it again. Each feed has its result, once."""
    cluster.add(2)
    cluster.connect()
    with Boards(models / "conv_f16.onnx", actor_class=Dying, group=3) as boards:
        results = list(boards.map({**frame(k), "k": np.array(k - 30 - place)} for k in range(120)))
    assert (Path(os.environ["TEST_MARKS"]) / "died").exists()
    assert len(results) == 120
    right(results, want)


def test_a_wrong_feed_in_a_group(cluster, models, want):
    """The session's own exception comes from the group, and boards stay usable."""
    cluster.add(1)
    cluster.connect()
    with Boards(models / "conv_f16.onnx", actor_class=Timed) as boards:
        feeds = [frame(0), {"x": np.zeros((1, 3, 5, 5), np.float32)}, frame(2)]
        with pytest.raises(Exception, match="x") as group:
            list(boards.map(feeds))
        with pytest.raises(Exception, match="x") as alone:
            boards.run(feeds[1])
        assert type(group.value) is type(alone.value)
        right(list(boards.map(frame(k) for k in range(9))), want)


def test_a_board_that_hangs_loses_its_calls_to_the_others(cluster, models, want):
    cluster.add(2)
    cluster.connect()
    with Boards(models / "conv_f16.onnx", actor_class=Hanging, timeout=2) as boards:
        right(list(boards.map(frame(k) for k in range(60))), want)


def test_a_board_whose_device_is_gone_and_returns(cluster, models, want):
    """With on_cpu="refuse" its calls go elsewhere, none to the CPU; it is used again when the device is back."""
    cluster.add(2)
    cluster.connect()
    marks = Path(os.environ["TEST_MARKS"])
    with Boards(models / "conv_f16.onnx", actor_class=Gone) as boards:
        results = []
        for k, result in enumerate(boards.map(frame(k) for k in range(900))):
            results.append(result)
            if k == 200:
                (marks / "gone").touch()
            if k == 500:
                before = (marks / "runs").stat().st_size
                (marks / "gone").unlink()
        right(results, want)
        assert len(results) == 900
        assert not any(np.array_equal(result, want(k)) for k, (result,) in enumerate(results) if k)  # float16: no CPU
        assert 0 < (marks / "errors").stat().st_size < 60
        end = time.monotonic() + 60
        while (marks / "runs").stat().st_size <= before + 10:
            assert time.monotonic() < end, "the board whose device is back is not used"
            right(list(boards.map(frame(k) for k in range(60))), want)


def test_a_board_without_its_device_serves_on_the_cpu_on_request(cluster, models, want):
    cluster.add(1)
    cluster.connect()
    marks = Path(os.environ["TEST_MARKS"])
    (marks / "gone").touch()
    with Boards(models / "conv_f16.onnx", actor_class=Gone, on_cpu="serve") as boards:
        results = list(boards.map(frame(k) for k in range(100)))
        for k, (result,) in enumerate(results):
            np.testing.assert_array_equal(result, want(k))
    assert not (marks / "errors").exists()


def test_no_board_and_no_npu(cluster, models, monkeypatch):
    cluster.connect()
    with pytest.raises(RuntimeError, match="ray-resources"):
        Boards(models / "conv_f16.onnx")
    with Boards(models / "conv_f16.onnx", boards=1, resources={}, actor_class=OnCpu, on_cpu="serve") as boards:
        assert not boards.describe()[0]["on_npu"]
    with pytest.raises(Exception, match="NpuUnavailable|no NPU"):
        Boards(models / "conv_f16.onnx", boards=1, resources={}, actor_class=OnCpu)


def test_calls_that_no_board_can_serve_say_so(cluster, models):
    cluster.add(1)
    cluster.connect()
    with (
        Boards(models / "conv_f16.onnx", actor_class=Broken, tries=3) as boards,
        pytest.raises(CallFailed, match="3 times"),
    ):
        list(boards.map([frame(0)]))


def test_a_stored_model_is_written_once_and_stays_in_its_folder(cluster, models, tmp_path, monkeypatch):
    cluster.connect()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    stored = put_model(models / "conv_f16.onnx")
    assert {"conv_f16.onnx", "conv_f16.rk3588.rknn", "conv_f16.rk3576.rknn"} <= set(stored.references)
    path = on_this_node(stored)
    assert on_this_node(stored) == path
    assert (
        ort_rknn.InferenceSession(path, provider_options={"device": "virtual:rk3576"})
        .get_providers()[0]
        .startswith("RKNN")
    )
    bad = StoredModel("m.onnx", "0" * 64, {"m.onnx": ray.put(b""), "../m.onnx": ray.put(b"")})
    with pytest.raises(ValueError, match="outside"):
        on_this_node(bad)


def test_ray_data(cluster, models, want):
    cluster.add(1)
    cluster.connect()
    data = ray.data.from_numpy(np.stack([frame(k)["x"][0] for k in range(20)])).rename_columns({"data": "x"})
    made = data.map_batches(
        NpuBatches,
        fn_constructor_args=(str(models / "conv_f16.onnx"),),
        batch_size=8,
        batch_format="numpy",
        num_cpus=0,
        resources={"rknpu": 1},
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    rows = sorted(made.take_all(), key=lambda row: row["x"].flat[0])
    name = next(key for key in rows[0] if key != "x")
    for k, row in enumerate(rows):
        np.testing.assert_allclose(row[name], want(k)[0], atol=0.01)


@pytest.mark.timeout(600)
def test_ray_data_with_a_node_killed_in_the_middle(cluster, models, want):
    """Every row is present once, with its own result."""
    cluster.add(2)
    cluster.connect()
    marks = Path(os.environ["TEST_MARKS"]) / "batches"
    marks.touch()
    killed = threading.Event()

    def kill_in_the_middle():
        while marks.stat().st_size < 20:
            if killed.wait(0.05):
                return
        cluster.kill()
        killed.set()

    rows = 480
    data = ray.data.from_numpy(np.stack([frame(k)["x"][0] for k in range(rows)])).rename_columns({"data": "x"})
    made = data.repartition(30).map_batches(
        SlowBatches,
        fn_constructor_args=(str(models / "conv_f16.onnx"),),
        batch_size=8,
        batch_format="numpy",
        num_cpus=0,
        resources={"rknpu": 1},
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=2),
    )
    killer = threading.Thread(target=kill_in_the_middle)
    killer.start()
    try:
        done = made.take_all()
        assert killed.is_set(), "the job ended before a node was killed"
    finally:
        killed.set()
        killer.join()
    assert sorted(round(float(row["x"].flat[0]) * 1000) for row in done) == list(range(rows))
    for row in done:
        np.testing.assert_allclose(row["y"], want(round(float(row["x"].flat[0]) * 1000))[0], atol=0.01)
