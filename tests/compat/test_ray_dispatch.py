"""Calls over several boards, with a stand-in for Ray in simulated time: correct, in order, none lost and none twice.

tests/cluster tests the same with Ray itself (tox -e cluster).
"""

import random
from functools import partial
from itertools import count, islice

import pytest
from ort_rknn.capi.onnxruntime_pybind11_state import RuntimeException
from support.pretended_ray import ActorDiedError, boards, in_place_of_ray, want

from ort_rknn_ray import CallFailed


@pytest.fixture
def cluster(monkeypatch):
    return partial(in_place_of_ray, monkeypatch)


def test_all_boards_work_and_results_are_in_order(cluster):
    ray = cluster(3)
    with boards() as made:
        assert list(made.map(range(900))) == want(900)
        assert sorted(feed for board in ray.boards for feed in board.ran) == list(range(900))
        assert ray.now < 1.1 * 900 * 0.02 / 9
        assert made.run(7) == [70]
    assert [handle.board.number for handle in ray.killed] == [0, 1, 2]
    made.close()
    with pytest.raises(RuntimeError, match="closed"):
        made.run(7)


def test_as_they_come(cluster):
    cluster(2)
    with boards() as made:
        results = list(made.map(range(300), ordered=False))
        assert sorted(results) == want(300)


def test_feeds_are_consumed_as_results_are_requested(cluster):
    cluster(2)
    taken = count()
    with boards() as made:
        results = made.map(next(taken) for _ in range(10**9))
        assert list(islice(results, 50)) == want(50)
        assert next(taken) <= 50 + 2 * 12
        results.close()
        assert made.run(3) == [30]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_thousand_runs_with_a_board_killed_in_the_middle_and_back(cluster, ordered):
    ray = cluster(2)
    second = ray.boards[1]
    ray.at(2.0, lambda: second.become("dead"))
    ray.at(5.0, lambda: (second.ran.clear(), second.become("up")))
    with boards() as made:
        results = list(made.map(range(1000), ordered=ordered))
    assert (results if ordered else sorted(results)) == want(1000)
    assert len(second.ran) > 100, "the board that came back is used again"


@pytest.mark.parametrize("state", ["hangs", "stuck"])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_board_that_hangs_and_answers_late(cluster, state, ordered):
    """Its late results are dropped: other boards have answered the calls."""
    ray = cluster(2)
    ray.at(1.0, lambda: ray.boards[1].become(state))
    ray.at(6.0, lambda: (ray.boards[1].ran.clear(), ray.boards[1].become("up")))
    with boards(timeout=0.5) as made:
        results = list(made.map(range(3000), ordered=ordered))
    assert (results if ordered else sorted(results)) == want(3000)
    assert len(ray.boards[1].ran) > 100


@pytest.mark.parametrize("state", ["fails", "busy"])
def test_a_board_whose_runs_fail_rests_and_returns(cluster, state):
    """It fails at once and so has the most capacity: without its rests it would get most of the calls."""
    ray = cluster(3)
    bad = ray.boards[0]
    bad.become(state)
    ray.at(6.0, lambda: (bad.ran.clear(), bad.become("up")))
    with boards() as made:
        assert list(made.map(range(6000))) == want(6000)
    assert len(bad.ran) > 300, "it is used again"
    assert bad.asked - len(bad.ran) < 20


def test_a_call_that_failed_on_a_board_waits_for_another(cluster):
    """Else its retries would be used up on the failing board, which always has room."""
    ray = cluster(2)
    ray.boards[0].become("fails")
    with boards(tries=2) as made:
        assert list(made.map(range(500))) == want(500)


def test_calls_that_no_board_can_serve_say_so(cluster):
    ray = cluster(2)
    for board in ray.boards:
        board.become("fails")
    with boards(tries=3) as made:
        with pytest.raises(CallFailed, match="was tried 3 times: .*rknn_run failed") as failed:
            list(made.map(range(5)))
        assert isinstance(failed.value.__cause__, RuntimeException)
        for board in ray.boards:
            board.become("up")
        assert list(made.map(range(5))) == want(5)


def test_a_call_that_is_wrong_in_itself_is_not_tried_elsewhere(cluster):
    ray = cluster(2)
    with boards() as made:
        with pytest.raises(ValueError, match="a wrong call"):
            list(made.map([1, 2, "wrong", 3]))
        assert list(made.map(range(20))) == want(20)
    assert sum(board.asked for board in ray.boards) <= 3 + 20


def test_every_board_dies_and_one_comes_back(cluster):
    """Calls wait, and nothing spins meanwhile."""
    ray = cluster(2)
    for board in ray.boards:
        ray.at(1.0, lambda board=board: board.become("dead"))
    ray.at(61.0, lambda: ray.boards[0].become("up"))
    with boards() as made:
        assert list(made.map(range(400))) == want(400)
    assert 61 < ray.now < 75
    assert ray.waits < 2 * (400 + 60 / 0.2 + 100)


def test_a_board_without_a_session_is_reported_and_retried(cluster):
    """Ray does not restart an actor whose constructor raised, so a new one is created."""
    ray = cluster(2)
    ray.boards[1].refuses = "no NPU is usable"

    def repaired():
        ray.boards[1].refuses = None

    ray.at(3.0, repaired)
    with pytest.warns(RuntimeWarning, match="1 of 2 boards .* no NPU is usable"):
        made = boards()
    assert list(made.map(range(2000))) == want(2000)
    assert len(ray.boards[1].ran) > 100
    assert len({id(handle) for handle in ray.killed}) == len(ray.killed) > 0
    made.close()


@pytest.mark.parametrize("silent", [1, 2])
def test_a_board_that_another_program_has_is_used_as_soon_as_it_is_free(cluster, silent):
    """Where another board answers, nothing waits for it."""
    ray = cluster(2)
    for board in ray.boards[2 - silent :]:
        board.become("hangs")
    ray.at(30.0, lambda: ray.boards[1].become("up"))
    with pytest.warns(RuntimeWarning, match=f"{silent} of 2 boards have not answered within 15 s: another program"):
        made = boards()
    assert (ray.now < 16) == (silent == 1)
    assert list(made.map(range(4000))) == want(4000)
    assert len(ray.boards[1].ran) > 100
    made.close()


def test_no_board_can_make_the_session(cluster):
    ray = cluster(2)
    for board in ray.boards:
        board.refuses = "no NPU is usable"
    with pytest.raises(ActorDiedError, match="no NPU is usable"):
        boards()
    assert len(ray.killed) == 2


def test_no_board(cluster):
    cluster(0)
    with pytest.raises(RuntimeError, match="ray-resources"):
        boards()


@pytest.mark.parametrize("seed", range(12))
def test_boards_that_fail_at_random(cluster, seed):
    """Boards die, hang, fail and return at random, one of four always works: no call is lost and none is delivered
    twice."""
    chance = random.Random(seed)
    ray = cluster(4)
    for board in ray.boards[1:]:
        now = 0.0
        while now < 30:
            now += chance.uniform(0.2, 4)
            state = chance.choice(["dead", "hangs", "stuck", "fails", "busy", "up", "up", "up"])
            ray.at(now, lambda board=board, state=state: board.become(state))
    with boards(timeout=0.5, tries=6) as made:
        ordered = bool(seed % 2)
        results = list(made.map(range(4000), ordered=ordered))
    assert (results if ordered else sorted(results)) == want(4000)
