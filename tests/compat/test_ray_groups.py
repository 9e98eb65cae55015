"""Small feeds share actor calls: in order, each with its own answer or error, and none waits for a slow source.

With a stand-in for Ray in a time of its own, like tests/compat/test_ray_dispatch.py.
"""

import asyncio
import sys
import threading
from functools import partial

import numpy as np
import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import RuntimeException
from support.pretended_ray import boards, in_place_of_ray, want
from support.virtual_sessions import MODELS, VIRTUAL, X, virtual_rk3588

from ort_rknn_ray import CallFailed, NpuModel, _groups

npu = pytest.fixture(virtual_rk3588)


@pytest.fixture
def cluster(monkeypatch):
    """A source that is ready stays so, however busy this machine is."""
    monkeypatch.setattr(_groups, "PATIENCE", 60.0)
    return partial(in_place_of_ray, monkeypatch)


def lengths(ray):
    return [len(call) for board in ray.boards for call in board.calls]


@pytest.mark.parametrize("ordered", [True, False])
def test_what_is_ready_goes_together(cluster, ordered):
    """Three feeds per call, as a board has three cores, and the boards stay balanced."""
    ray = cluster(3)
    with boards() as made:
        results = list(made.map(range(900), ordered=ordered))
    assert (results if ordered else sorted(results)) == want(900)
    assert max(lengths(ray)) == 3
    assert len(lengths(ray)) < 900 / 3 + 20
    assert ray.now < 1.1 * 900 * 0.02 / 9
    assert all(abs(len(board.ran) - 300) <= 6 for board in ray.boards)


def test_few_feeds_go_to_all_boards(cluster):
    ray = cluster(4)
    with boards() as made:
        assert list(made.map(range(12))) == want(12)
    assert [len(board.ran) for board in ray.boards] == [3, 3, 3, 3]
    assert ray.now < 0.03


@pytest.mark.parametrize(("group", "longest"), [(1, 1), (2, 2), (100, 3)])
def test_the_length_of_a_group(cluster, group, longest):
    ray = cluster(2)
    with boards(group=group) as made:
        assert list(made.map(range(100))) == want(100)
        assert made.run(7) == [70]
    assert max(lengths(ray)) == longest
    with pytest.raises(ValueError, match="group: expected an integer >= 1 or None, got 0"):
        boards(group=0)


def test_an_actor_class_without_groups(cluster):
    class Plain:
        """Has no ``run_group``."""

    ray = cluster(1)
    with boards(actor_class=Plain) as made:
        assert list(made.map(range(20))) == want(20)
    assert set(lengths(ray)) == {1}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_feed_of_a_group_fails_and_the_others_do_not(cluster, place):
    ray = cluster(2)
    once = {30 + place}
    for board in ray.boards:
        run = board._run

        def flaky(feed, run=run, board=board):
            answer = run(feed)
            if feed in once:
                once.remove(feed)
                board.ran.remove(feed)
                answer.error = sys.modules["ray"].exceptions.RayTaskError(RuntimeException("rknn_run failed"))
            return answer

        board._run = flaky
    with boards() as made:
        assert list(made.map(range(90))) == want(90)
    assert not once
    assert sorted(feed for board in ray.boards for feed in board.ran) == list(range(90)), "no other feed ran again"
    again = [call for board in ray.boards for call in board.calls if 30 + place in call]
    assert sorted(map(len, again)) == [1, 3], "it was tried again alone"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_wrong_feed_in_a_group(cluster, place):
    cluster(2)
    feeds = [0, 1, 2, 3, 4, 5]
    feeds[3 + place] = "wrong"
    with boards() as made:
        with pytest.raises(ValueError, match="a wrong call"):
            list(made.map(feeds))
        assert list(made.map(range(20))) == want(20)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_board_dies_with_groups_in_flight(cluster, place, ordered):
    """At the first, the middle or the last feed of a group; it comes back."""
    ray = cluster(2)
    bad = ray.boards[1]
    bad.deadly = {33 + place}
    ray.at(1.0, lambda: (bad.deadly.clear(), bad.ran.clear(), bad.become("up")))
    with boards() as made:
        results = list(made.map(range(900), ordered=ordered))
    assert (results if ordered else sorted(results)) == want(900)
    assert len(bad.ran) > 100, "the board that came back is used again"


def test_a_feed_that_ends_every_process(cluster):
    """Its group is tried again one by one."""
    ray = cluster(3)
    for board in ray.boards:
        board.deadly = {40}
        become = board.become

        def back_soon(state, become=become):
            become(state)
            if state == "dead":
                ray.at(ray.now + 1, lambda: become("up"))

        board.become = back_soon
    results = []
    with boards(tries=3) as made, pytest.raises(CallFailed, match="was tried 3 times: the (process ended|node died)"):
        for result in made.map(range(100)):
            results.append(result)
    assert results == want(40)[: len(results)]
    attempts = sorted(len(call) for board in ray.boards for call in board.calls if 40 in call)
    assert attempts[:-1] == [1] * (len(attempts) - 1)
    assert len(attempts) > 1


@pytest.mark.parametrize("state", ["hangs", "stuck"])
def test_a_board_that_hangs_with_groups_in_flight(cluster, state):
    ray = cluster(2)
    ray.at(0.5, lambda: ray.boards[1].become(state))
    ray.at(3.0, lambda: (ray.boards[1].ran.clear(), ray.boards[1].become("up")))
    with boards(timeout=0.5) as made:
        assert list(made.map(range(1500))) == want(1500)
    assert len(ray.boards[1].ran) > 100


