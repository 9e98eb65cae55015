"""``ort_rknn.bench()`` and ``ort-rknn bench``: what is measured, what is recommended, and how it is reported."""

import html.parser
import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from support.command_json import validate
from support.virtual_sessions import MODELS, VIRTUAL, session, virtual_rk3588

import ort_rknn as ort
from ort_rknn._bench import load
from ort_rknn._bench.advice import advise
from ort_rknn._bench.compare import compare, read_report
from ort_rknn._bench.page import page
from ort_rknn._bench.report import BenchReport, Result, Setting
from ort_rknn._bench.splitting import compiled_convolutions, split_share
from ort_rknn._bench.together import arrangements
from ort_rknn._cli.main import main
from ort_rknn._rknpu import TP_MODES
from ort_rknn.adapter.contract import ModelSource

npu = pytest.fixture(virtual_rk3588)
MODEL = MODELS / "conv_f16.onnx"


@pytest.fixture
def slow_npu(npu):
    """5 ms a run, so that Python's overhead does not matter even on a busy machine."""
    npu.run_time_us = 5000
    return npu


def by_name(report):
    return {result.setting.name: result for result in report.results}


def test_a_model_that_takes_strings_is_not_measured(tmp_path):
    """bench() cannot generate strings."""
    text = helper.make_tensor_value_info("text", TensorProto.STRING, [1])
    node = helper.make_node("Identity", ["text"], ["y"])
    graph = helper.make_graph([node], "g", [text], [helper.make_tensor_value_info("y", TensorProto.STRING, [1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "text.onnx")
    with pytest.raises(InvalidArgument, match=r"input 'text' is tensor\(string\): only numbers"):
        ort.bench(tmp_path / "text.onnx", seconds=0.1)


# What is recommended ----------------------------------------------------------------------------------------------


@pytest.mark.wall_clock
@pytest.mark.parametrize(
    ("efficiency", "latency"), [(0.9, {"tp_mode": "all"}), (0.3, {}), (1 / 3, {})], ids=["gains", "loses", "equal"]
)
def test_tp_mode_is_recommended_for_latency_where_it_gains_and_only_there(slow_npu, efficiency, latency):
    slow_npu.tp_efficiency(efficiency)
    report = ort.bench(MODEL, seconds=4, options=VIRTUAL)
    assert report.best_latency_on_npu.setting.options == latency
    assert report.best_throughput_on_npu.setting.options["schedule"] == "0,1,2"
    assert report.device == "virtual:rk3588" and report.cores == 3
    (pasted,) = [line for line in report.lines_to_paste() if "best latency on the NPU" in line]
    assert ("tp_mode" in pasted) == bool(latency)


@pytest.mark.wall_clock
def test_a_core_of_its_own_for_each_model_where_one_is_slow(slow_npu):
    slow_npu.core_factor(2, 6.0)
    report = ort.bench_together([MODEL, MODELS / "image_u8.onnx"], seconds=4, options=VIRTUAL)
    assert len(report.alone) == 2
    assert {a.name for a in report.arrangements} == {
        "all models: all cores",
        "conv_f16.onnx: 0; image_u8.onnx: 1,2",
        "conv_f16.onnx: 0,1; image_u8.onnx: 2",
    }
    assert report.best.schedules[1] != "2"  # the slow core alone starves the second model
    assert len(report.lines_to_paste()) == 2
    json.dumps(report.as_json(), allow_nan=False)


def test_every_way_to_give_cores_is_tried_and_each_model_has_one():
    assert len(arrangements(["a", "b"], 3)) == 1 + 2
    assert len(arrangements(["a", "b", "c"], 3)) == 1 + 1
    assert [a.name for a in arrangements(["a", "b"], 1)] == ["all models: all cores"]


def measured(speed, p50=1.0, callers=1, **parts):
    times = {"wait_ms": 0.0, "convert_ms": 0.0, "run_ms": 1.0, "fetch_ms": 0.0, "host_ms": 0.0, **parts}
    return load.Measured(
        callers=callers,
        runs=100,
        seconds=1.0,
        runs_per_second=speed,
        p50_ms=p50,
        p95_ms=p50,
        p99_ms=p50,
        outliers=0,
        cpu_seconds_per_run=0.001,
        **times,
    )


def made_report(*results):
    return BenchReport("m.onnx", "virtual:rk3588", 3, [Result(setting, m) for setting, m in results])


def test_a_simpler_setting_stays_where_another_is_hardly_better():
    report = made_report(
        (Setting("default, 1 caller", {}), measured(100, 10.0)),
        (Setting("tp_mode=all, 1 caller", {"tp_mode": "all"}), measured(103, 9.7)),
    )
    assert report.best_throughput.setting.options == report.best_latency.setting.options == {}
    assert len(report.lines_to_paste()) == 2


def test_the_cpu_is_named_where_it_is_faster_and_the_npu_too():
    report = made_report((Setting("default, 1 caller", {}), measured(100)), (Setting("CPU", None), measured(900, 0.1)))
    assert report.best_throughput.setting.options is None
    assert report.best_throughput_on_npu.setting.options == {}
    assert advise(report).startswith("The CPU is faster than the NPU here (900 against 100 runs/s). On the NPU: the")
    assert len(report.lines_to_paste()) == 4


def test_the_host_is_named_as_the_bottleneck_and_the_option_that_helps():
    slow_inputs = measured(100, convert_ms=4.0)
    camera = Setting("uint8 NHWC", {"layout": "nhwc"}, changes_input=True)
    report = made_report((Setting("default, 1 caller", {}), slow_inputs), (camera, measured(400)))
    assert "The host is the bottleneck" in advise(report) and "4.00 times as many runs" in advise(report)
    assert report.best_throughput.setting.options == {}  # the program would have to feed something else
    slow_outputs = made_report((Setting("default, 1 caller", {}), measured(100, fetch_ms=4.0)))
    assert "output_dtype='native'" in advise(slow_outputs)
    assert "session.map" in advise(made_report((Setting("default, 1 caller", {}), measured(100, host_ms=4.0))))
    assert advise(made_report((Setting("d", {}), measured(1000)))).startswith("The NPU is the bottleneck")


def test_a_host_without_a_cpu_to_spare_is_the_bottleneck_where_the_cores_seem_busy():
    report = made_report((Setting("d", {}), measured(1900)))  # of 1 ms of CPU time each
    report.cpus = 2
    assert "its 2 CPUs work 95% of the time, where a virtual NPU computes too." in advise(report)
    report.cpus = 8
    assert advise(report).startswith("The NPU is the bottleneck")


def test_two_contexts_of_the_runtimes_choice_may_keep_two_cores_busy():
    report = made_report((Setting("threads_per_core=2, 2 callers", {"threads_per_core": 2}), measured(1000, callers=2)))
    assert "cores work 50% of the time" in advise(report)


def test_what_is_set_already_is_no_advice():
    slow = measured(100, convert_ms=4.0)
    camera = (Setting("uint8 NHWC", {"layout": "nhwc"}, changes_input=True), measured(100))
    assert "threads_per_core=2 hides" in advise(made_report((Setting("d", {}), slow), camera))
    taken = made_report((Setting("threads_per_core=2, 2 callers", {"threads_per_core": 2}), slow), camera)
    assert "are no faster" in advise(taken) and "threads_per_core" not in advise(taken)


def test_lines_to_paste_are_python_whatever_the_name():
    report = made_report((Setting("default, 1 caller", {}), measured(100)))
    report.model = 'odd "name" \\.onnx'
    calls = []
    for line in report.lines_to_paste():
        fake = type("Fake", (), {"InferenceSession": staticmethod(lambda model, **options: calls.append(model))})
        exec(line, {"ort_rknn": fake})
    assert calls == [report.model] * 2


# What is measured -------------------------------------------------------------------------------------------------


def test_a_load_is_measured_in_its_parts(slow_npu):
    with session(schedule="0") as s:
        m = load.run_load(s, load.feed_for(s), callers=2, seconds=0.3)
    assert m.runs >= 4 and m.callers == 2
    assert m.run_ms >= 5.0 and m.wait_ms > 2.0  # two callers share a core
    assert m.p50_ms <= m.p95_ms <= m.p99_ms
    assert m.runs_per_second == pytest.approx(m.runs / m.seconds)


@pytest.mark.parametrize("dims", [("n", 8, "h", "w"), (1, 8, 16, 16)], ids=["free", "fixed"])
def test_the_cpu_is_fed_what_the_npu_is_fed(dims, tmp_path):
    """Axes that the ONNX leaves free have their compiled length on the CPU as well."""
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, dims) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    plain = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert load.fits(plain, {"x": np.zeros((1, 8, 16, 16), np.float32)})
    for other in (
        {"x": np.zeros((1, 16, 16, 8), np.float32)},
        {"x": np.zeros((1, 8, 16, 16), np.uint8)},
        {"x": np.zeros((8, 16, 16), np.float32)},
        {"z": np.zeros((1, 8, 16, 16), np.float32)},
        {},
    ):
        assert not load.fits(plain, other)


def test_bench_feeds_the_cpu_the_compiled_shape(npu, monkeypatch, tmp_path):
    model = onnx.load(MODEL)
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = f"free_{axis.dim_value}"
    for place in (*model.graph.output, *model.graph.value_info):
        place.type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / MODEL.name)
    shutil.copy(MODELS / "conv_f16.rk3588.rknn", tmp_path)
    fed = []

    def watched(session, feed, *rest):
        fed.append((session.get_providers()[0], [array.shape for array in feed.values()]))
        return run_load(session, feed, *rest)

    run_load = load.run_load
    monkeypatch.setattr("ort_rknn._bench.bench.run_load", watched)
    report = ort.bench(tmp_path / MODEL.name, seconds=1, options=VIRTUAL)
    assert report.device == "virtual:rk3588"
    monkeypatch.setattr("ort_rknn._bench.bench.run_load", run_load)
    (tmp_path / "conv_f16.rk3588.rknn").unlink()
    alone = ort.bench(tmp_path / MODEL.name, seconds=0.2, options={"device": "rk3588"})
    (note,) = (note for note in alone.notes if "leaves axes free" in note)
    assert note.endswith(f"measured with {model.graph.input[0].name} {[*fed[0][1][0][:2], 1, 1]}")
    shapes = {provider: shape for provider, shape in fed if len(set(map(tuple, shape))) == 1}
    assert shapes["CPUExecutionProvider"] == fed[0][1] and min(fed[0][1][0][2:]) > 1


def test_a_failing_run_ends_the_load(npu):
    npu.fault("rknn_run", -2, after=20)
    with session() as s, pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException):
        load.run_load(s, load.feed_for(s), callers=3, seconds=30)


