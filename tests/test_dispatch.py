"""Which core mask each context gets, and in which order runs use the contexts."""

import pytest

from ort_rknn._errors import OptionError
from ort_rknn._executor.dispatch import resolve
from ort_rknn._options import read_options
from ort_rknn.adapter import SOC_CORES


def made(soc="rk3588", **given):
    return resolve(read_options(given), soc, SOC_CORES[soc])


def masks(dispatch):
    return [lane.core_mask for lane in dispatch.lanes]


@pytest.mark.parametrize(
    "schedule, lanes, order",
    [
        ("0,1,2", [1, 2, 4], (0, 1, 2)),
        ([2, 1, 0], [1, 2, 4], (2, 1, 0)),
        ([2, 2, 0], [1, 4], (1, 1, 0)),
        (1, [2], (0,)),
        ("0 0 0", [1], (0, 0, 0)),
    ],
)
def test_schedule(schedule, lanes, order):
    dispatch = made(schedule=schedule)
    assert (masks(dispatch), dispatch.order, dispatch.first_idle) == (lanes, order, False)
    # Run n goes to core schedule[n % len].
    cores = [schedule] if isinstance(schedule, int) else [int(c) for c in str(schedule) if c.isdigit()]
    assert [dispatch.lanes[i].core_mask for i in dispatch.order] == [1 << core for core in cores]


def test_threads_per_core():
    dispatch = made(schedule="0,2,2", threads_per_core=3)
    assert (dispatch.contexts_per_lane, dispatch.contexts) == (3, 6)
    assert made(tp_mode="all", threads_per_core=2).contexts == 2


def test_auto_schedule():
    dispatch = made(schedule="auto")
    assert (masks(dispatch), dispatch.first_idle) == ([1, 2, 4], True)
    assert masks(made("rk3576", schedule="auto")) == [1, 2]
    assert "first idle core of 3" in dispatch.describe()


@pytest.mark.parametrize(
    "mode, mask", [("auto", 0), ("all", 0xFFFF), ("0", 1), ("1", 2), ("2", 4), ("0,1", 3), ("0,1,2", 7)]
)
def test_tp_mode(mode, mask):
    dispatch = made(tp_mode=mode)
    assert (masks(dispatch), dispatch.order, dispatch.contexts) == ([mask], (0,), 1)


def test_the_default_is_one_context_on_a_core_of_the_runtimes_choice():
    assert made() == made(tp_mode="auto")
    assert made().describe() == "every run on one core of the runtime's choice; 1 context"


@pytest.mark.parametrize("soc", ["rk3562", "rk3566", "rk3568"])
def test_one_core_socs_take_no_mask(soc):
    """Their runtime answers an error to any."""
    for given in ({}, {"tp_mode": "auto"}, {"tp_mode": "all"}, {"tp_mode": "0"}, {"schedule": 0}, {"schedule": "auto"}):
        dispatch = made(soc, **given)
        assert masks(dispatch) == [0]
        assert dispatch.lanes[0].label == "core 0"
    for given in ({"tp_mode": "1"}, {"tp_mode": "0,1"}, {"schedule": "0,1"}):
        with pytest.raises(OptionError, match=f"{soc}.*core 0"):
            made(soc, **given)


@pytest.mark.parametrize(
    "soc, given",
    [
        ("rk3588", {"schedule": "0,3"}),
        ("rk3588", {"schedule": 31}),
        ("rk3576", {"schedule": 2}),
        ("rk3576", {"tp_mode": "2"}),
        ("rk3576", {"tp_mode": "0,1,2"}),
    ],
)
def test_cores_that_the_soc_lacks(soc, given):
    with pytest.raises(OptionError, match=f"{soc}.* has cores 0") as caught:
        made(soc, **given)
    assert isinstance(caught.value, ValueError)
    assert str(next(iter(given.values()))) in str(caught.value)


def test_descriptions():
    assert made(schedule="0,2,2", threads_per_core=2).describe() == "runs go round the cores 0, 2, 2; 2 contexts each"
    assert made(tp_mode="0,1").describe() == "every run on cores 0,1 together; 1 context"
    assert made(tp_mode="all").describe() == "every run on all cores (0, 1, 2) together; 1 context"
    assert made(schedule="1").describe() == "every run on core 1; 1 context"


@pytest.mark.parametrize(
    ("options", "soc", "ready"),
    [
        ({"schedule": [0, 1, 2]}, "rk3588", 3),
        ({"schedule": [1]}, "rk3588", 1),
        ({"schedule": [0, 1, 2], "threads_per_core": 2}, "rk3588", 0),
        ({"schedule": "auto", "threads_per_core": 2}, "rk3588", 0),
        ({"tp_mode": "all", "threads_per_core": 2}, "rk3588", 0),
        ({"threads_per_core": 4}, "rk3588", 3),  # one core of the runtime's choice: there may be idle ones
        ({"schedule": [0], "threads_per_core": 2}, "rk3566", 2),
    ],
)
def test_calls_are_kept_ready_where_a_core_would_stand_still(options, soc, ready):
    assert made(soc, **options).ready == ready
