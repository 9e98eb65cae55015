"""``ort_rknn.trace()``, ``ort-rknn trace`` and ``ort-rknn run --trace``: read back with a reader in this file."""

import os
import shutil
import struct
import subprocess
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, field

import onnx
import pytest
from support.command_json import validate
from support.models_in_parts import SHAPES, TWO_PARTS, three_steps, write_in_parts
from support.virtual_sessions import MODELS, VIRTUAL, X, session, virtual_rk3588

import ort_rknn as ort
from ort_rknn._bench.layers import LayerTime, layers_of, parse
from ort_rknn._bench.tracing import trace_model
from ort_rknn._cli.main import main
from ort_rknn._executor import recording
from ort_rknn._measure.perfetto import TraceWriter
from ort_rknn.adapter import AdapterError, LoadSettings, RknnError

npu = pytest.fixture(virtual_rk3588)


@pytest.fixture(autouse=True)
def nobody_listens_in_the_end():
    yield
    assert recording.sinks == []


# A reader of protobuf, which shares nothing with the writer -------------------------------------------------------


def message(data):
    """Field number -> values: integers, or bytes."""
    out, at = defaultdict(list), 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        tag = number()
        if tag & 7 == 0:
            out[tag >> 3].append(number())
        elif tag & 7 == 1:
            out[tag >> 3].append(struct.unpack_from("<Q", data, at)[0])
            at += 8
        else:
            assert tag & 7 == 2
            size = number()
            assert at + size <= len(data)
            out[tag >> 3].append(bytes(data[at : at + size]))
            at += size
    return out


@dataclass
class Bar:
    name: str
    begin: int
    flows: list
    last: list
    end: int = 0
    depth: int = 0


@dataclass
class Track:
    name: str
    parent: int = 0
    bars: list = field(default_factory=list)
    open: list = field(default_factory=list)
    instants: list = field(default_factory=list)
    counts: list = field(default_factory=list)

    def top(self):
        return [bar for bar in self.bars if bar.depth == 0]


def read(path):
    """The tracks by name, as Perfetto builds them: an end closes the last open slice of its track."""
    tracks, last = {}, 0
    for packet in map(message, message(path.read_bytes())[1]):
        assert packet[10] == [1]  # one sequence
        if packet[60]:
            told = message(packet[60][0])
            name = told[2][0].decode() if told[2] else message(told[3][0])[6][0].decode()
            assert told[1][0] not in tracks
            tracks[told[1][0]] = Track(name, told[5][0] if told[5] else 0)
            continue
        event, (at,) = message(packet[11][0]), packet[8]
        assert at >= last
        last = at
        (kind,), track = event[9], tracks[event[11][0]]
        if kind == 1:
            bar = Bar(event[23][0].decode(), at, event[47], event[48], depth=len(track.open))
            track.bars.append(bar)
            track.open.append(bar)
        elif kind == 2:
            track.open.pop().end = at
        elif kind == 3:
            track.instants.append((event[23][0].decode(), at, event[47]))
        else:
            track.counts.append((at, event[30][0] if event[30] else 0))
    assert all(not track.open for track in tracks.values())
    names = [track.name for track in tracks.values()]
    assert len(set(names)) == len(names)
    assert all(track.parent in tracks or track.name == "ort_rknn" for track in tracks.values())
    return {track.name: track for track in tracks.values()}


def named(tracks, start):
    return [track for name, track in tracks.items() if name.startswith(start)]


# ------------------------------------------------------------------------------------------------------------------


def test_the_writer_puts_ends_before_beginnings_and_keeps_order(tmp_path):
    writer = TraceWriter()
    process = writer.process("ort_rknn", 7)
    row, curve = writer.track("row", process), writer.counter("curve", process)
    writer.slice(row, "second", 20, 30)
    writer.slice(row, "first", 10, 20, flows=[5], notes={"a": "b"})
    writer.slice(row, "inner", 10, 20, last=[2**64 - 1])
    writer.slice(row, "nothing", 40, 40)
    writer.count(curve, 15, 300)
    writer.count(curve, 16, 0)
    writer.instant(row, "now", 35, flows=[9])
    (tmp_path / "t").write_bytes(writer.to_bytes())
    tracks = read(tmp_path / "t")
    bars = [(b.name, b.begin, b.end, b.depth) for b in tracks["row"].bars]
    assert bars == [("first", 10, 20, 0), ("inner", 10, 20, 1), ("second", 20, 30, 0), ("nothing", 40, 41, 0)]
    assert tracks["row"].bars[0].flows == [5] and tracks["row"].bars[1].last == [2**64 - 1]
    assert tracks["curve"].counts == [(15, 300), (16, 0)]
    assert tracks["row"].instants == [("now", 35, [9])]