def test_outliers_are_counted_and_percentiles_are_ranks():
    assert load._outliers([1.0] * 90 + [5.0] * 3) == 3
    assert load._outliers([1.0, 1.01, 1.02]) == 0
    assert load._percentile([0.001 * k for k in range(1, 101)], 0.95) == pytest.approx(96.0)


def test_feeds_fit_free_batches_dynamic_models_and_integers():
    for name, samples in (("free_batch", 6), ("dynamic", 1), ("tokens_i64", 1), ("bool_mask", 1), ("two_io", 1)):
        with session(MODELS / f"{name}.onnx") as s:
            s.run(None, load.feed_for(s, samples))


def test_failing_settings_are_reported_and_the_others_continue(npu):
    npu.fault("rknn_run", -2, core_mask=TP_MODES["all"])
    seen = []
    report = ort.bench(MODELS / "free_batch.onnx", seconds=1.5, options=VIRTUAL, progress=lambda r: seen.append(1))
    results = by_name(report)
    assert results["default, 1 caller"].measured is not None
    assert "-2" in results["tp_mode=all, 1 caller"].skipped
    assert results["a batch of 6, 1 caller"].measured is not None
    assert results["a batch of 6, 1 caller"].setting.samples == 6
    assert len(seen) == len(report.results) + 1
    assert all((r.measured is None) == bool(r.skipped) for r in report.results)


