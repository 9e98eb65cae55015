"""Runs on the NPU in onnxruntime's own profile."""

import json
import threading
from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
from support.virtual_sessions import MODELS, VIRTUAL, X, session, virtual_rk3588

import ort_rknn as ort
from ort_rknn._ep.profiler import CORE_ROW
from ort_rknn._executor import recording

npu = pytest.fixture(virtual_rk3588)
RELEASE = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
pytestmark = pytest.mark.skipif(RELEASE < (1, 25), reason="onnxruntime 1.25 and later ask for events")


@pytest.fixture(autouse=True)
def nobody_listens_in_the_end():
    yield
    assert recording.sinks == []


@pytest.fixture
def profiled(tmp_path):
    """Creates a session that profiles, and reads its file."""

    def make(model="conv_f16.onnx", **options):
        so = onnxruntime.SessionOptions()
        so.enable_profiling = True
        so.profile_file_prefix = str(tmp_path / "profile")
        return ort.InferenceSession(MODELS / model, so, provider_options={**VIRTUAL, **options})

    return make


def events_of(session):
    with open(session.end_profiling(), encoding="utf-8") as file:
        events = json.load(file)
    ours = [e for e in events if e["name"].startswith("npu:")]
    return ours, [e for e in events if e["cat"] == "Node" and e["name"].startswith("RKNN")]


def inside(event, other):
    return event["ts"] >= other["ts"] and event["ts"] + event["dur"] <= other["ts"] + other["dur"]


def test_every_run_is_there_in_its_node_and_on_its_core(npu, profiled):
    npu.run_time_us = 2000
    with profiled(schedule="0,2") as s:
        for _ in range(4):
            s.run(None, {"x": X})
        ours, nodes = events_of(s)
    here = threading.get_native_id()
    runs = [e for e in ours if e["name"] == "npu:run" and e["tid"] == here]
    on_cores = [e for e in ours if e["tid"] >= CORE_ROW]
    assert len(nodes) == len(runs) == len(on_cores) == 4
    assert [e["tid"] - CORE_ROW for e in on_cores] == [0, 2, 0, 2]
    for run, core, node in zip(runs, on_cores, nodes):
        assert run["dur"] >= 1990 and (run["ts"], run["dur"]) == (core["ts"], core["dur"])
        assert inside(run, node) and run["cat"] == "Kernel"
        assert run["args"] == {"model": "conv_f16.rk3588.rknn", "core": str(core["tid"] - CORE_ROW)}
    assert all(any(inside(e, node) for node in nodes) for e in ours if e["tid"] == here)


def test_a_run_that_failed_names_its_error(npu, profiled):
    with profiled(schedule="0", retries=0) as s:
        npu.fault("rknn_run", -2, times=1)
        with pytest.raises(Exception, match="-2"):
            s.run(None, {"x": X})
        s.run(None, {"x": X})
        ours, _ = events_of(s)
    on_core = [e["args"] for e in ours if e["tid"] >= CORE_ROW]
    assert ["error" in told for told in on_core] == [True, False]
    assert "-2" in on_core[0]["error"]