def test_a_track_for_each_core_context_and_caller(npu, tmp_path):
    npu.run_time_us = 60_000
    with session(schedule="0,1") as s, ort.trace(tmp_path / "t.pftrace") as recorder:
        threads = [threading.Thread(target=s.run, args=(None, {"x": X}), name=f"worker {k}") for k in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    tracks = read(tmp_path / "t.pftrace")
    cores, contexts, callers = named(tracks, "NPU core"), named(tracks, "context"), named(tracks, "caller")
    assert (len(cores), len(contexts), len(callers)) == (2, 2, 5)
    assert [b.name for b in tracks["NPU core 0"].bars] == ["conv_f16.rk3588.rknn"] * 3
    for core in cores:
        assert all(bar.depth == 0 and bar.end - bar.begin >= 59_000_000 for bar in core.bars)
    for caller in callers:
        (call,) = caller.top()
        inner = [b.name for b in caller.bars if b.depth == 1]
        assert inner in (["convert", "run", "fetch"], ["wait", "convert", "run", "fetch"])
        assert call.begin == caller.bars[1].begin and call.end == caller.bars[-1].end
    assert sum("wait" in [b.name for b in caller.bars] for caller in callers) == 3
    (queue,) = named(tracks, "waiting for a context")
    assert max(value for _, value in queue.counts) == 3 and queue.counts[-1][1] == 0
    told = recorder.summary
    assert told.runs == 5 and told.lost == 0 and told.core_seconds.keys() == {"core 0", "core 1"}
    assert told.part_seconds["run"] == pytest.approx(sum(told.core_seconds.values()), rel=1e-6)
    assert told.seconds >= 0.18


def test_arrows_lead_from_a_call_to_its_context_and_core(npu, tmp_path):
    with session(schedule="0,1,2") as s, ort.trace(tmp_path / "t"):
        s.run(None, {"x": X})
        list(s.map([{"x": X}] * 4))
    tracks = read(tmp_path / "t")
    starts = {f for t in tracks.values() for b in t.bars for f in b.flows if f % 2}
    starts |= {f for t in tracks.values() for _, _, flows in t.instants for f in flows}
    assert len(starts) == 5
    contexts = [b for t in named(tracks, "context") for b in t.top()]
    assert {f for b in contexts for f in b.last} == starts
    assert {f for b in contexts for f in b.flows} == {f + 1 for f in starts}
    assert {f for t in named(tracks, "NPU core") for b in t.bars for f in b.last} == {f + 1 for f in starts}


def test_an_arrow_begins_before_it_ends_in_the_file_too(npu, tmp_path):
    """A run that does not wait begins on its context when it is called: Perfetto loses arrows that end first."""
    with session(schedule="0") as s, ort.trace(tmp_path / "t"):
        for _ in range(3):
            s.run(None, {"x": X})
    begun, ended = set(), set()
    for packet in map(message, message((tmp_path / "t").read_bytes())[1]):
        event = message(packet[11][0]) if packet[11] else {47: [], 48: []}
        assert set(event[48]) <= begun - ended  # terminating_flow_ids
        ended |= set(event[48])
        begun |= set(event[47])  # flow_ids
    assert len(begun) == 6 and begun == ended


def test_two_contexts_of_a_core_do_not_overlap_on_it(npu, tmp_path):
    npu.run_time_us = 2000
    with session(schedule="0", threads_per_core=2) as s, ort.trace(tmp_path / "t") as recorder:
        list(s.map([{"x": X}] * 12))
    tracks = read(tmp_path / "t")
    assert len(tracks["NPU core 0"].bars) == 12 and all(b.depth == 0 for b in tracks["NPU core 0"].bars)
    assert len(named(tracks, "context")) == 2
    assert recorder.summary.core_seconds["core 0"] <= recorder.summary.seconds


def test_a_core_of_the_runtimes_choice_is_named_by_its_context(npu, tmp_path):
    with session(tp_mode="auto") as s, ort.trace(tmp_path / "t"):
        s.run(None, {"x": X})
    tracks = read(tmp_path / "t")
    assert not named(tracks, "NPU core")
    assert len(named(tracks, "context 1 of conv_f16.rk3588.rknn, one core of the runtime's choice")) == 1


def test_failed_runs_are_marked_and_an_exception_still_writes(npu, tmp_path):
    npu.fault("rknn_run", -2, times=1)
    with pytest.raises(Exception, match="-2"), session(schedule="0") as s, ort.trace(tmp_path / "t") as recorder:
        s.run(None, {"x": X})
    tracks = read(tmp_path / "t")
    assert [bar.name for bar in tracks["NPU core 0"].bars] == ["conv_f16.rk3588.rknn (failed)"]
    (context,) = named(tracks, "context")
    assert [bar.name for bar in context.top()] == ["run that failed"]
    assert b"-2" in (tmp_path / "t").read_bytes()
    assert (recorder.summary.runs, recorder.summary.failed) == (1, 1)


def test_a_run_that_is_tried_again_is_there_twice(npu, tmp_path):
    npu.fault("rknn_run", -2, times=1)
    with session(schedule="0,1") as s, ort.trace(tmp_path / "t") as recorder:
        s.run(None, {"x": X})
    bars = [bar.name for track in named(read(tmp_path / "t"), "NPU core") for bar in track.bars]
    assert sorted(bars) == ["conv_f16.rk3588.rknn", "conv_f16.rk3588.rknn (failed)"]
    assert (recorder.summary.runs, recorder.summary.failed) == (2, 1)


def test_a_submitted_run_that_fails_is_marked_too(npu, tmp_path):
    """Through ``submit``, which runs it on another thread than the caller's."""
    npu.fault("rknn_outputs_get", -1, times=1)
    with session(schedule="0", retries=0) as s, ort.trace(tmp_path / "t") as recorder:
        calls = [s.submit(None, {"x": X}) for _ in range(3)]
        failed = [call for call in calls if call.exception(10) is not None]
    assert len(failed) == 1 and (recorder.summary.runs, recorder.summary.failed) == (3, 1)


def test_a_file_that_cannot_be_written_is_reported_at_once(tmp_path):
    with pytest.raises(OSError), ort.trace(tmp_path / "no" / "t"):
        raise AssertionError("never here")


# A model ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_parts(tmp_path):
    model = three_steps()
    onnx.save(model, tmp_path / "m.onnx")
    write_in_parts(tmp_path, model, TWO_PARTS, SHAPES)
    return tmp_path / "m.onnx"


def test_a_model_in_parts_shows_the_nodes_on_the_cpu_between_its_runs(npu, in_parts, tmp_path):
    npu.run_time_us = 2000
    told = trace_model(in_parts, tmp_path / "t", runs=5, callers=2, options=VIRTUAL).summary
    tracks = read(tmp_path / "t")
    assert told.runs == 2 * 5 * 2 and told.part_seconds["CPU nodes"] > 0
    nodes = named(tracks, "CPU nodes")
    assert len(nodes) == 2
    calls = {t.name.removeprefix("caller "): t.top() for t in named(tracks, "caller")}
    for track in nodes:
        own = calls[track.name.removeprefix("CPU nodes of ")]
        assert len(own) == 5 and all(bar.name == "run m.onnx" for bar in own)
        assert {bar.name.split()[0] for bar in track.bars} >= {"Neg", "ReduceSum"}
        for bar in track.bars:  # the clocks agree
            assert any(call.begin - 50_000 <= bar.begin <= bar.end <= call.end + 50_000 for call in own)


def test_a_model_on_the_cpu_is_traced_too(tmp_path):
    told = trace_model(MODELS / "conv_f16.onnx", tmp_path / "t", runs=3).summary
    assert told.runs == 0
    (caller,) = named(read(tmp_path / "t"), "caller 0 (")
    assert [bar.name for bar in caller.bars] == ["run conv_f16.onnx"] * 3


def test_a_fallback_is_a_line_of_the_commands(tmp_path, monkeypatch, capsys, recwarn):
    monkeypatch.setenv("ORT_RKNN_DEVICE", "rk3588")
    shutil.copy(MODELS / "conv_f16.onnx", tmp_path / "m.onnx")
    assert main(["trace", str(tmp_path / "m.onnx"), "--runs", "3", "-o", str(tmp_path / "t")]) == 0
    assert "nothing ran on an NPU" in capsys.readouterr().out and not recwarn.list


def test_the_command(npu, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["trace", "--device", "virtual:rk3588", "--runs", "4", "--callers", "2", "--option", "schedule=0,1"]
    assert main([*argv, str(MODELS / "conv_f16.onnx")]) == 0
    text = capsys.readouterr().out
    assert "core 1 worked for" in text and "trace.pftrace; open it with" in text
    assert main([*argv, "-o", "other", "--json", str(MODELS / "conv_f16.onnx")]) == 0
    assert validate("trace", capsys.readouterr().out)["runs"] == 8
    assert len(named(read(tmp_path / "other"), "NPU core")) == 2
    assert main(["trace", str(MODELS / "conv_f16.onnx"), "--runs", "3", "-o", "third"]) == 0
    assert main(["trace", str(MODELS / "conv_f16.onnx"), "--rums", "3"]) == 2
    assert main(["trace", "--runs", "0", str(MODELS / "conv_f16.onnx")]) == 2
    assert main(["trace", "--option", "x", str(MODELS / "conv_f16.onnx")]) == 2
    assert main(["trace", "-o", "no/t", str(MODELS / "conv_f16.onnx")]) == 1
    assert main(["trace", "none.onnx"]) == 1


def test_a_damaged_onnx_is_one_line_and_no_log_of_onnxruntimes(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.onnx").write_text("junk\n")
    assert main(["trace", "junk.onnx"]) == 1
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and "not an ONNX model" in err


# Layers -----------------------------------------------------------------------------------------------------------

TABLE = """
------------------------------------------------------------
                 Network Layer Information Table
------------------------------------------------------------
ID   OpType        DataType Target InputShape          OutputShape    Cycles(DDR/NPU/Total) Time(us) MacUsage(%)  WorkLoad(0/1/2)  RW(KB)  FullName
------------------------------------------------------------
1    InputOperator INT8     CPU    \\                   (1,3,32,32)    0/0/0                 16                    0.0%/0.0%/0.0%   3       InputOperator:x
2    ConvRelu      INT8     NPU    (1,3,32,32),(8,3,3,3) (1,8,32,32)   100/200/200           240      12.5         100.0%/0.0%/0.0% 9       Conv:c1
3    Odd           INT8     NPU    (1,8)               (1,8)          0/0/0                 soon                  0                0       Odd:o
Total Operator Elapsed Per Frame Time(us): 256
"""  # noqa: E501


def test_the_runtimes_table_is_read():
    first, second = parse("m", TABLE)
    assert (first.number, first.operator, first.target, first.us) == (1, "InputOperator", "CPU", 16.0)
    assert second == LayerTime("m", 2, "ConvRelu", "NPU", 240.0, "Conv:c1")
    logged = "D RKNN: [05:07:06.566] " + TABLE.splitlines()[4] + "\n7 A F CPU i o 0 5 n"
    (logged,) = parse("m", logged)
    assert (logged.number, logged.name) == (7, "n")
    for text in ("", "nothing\nof the kind", "1 2 3"):
        with pytest.raises(AdapterError, match="unknown format"):
            list(parse("m", text))


@pytest.mark.parametrize("name", ["conv_f16", "tokens_i64", "dynamic"])
def test_the_layers_of_a_model(npu, name):
    npu.run_time_us = 3000
    with session(MODELS / f"{name}.onnx") as s:
        layers = layers_of(s)
        assert s.stats().total.runs == 0  # they are not the session's runs
    assert layers[0].target == "NPU" and layers[0].us >= 3000
    assert {layer.target for layer in layers[1:]} == {"CPU"}
    assert npu.counters().contexts == 0


def test_the_layers_of_all_parts_and_of_none(npu, in_parts):
    with session(in_parts) as s:
        assert len({layer.model for layer in layers_of(s)}) == 2
    with ort.InferenceSession(MODELS / "conv_f16.onnx", providers=["CPUExecutionProvider"]) as s:
        assert layers_of(s) == []


def test_a_runtime_that_reports_no_layers_is_noted_with_its_reason(npu):
    with session() as s:
        executor = s._npu.executor
        plain = s._npu.plan.found.adapter.load(s._npu.plan.found.device, executor.provenance.source, LoadSettings())
        with pytest.raises(RknnError):
            plain.context(0).layer_table()  # it was loaded without
        plain.close()
        npu.fault("rknn_init", -6)
        with pytest.raises(Exception, match="its layers are not reported: "):
            layers_of(s)


def test_layers_are_printed(npu, capsys, tmp_path):
    npu.run_time_us = 1000
    where = str(tmp_path / "t")
    argv = ["trace", str(MODELS / "conv_f16.onnx"), "--device", "virtual:rk3588", "--runs", "2", "-o", where]
    assert main([*argv, "--layers"]) == 0
    text = capsys.readouterr().out
    assert "Virtual:model" in text and "of the layers' time is not on the NPU" in text
    assert main([*argv, "--layers", "--json"]) == 0
    assert len(validate("trace", capsys.readouterr().out)["layers"]) == 3


# A program --------------------------------------------------------------------------------------------------------

APP = """
import sys, threading
import numpy as np, onnxruntime as ort
s = ort.InferenceSession({model!r})
x = np.zeros((1, 3, 32, 32), np.float32)
for _ in range(int(sys.argv[1])):
    s.run(None, {{"x": x}})
sys.exit(3)
"""


def test_a_program_may_change_its_folder(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with ort.trace("t"):
        monkeypatch.chdir("other")
    assert (tmp_path / "t").stat().st_size
    assert not list((tmp_path / "other").iterdir())


def test_a_program_is_traced_unmodified(tmp_path):
    (tmp_path / "app.py").write_text(APP.format(model=str(MODELS / "conv_f16.onnx")))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-m", "ort_rknn", "trace", "--device", "virtual:rk3588", "-o", "t", "app.py", "6"],
        cwd=tmp_path,
        env={**environ, "ORT_RKNN_POLICY": "prefer"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 3, done.stderr
    assert "6 runs on the NPU; written: " in done.stderr
    tracks = read(tmp_path / "t")
    (caller,) = named(tracks, "caller MainThread")
    assert [bar.name for bar in caller.top()] == ["run conv_f16.onnx"] * 6
    assert [bar.depth for bar in caller.bars if bar.name == "run"] == [2] * 6


NODES = """
import numpy as np, onnxruntime as ort
x = {"x": np.zeros((512, 512), np.float32)}
def make(so=None):
    made = ort.InferenceSession("m.onnx", so)
    made.run(None, x)
    return made
make().close()
make()
own = ort.SessionOptions()
own.enable_profiling, own.profile_file_prefix = True, "mine"
make(own).end_profiling()
so = ort.SessionOptions()
left = make(so)
print(so.enable_profiling, so.profile_file_prefix, left.get_providers())
"""


def test_the_nodes_that_a_program_runs_on_the_cpu_are_there(tmp_path):
    """Of a closed session, a dropped one and a live one; one of them also profiles."""
    value = onnx.helper.make_tensor_value_info
    sides = [value(name, onnx.TensorProto.FLOAT, [512, 512]) for name in "xy"]
    product = onnx.helper.make_node("MatMul", ["x", "x"], ["y"], name="product")
    graph = onnx.helper.make_graph([product], "g", sides[:1], sides[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=[opset]), tmp_path / "m.onnx")
    (tmp_path / "app.py").write_text(NODES)
    (tmp_path / "temp").mkdir()
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-m", "ort_rknn", "trace", "-o", "t", "app.py"],
        cwd=tmp_path,
        env={**environ, "TMPDIR": str(tmp_path / "temp")},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "False"), done.stderr
    assert "CPUExecutionProvider" in done.stdout
    (nodes,) = named(read(tmp_path / "t"), "CPU nodes of MainThread")
    assert [bar.name for bar in nodes.bars] == ["MatMul product"] * 3
    assert list((tmp_path / "temp").glob("ort_rknn_trace*")) == []
    assert len(list(tmp_path.glob("mine_*.json"))) == 1