def test_without_an_npu_the_cpu_is_measured_and_the_reason_given(tmp_path):
    shutil.copy(MODEL, tmp_path)
    report = ort.bench(tmp_path / MODEL.name, seconds=0.4)
    assert report.device == "" and report.best_throughput_on_npu is None
    assert [r.setting.options for r in report.results] == [None, None]
    assert report.notes and "doctor" in report.advice


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 1e9])
def test_invalid_durations_are_rejected(seconds):
    with pytest.raises(ort.OptionError, match="seconds"):
        ort.bench(MODEL, seconds=seconds)
    with pytest.raises(ort.OptionError, match="two"):
        ort.bench_together([MODEL])


# What tp_mode can gain --------------------------------------------------------------------------------------------


def conv_net(tmp_path, activation):
    """Two equal convolutions with something behind each, and a matrix product of nearly no work."""
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, (8, 8, 3, 3), np.zeros(576, np.float32)) for name in ("w1", "w2")
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
        helper.make_node(activation, ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, 16, 16]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    path = tmp_path / f"{activation}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def share_of(path):
    def plain(options):
        return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    return split_share(path, plain, {"x": np.zeros((1, 8, 16, 16), np.float32)})


def test_what_tp_mode_can_gain_is_derived_from_the_file(tmp_path):
    relu, sigmoid = share_of(conv_net(tmp_path, "Relu")), share_of(conv_net(tmp_path, "Sigmoid"))
    assert relu.share == pytest.approx(1.0) and relu.gain(3) == pytest.approx(3.0)
    assert sigmoid.share == pytest.approx(0.5, abs=0.01)  # a Conv with a fused Sigmoid runs on one core
    assert sigmoid.gain(3) == pytest.approx(1.5, abs=0.02)
    assert sigmoid.one_core == {"Conv": 1, "Sigmoid": 1}
    assert "50% of the work" in sigmoid.sentence(3)


