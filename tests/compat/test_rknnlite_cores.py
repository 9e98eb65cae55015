"""The face of rknnlite: core masks, threads, and the life of an object and its model."""

import gc
import logging
import os
import threading

import numpy as np
import pytest
from support.rknnlite_models import CONV, MODELS, X, started, virtual_rk3588

from ort_rknn_rknnlite.api import RKNNLite
from ort_rknn_virtual.control import virtual_npu

npu = pytest.fixture(virtual_rk3588)


def test_core_masks(npu):
    for name, mask in (("0", 1), ("1", 2), ("2", 4), ("0_1", 3), ("0_1_2", 7), ("ALL", 7), ("AUTO", 1)):
        made = started(core_mask=getattr(RKNNLite, f"NPU_CORE_{name}"))
        made.inference([X])
        assert [e.core_mask for e in npu.events() if e.kind == "run"][-1] == mask, name
        made.release()


@pytest.mark.parametrize(("mask", "taken"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 1), (7, 3), (0xFFFF, 3)])
def test_core_masks_for_three_cores_on_two(npu, monkeypatch, caplog, mask, taken):
    """Like the vendor's class: a program written for an RK3588 runs on an RK3576."""
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3576")
    two = virtual_npu("rk3576")
    two.reset()
    made = started(MODELS / "conv_f16.rk3576.rknn", core_mask=mask)
    made.inference([X])
    assert [e.core_mask for e in two.events() if e.kind == "run"] == [taken]
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert said == [f"core_mask {mask:#x} names a core that rk3576 lacks: {taken:#x} is taken instead"] * (
        mask in (4, 7)
    )
    made.release()


@pytest.mark.parametrize("mask", [2, 3, 4, 7])
def test_core_masks_on_one_core(npu, monkeypatch, caplog, mask):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3566")
    made = RKNNLite()
    assert made.load_rknn(MODELS / "conv_f16.rk3566.rknn") == 0
    assert made.init_runtime(core_mask=mask) == -1
    assert f"core_mask {mask:#x} names a core that rk3566 lacks: leave it out, or take NPU_CORE_AUTO" in caplog.text


@pytest.mark.wall_clock
def test_one_object_per_core_and_thread(npu):
    objects = [started(core_mask=1 << core) for core in range(3)]
    npu.reset()
    npu.run_time_us = 500_000
    threads = [threading.Thread(target=made.inference, args=([X],)) for made in objects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = [event for event in npu.events() if event.kind == "run"]
    assert sorted(event.core_mask for event in runs) == [1, 2, 4]
    assert max(event.start_ns for event in runs) < min(event.end_ns for event in runs)
    for made in objects:
        made.release()


def test_two_threads_on_one_object_take_turns(npu):
    made = started()
    feeds = [np.full_like(X, k / 8) for k in range(8)]
    wanted = [made.inference([x])[0] for x in feeds]
    wrong = []

    def work(k):
        for _ in range(10):
            if not np.array_equal(made.inference([feeds[k]])[0], wanted[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    made.release()


def test_release_and_drop(npu):
    made = started()
    assert made.init_runtime(core_mask=2) == 0  # again: the first context is released
    assert npu.counters().contexts == 1
    made.release()
    made.release()
    assert npu.counters().contexts == 0
    assert made.inference([X]) is None
    assert made.init_runtime() == 0
    del made
    gc.collect()
    assert npu.counters().contexts == 0


@pytest.mark.parametrize("how", ["deleted", "replaced", "moved"])
def test_the_model_is_the_one_that_was_chosen(npu, tmp_path, descriptors, how):
    """The original reads the file in load_rknn(): programs may delete it immediately afterwards."""
    file = tmp_path / "model.rknn"
    file.write_bytes(CONV.read_bytes())
    made = RKNNLite()
    before = descriptors()
    assert made.load_rknn(os.fsencode(file)) == 0
    if how == "deleted":
        file.unlink()
    elif how == "moved":
        file.rename(tmp_path / "elsewhere.rknn")
    else:
        (tmp_path / "other").write_bytes((MODELS / "nd.rk3588.rknn").read_bytes())
        (tmp_path / "other").rename(file)
    for _ in range(2):
        assert made.init_runtime() == 0
        assert made.inference([X])[0].shape == (1, 8, 16, 16)
        made.release()
    assert made.load_rknn(CONV) == 0
    del made
    gc.collect()
    assert descriptors() == before