def test_waiting_is_on_the_row_of_the_thread_that_waits(npu, profiled):
    npu.run_time_us = 20_000
    with profiled(schedule="0") as s:
        threads = [threading.Thread(target=s.run, args=(None, {"x": X})) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ours, nodes = events_of(s)
    assert (
        {e["tid"] for e in ours if e["tid"] < CORE_ROW} == {n["tid"] for n in nodes} == {t.native_id for t in threads}
    )
    waits = sorted(e["dur"] for e in ours if e["name"] == "npu:wait")
    assert len(waits) == 2 and waits[0] > 10_000 and waits[1] > 30_000
    core = sorted((e["ts"], e["dur"]) for e in ours if e["tid"] == CORE_ROW)
    assert all(first[0] + first[1] <= second[0] for first, second in pairwise(core))


def test_cores_that_work_together_have_a_row_each(npu, profiled):
    with profiled(tp_mode="0,1") as s:
        s.run(None, {"x": X})
        ours, _ = events_of(s)
    assert {e["tid"] for e in ours if e["tid"] >= CORE_ROW} == {CORE_ROW, CORE_ROW + 1}
    assert ours[0]["args"]["core"] == "0,1"


def test_a_conversion_above_the_runtime_is_part_of_the_slices(npu, profiled):
    with profiled("tokens_i64.onnx") as s:
        s.run(None, {"ids": np.zeros((1, 16), np.int64)})
        ours, nodes = events_of(s)
    parts = [e for e in ours if e["tid"] < CORE_ROW]
    assert [e["name"] for e in parts] == ["npu:convert", "npu:run", "npu:fetch"]
    assert all(inside(e, nodes[0]) for e in parts)


@pytest.mark.parametrize("contexts", [1, 2])
def test_what_submit_runs_overlaps_nothing_on_a_row(npu, profiled, contexts):
    npu.run_time_us = 1000
    with profiled(schedule="0,1,2", threads_per_core=contexts) as s:
        list(s.map([{"x": X}] * 30))
        ours, _ = events_of(s)
    assert sum(e["name"] == "npu:run" and e["tid"] < CORE_ROW for e in ours) == 30
    by_row = {}
    for e in ours:
        by_row.setdefault(e["tid"], []).append((e["ts"], e["ts"] + e["dur"]))
    for row in by_row.values():
        row.sort()
        assert all(first[1] <= second[0] for first, second in pairwise(row))


def test_other_sessions_are_not_in_it(npu, profiled):
    with profiled() as one, profiled() as two, session(MODELS / "nd.onnx") as plain:
        one.run(None, {"x": X})
        two.run(None, {"x": X})
        two.run(None, {"x": X})
        plain.run(None, {i.name: np.zeros(i.shape, np.float32) for i in plain.get_inputs()})
        for s, number in ((one, 1), (two, 2)):
            ours, nodes = events_of(s)
            assert len(nodes) == sum(e["name"] == "npu:run" and e["tid"] < CORE_ROW for e in ours) == number


def test_a_plain_session_has_them_too(npu, tmp_path, monkeypatch):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "virtual:rk3588")
    ort.register()
    try:
        so = onnxruntime.SessionOptions()
        so.enable_profiling = True
        so.profile_file_prefix = str(tmp_path / "plain")
        devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == "RKNNExecutionProvider"]
        so.add_provider_for_devices(devices[:1], {})
        plain = onnxruntime.InferenceSession(MODELS / "conv_f16.onnx", so)
        plain.run(None, {"x": X})
        ours, _ = events_of(plain)
        assert [e["name"] for e in ours if e["tid"] < CORE_ROW] == ["npu:convert", "npu:run", "npu:fetch"]
        del plain
    finally:
        ort.unregister()


def test_a_session_that_ends_while_it_profiles_leaves_nobody_listening(npu, profiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with profiled() as s:
        s.run(None, {"x": X})
        assert len(recording.sinks) == 1
    del s


def test_nothing_is_recorded_without_a_profile(npu, monkeypatch):
    monkeypatch.setattr(recording, "Slice", None)  # making one would fail
    with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=VIRTUAL) as s:
        s.run(None, {"x": X})


def test_a_recording_is_bounded(npu):
    recorder = recording.Recorder(limit=3)
    with ort.InferenceSession(MODELS / "conv_f16.onnx", provider_options=VIRTUAL) as s:
        recorder.start()
        for _ in range(5):
            s.run(None, {"x": X})
        assert len(recorder.stop()) == 3 and recorder.lost == 2
        assert recorder.stop() == []
        s.run(None, {"x": X})
        recorder.start()
        s.run(None, {"x": X})
        (one,) = recorder.stop()
    assert recorder.lost == 0 and one.blocks and one.thread == one.caller == threading.get_native_id()
    assert recorder.began <= one.asked == one.start <= one.ready <= one.over <= one.end