def test_constant_nodes_do_not_shift_the_others(tmp_path):
    """onnxruntime turns them into initializers and does not count them as nodes."""
    path = conv_net(tmp_path, "Sigmoid")
    model = onnx.load(path)
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0])
    for name in ("k1", "k2", "k3"):
        model.graph.node.insert(0, helper.make_node("Constant", [], [name], value=value))
    model.graph.node[-1].output[0] = "d"
    model.graph.node.append(helper.make_node("Identity", ["d"], ["e"]))
    model.graph.node.append(helper.make_node("Mul", ["e", "k1"], ["y"]))
    onnx.save(model, path)
    share = share_of(path)
    assert share.one_core == {"Conv": 1, "Sigmoid": 1} and share.split == {"Conv": 1, "Relu": 1, "Mul": 1}
    assert share.share == pytest.approx(0.5, abs=0.01)


def test_a_convolution_splits_as_it_was_compiled(tmp_path):
    """The compiler fuses nodes: a hard swish is four nodes in the ONNX."""
    path = conv_net(tmp_path, "Relu")
    model = onnx.load(path)
    for name, node in zip("abcd", model.graph.node):
        node.name = name
    onnx.save(model, path)
    feed = {"x": np.zeros((1, 8, 16, 16), np.float32)}

    def plain(options):
        return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    assert split_share(path, plain, feed, {}).share == pytest.approx(1.0)
    share = split_share(path, plain, feed, {"a": False, "c": True})
    assert share.share == pytest.approx(0.5, abs=0.01) and share.one_core["Conv"] == 1


def test_the_compiled_convolutions_are_read(models):
    compiled = (models / "conv_i8.rk3588.rknn").read_bytes()
    found = compiled_convolutions([ModelSource(data=b"no model"), ModelSource(data=compiled)])
    names = {node.name for node in onnx.load(models / "conv_i8.onnx").graph.node if node.op_type == "Conv"}
    assert found and set(found) <= names and all(found.values())


def test_nodes_that_onnxruntime_numbers_in_another_way_are_not_taken_for_others(tmp_path):
    path, other = conv_net(tmp_path, "Sigmoid"), conv_net(tmp_path, "Relu")
    feed = {"x": np.zeros((1, 8, 16, 16), np.float32)}
    with pytest.raises(ValueError, match="node 1 is a Sigmoid, and onnxruntime ran a Relu"):
        split_share(path, lambda so: onnxruntime.InferenceSession(other, so, ["CPUExecutionProvider"]), feed)


# The command ------------------------------------------------------------------------------------------------------


@pytest.mark.wall_clock
def test_the_command_reports_all_of_it(slow_npu, capsys, tmp_path):
    where = tmp_path / "report.html"
    argv = ["bench", str(MODEL), "--device", "virtual:rk3588", "--seconds", "2"]
    assert main([*argv, "--html", str(where)]) == 0
    text = capsys.readouterr().out
    assert "tp_mode: 100% of the work" in text and "a virtual NPU" in text
    assert "best throughput on the NPU" in text and "best latency" in text and str(where) in text
    assert main([*argv, "--json"]) == 0
    whole = validate("bench", capsys.readouterr().out)
    data = whole["report"]
    assert whole["changes"] == [] and whole["together"] is None
    assert data["tp_mode"]["at_most"] == pytest.approx(3.0, abs=0.1)
    measured = [r["measured"] for r in data["results"] if r["measured"]]
    assert len(measured) >= 10 and all(m["runs"] > 0 for m in measured)


