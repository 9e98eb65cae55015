"""session.stats() and ort_rknn.stats(): what they count, and that nothing is lost or counted twice."""

import json
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from support.virtual_sessions import MODELS, X, session, virtual_rk3588

import ort_rknn as ort

npu = pytest.fixture(virtual_rk3588)


def totals():
    return {m.model: m.total for m in ort.stats().models}


def test_runs_are_counted_by_core(npu):
    with session(schedule="0,1,1") as s:
        for _ in range(6):
            s.run(None, {"x": X})
        (model,) = s.stats().models
    assert model.model == "conv_f16.rk3588.rknn"
    assert {label: core.runs for label, core in model.cores.items()} == {"core 0": 2, "core 1": 4}
    assert model.total.runs == 6 and model.total.errors == model.total.waits == 0
    assert [core.contexts for core in model.cores.values()] == [1, 1]


def test_errors_are_counted_and_no_time_is(npu):
    npu.run_time_us = 3000
    npu.fault("rknn_run", -2, times=1)
    with session() as s:
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException):
            s.run(None, {"x": X})
        total = s.stats().total
        assert (total.runs, total.errors, total.run_seconds) == (0, 1, 0.0)
        s.run(None, {"x": X})
        total = s.stats().total
    assert (total.runs, total.errors) == (1, 1)
    assert total.run_seconds >= 0.0029


def test_the_core_is_busy_for_the_modelled_time(npu):
    npu.run_time_us = 5000
    with session(schedule="0,1") as s:
        began = time.perf_counter()
        for _ in range(8):
            s.run(None, {"x": X})
        elapsed = time.perf_counter() - began
        cores = s.stats().models[0].cores
    since = [e for e in npu.events() if e.kind == "run"]
    for core, label in enumerate(("core 0", "core 1")):
        modelled = sum(e.end_ns - e.start_ns for e in since if e.core_mask == 1 << core) / 1e9
        assert cores[label].run_seconds >= modelled * 0.99
    parts = [c.convert_seconds + c.run_seconds + c.fetch_seconds for c in cores.values()]
    assert sum(parts) <= elapsed  # one caller: no part is counted twice


def test_waiting_is_counted_and_the_queue_is_seen(npu):
    npu.run_time_us = 30_000
    with session(schedule="0") as s:
        threads = [threading.Thread(target=s.run, args=(None, {"x": X})) for _ in range(4)]
        for thread in threads:
            thread.start()
        seen = []
        while any(t.is_alive() for t in threads):
            now = s.stats()
            seen.append((now.queued, now.total.in_use))
            threads[0].join(0.001)
        for thread in threads:
            thread.join()
        after = s.stats()
    assert max(queued for queued, _ in seen) == 3
    assert max(used for _, used in seen) == 1
    assert (after.queued, after.total.in_use, after.total.waits, after.total.runs) == (0, 0, 3, 4)
    assert after.total.wait_seconds >= 0.9 * 0.030 * (1 + 2 + 3)


def test_conversions_and_padding_are_counted(npu):
    with session(MODELS / "tokens_i64.onnx") as s:
        ids = np.zeros((1, 16), np.int64)
        for _ in range(3):
            s.run(None, {"ids": ids})
        total = s.stats().total
    assert total.bytes_converted % 3 == 0
    with session(MODELS / "conv_f16.onnx") as s:
        s.run(None, {"x": X})
        assert s.stats().total.bytes_converted == 0  # the runtime reads the array itself
    with session(MODELS / "dynamic.onnx", on_missing_shape="pad", pad_axes={"x": [2, 3]}) as s:
        s.run(None, {"x": np.zeros((1, 3, 20, 20), np.float32)})
        s.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})
        total = s.stats().total
    assert (total.runs, total.padded) == (2, 1)
    assert total.bytes_converted >= 4 * 3 * 32 * 32


def test_calls_on_the_cpu_are_counted(npu):
    with session(MODELS / "dynamic.onnx", on_missing_shape="cpu") as s:
        s.run(None, {"x": np.zeros((1, 3, 20, 20), np.float32)})
        s.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})
        stats = s.stats()
    assert (stats.cpu_calls, stats.total.runs) == (1, 1)


def test_a_session_on_the_cpu_has_no_models():
    s = ort.InferenceSession(MODELS / "conv_f16.onnx", providers=["CPUExecutionProvider"])
    assert list(s.stats().models) == [] and s.stats().total.runs == 0


def test_the_process_has_the_sum_of_all_sessions_also_of_closed_ones(npu):
    before = totals().get("conv_f16.rk3588.rknn")
    start = before.runs if before else 0
    first, second = session(), session(schedule="0,1")
    for s, number in ((first, 3), (second, 4)):
        for _ in range(number):
            s.run(None, {"x": X})
    assert totals()["conv_f16.rk3588.rknn"].runs == start + 7
    first.close()
    closed = first.stats().total
    assert (closed.runs, closed.contexts, closed.in_use) == (3, 0, 0)
    assert totals()["conv_f16.rk3588.rknn"].runs == start + 7
    second.close()
    assert totals()["conv_f16.rk3588.rknn"].runs == start + 7
    assert totals()["conv_f16.rk3588.rknn"].contexts == 0


def test_many_threads_lose_no_count(npu):
    with session(schedule="auto", threads_per_core=2) as s:

        def work():
            for _ in range(200):
                s.run(None, {"x": X})

        threads = [threading.Thread(target=work) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert s.stats().total.runs == 1600


def test_as_dict_is_json_and_samples_agree(npu):
    with session(schedule="0,1") as s:
        s.run(None, {"x": X})
        stats = s.stats()
    told = json.loads(json.dumps(stats.as_dict()))
    assert told["total"]["runs"] == 1
    samples = {(x.name, *x.labels.values()): x.value for x in stats.samples()}
    assert samples["ort_rknn_runs_total", "conv_f16.rk3588.rknn", "core 0"] == 1
    assert samples["ort_rknn_runs_total", "conv_f16.rk3588.rknn", "core 1"] == 0
    assert samples["ort_rknn_queued", "conv_f16.rk3588.rknn"] == 0
    names = {x.name: x.kind for x in stats.samples()}
    assert all((kind == "counter") == name.endswith("_total") for name, kind in names.items())


def test_stats_before_any_session_loads_nothing():
    code = (
        "import sys, ort_rknn; assert ort_rknn.stats().models == []; "
        "assert 'ort_rknn._executor.executor' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_prometheus_example(npu):
    client = pytest.importorskip("prometheus_client")
    example = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "prometheus_exporter.py"))
    registry = client.CollectorRegistry()
    registry.register(example["NpuCollector"]())
    with session() as s, session(schedule="0"):
        s.run(None, {"x": X})
        text = client.generate_latest(registry).decode()
    lines = [line for line in text.splitlines() if line.startswith("ort_rknn_runs_total{")]
    assert any('model="conv_f16.rk3588.rknn"' in line and 'core="core 0"' in line for line in lines)
    assert len({line.split("}")[0] for line in lines}) == len(lines)  # a registry takes no series twice