def test_a_call_that_fails_as_a_whole_is_tried_feed_by_feed(cluster):
    """Such as one whose answers could not be sent; tries are not used up by it."""
    ray = cluster(1)
    task_error = ray.exceptions.RayTaskError
    board = ray.boards[0]
    run_group = board.run_group

    def fails(feeds):
        answer = run_group(feeds)
        if 3 in feeds:
            answer.error = task_error(TypeError("cannot be sent"))
        return answer

    board.run_group = fails
    with boards(tries=1) as made:
        assert list(made.map(range(12))) == want(12)


def arrays(sizes):
    return [{"x": np.full(size, k % 256, np.uint8)} for k, size in enumerate(sizes)]


def test_large_feeds_and_feeds_of_unknown_size_go_alone(cluster, monkeypatch):
    ray = cluster(2)
    chance = np.random.default_rng(0)
    sizes = [int(size) for size in chance.choice([10, 64_000, 96_000, 96_001, 1_200_000], 300)]
    feeds = arrays(sizes)
    feeds += [{"x": [1, 2]}, {"x": object()}]
    for number, feed in enumerate(feeds):
        feed["k"] = number
    for board in ray.boards:
        board.answer = lambda feed: [feed["k"] * 10]
        board.deadly = ()
        board.ran = []
    with boards() as made:
        assert list(made.map(feeds)) == want(302)
    calls = [call for board in ray.boards for call in board.calls]
    assert sorted(feed["k"] for call in calls for feed in call) == list(range(302))
    together = [call for call in calls if len(call) > 1]
    assert len(together) > 20
    for call in together:
        assert all(feed["x"].nbytes + 8 <= _groups.SMALL_FEED for feed in call)


def test_the_bytes_of_a_group(cluster, monkeypatch):
    monkeypatch.setattr(_groups, "GROUP_BYTES", 100)
    ray = cluster(1)
    ray.boards[0].answer = lambda feed: [int(feed["x"][0]) * 10]
    ray.boards[0].deadly = ()
    with boards() as made:
        assert list(made.map(arrays([30, 30, 30, 30, 60, 40, 60, 60, 101, 60]))) == want(10)
    sums = [sum(feed["x"].nbytes for feed in call) for call in ray.boards[0].calls]
    assert [size for size in sums if size > 100] == [101]
    assert max(lengths(ray)) == 3


@pytest.mark.parametrize("ordered", [True, False])
def test_feeds_are_taken_as_results_are_asked_for(cluster, ordered):
    ray = cluster(2)
    taken = []
    with boards() as made:
        results = made.map((taken.append(k) or k for k in range(10**9)), ordered=ordered)
        for _ in range(50):
            next(results)
        assert len(taken) <= 50 + 2 * 12
        assert sum(lengths(ray)) == len(taken), "none is kept while the caller works with a result"
        results.close()
        assert made.run(3) == [30]


def test_a_source_that_stops_does_not_keep_what_it_gave(cluster, monkeypatch):
    """Two feeds come at once and the third only after they were sent."""
    monkeypatch.setattr(_groups, "PATIENCE", 0.001)
    ray = cluster(1)
    sent = threading.Event()
    board = ray.boards[0]
    run_group, run = board.run_group, board.run

    def group(feeds):
        answer = run_group(feeds)
        sent.set()
        return answer

    def one(feed):
        answer = run(feed)
        if board.asked == 2:
            sent.set()
        return answer

    board.run_group, board.run = group, one

    def source():
        yield 0
        yield 1
        assert sent.wait(60), "the feeds were kept"
        yield 2

    with boards() as made:
        assert list(made.map(source())) == want(3)
        assert not [thread for thread in threading.enumerate() if thread.name == "ort_rknn_ray-group"]


def test_feeds_of_a_slow_source_go_alone(cluster, monkeypatch):
    """Slow is what takes any time at all, here."""
    monkeypatch.setattr(_groups, "PATIENCE", -1.0)
    ray = cluster(2)
    with boards() as made:
        assert list(made.map(range(100))) == want(100)
    assert set(lengths(ray)) == {1}


def test_an_error_of_the_source(cluster):
    cluster(2)

    def source():
        yield from range(10)
        raise OSError("the disk is gone")

    with boards() as made:
        with pytest.raises(OSError, match="the disk is gone"):
            list(made.map(source()))
        assert list(made.map(range(100))) == want(100)
        assert not any(actor.pending for actor in made._actors)


def test_a_group_in_the_actor(npu):
    """Each feed has its own outputs or exception, and all of them run at once."""
    model = NpuModel(str(MODELS / "conv_f16.onnx"), provider_options=VIRTUAL)
    try:
        (alone,) = asyncio.run(model.run({"x": X}))
        results = asyncio.run(model.run_group(None, {"x": X}, {"x": X[:, :2]}, {"x": X * 0}))
        np.testing.assert_array_equal(results[0][0], alone)
        assert isinstance(results[1], Exception)
        assert len(results[2]) == 1
        assert not np.array_equal(results[2][0], alone)
        assert [len(outputs) for outputs in asyncio.run(model.run_group(["y"], {"x": X}))] == [1]
    finally:
        model.session.close()


class Picky(NpuModel):
    """Its errors cannot be sent, and ``run`` is a plain method."""

    def __init__(self):
        pass

    def run(self, feed, output_names=None):
        if feed:
            raise Unsendable(threading.Lock())
        return ["fine"]


class Unsendable(Exception):
    pass


def test_an_exception_that_cannot_be_sent_becomes_one_that_can():
    fine, error = asyncio.run(Picky().run_group(None, {}, {"x": 1}))
    assert fine == ["fine"]
    assert type(error) is RuntimeError
    assert "Unsendable" in str(error)