def test_the_command_is_silent_on_a_closed_pipe():
    argv = [sys.executable, "-m", "ort_rknn", "bench", str(MODEL), "--device", "virtual:rk3588", "--seconds", "0.2"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_command_gives_reasons_below_the_table(npu, capsys, tmp_path):
    model = shutil.copy(MODELS / "conv_f16.rk3588.rknn", tmp_path / "alone.rknn")  # without an ONNX for the CPU
    assert main(["bench", str(model), "--device", "virtual:rk3588", "--seconds", "0.3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if line.startswith("default, 1 caller")) < 160
    row, reason = [line for line in lines if line.startswith("CPU, 1 caller")]
    assert row.split()[-1] == "-" and reason.startswith("CPU, 1 caller: ")


def test_the_command_compares_several_models(slow_npu, capsys):
    argv = ["bench", str(MODEL), str(MODELS / "image_u8.onnx"), "--device", "virtual:rk3588", "--seconds", "1"]
    assert main(argv) == 0
    assert "image_u8.onnx: 1,2" in capsys.readouterr().out
    assert main([*argv, "--json"]) == 0
    assert len(validate("bench", capsys.readouterr().out)["together"]["alone"]) == 2
    assert main([*argv, "--html", "x.html"]) == 2


def test_a_setting_that_became_slower_is_found(tmp_path):
    report = made_report((Setting("default, 1 caller", {}), measured(100)), (Setting("new", {}), measured(5)))
    old = tmp_path / "old.json"
    before = made_report((Setting("default, 1 caller", {}), measured(130)), (Setting("gone", {}), measured(5)))
    old.write_text(json.dumps({"schema": "ort-rknn/bench/1", "report": before.as_json()}))
    (change,) = compare(report, read_report(old))
    assert change.slower and change.ratio == pytest.approx(100 / 130)
    assert not compare(before, read_report(old))[0].slower


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "ort-rknn/bench/1"}', "[" * 100_000])
def test_a_file_that_is_no_report_is_an_error_before_anything_is_measured(text, tmp_path, capsys):
    old = tmp_path / "old.json"
    old.write_text(text)
    assert main(["bench", str(MODEL), "--compare", str(old)]) == 2
    assert main(["bench", str(MODEL), "--compare", str(tmp_path / "none.json")]) == 2
    assert main(["bench", str(MODEL), "--html", str(tmp_path / "no" / "r.html")]) == 2
    assert main(["bench", str(MODEL), "--seconds", "0"]) == 2
    assert main(["bench", str(tmp_path / "none.onnx")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 5


# The page ---------------------------------------------------------------------------------------------------------


def full_report():
    every = {"schedule": "0,1,2"}
    report = made_report(
        (Setting("default, 1 caller", {}), measured(100, 10.0, convert_ms=2.0)),
        *((Setting(f"schedule=0,1,2, {n} callers", every, n), measured(90 * n, n / 2, n)) for n in (2, 4, 8, 16)),
        (Setting("CPU, 1 caller", None), measured(5, 200.0, run_ms=0.0)),
    )
    report.results.append(Result(Setting("<script>alert(1)</script>", {}), skipped="it & that"))
    report.model, report.advice = '<b>"model"</b>\x1b.onnx', "Advice < here."
    return report


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "action", "srcset", "data")]


def test_the_page_holds_everything_itself_and_no_name_becomes_a_tag():
    text = page(full_report())
    reader = Reader()
    reader.feed(text)
    assert "script" not in reader.tags and "b" not in reader.tags and reader.links == []
    assert "url(" not in text and "@import" not in text and "\x1b" not in text
    assert reader.tags.count("svg") == 3
    for number in range(3):
        start = text.split("<svg")[number + 1]
        ElementTree.fromstring("<svg" + start[: start.index("</svg>") + 6])  # each is well formed
    assert "prefers-color-scheme: dark" in text
    page(BenchReport("m", "", 0))  # nothing measured


def test_a_browser_shows_the_page(tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium here")
    where = tmp_path / "report.html"
    where.write_text(page(full_report()), encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom", where.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<svg") == 3 and "Advice &lt; here." in done.stdout
