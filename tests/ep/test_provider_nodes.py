"""Graphs with EPContext nodes: where a node's compiled model comes from, and how its ports are found."""

import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.ep_feeds import CPU, X, elementwise
from support.ep_models import FLOAT, OURS, context_node, helper, mixed, model, plain_session, quiet, tensor
from support.fake_npu import info

import ort_rknn
from ort_rknn import FallbackWarning, NpuUnavailable
from ort_rknn._ep import kernel
from ort_rknn_virtual._standin import stand_in


def test_mixed_graph_embedded(npu, blob, session_on):
    elementwise(npu, lambda a: a * 10)
    session = session_on(mixed(blob))
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], np.maximum((X + 1) * 10, 0))
    assert session.get_providers() == [OURS, CPU]
    # Strings of attributes are read in their exact size: NULs, also at the end, belong to them.
    assert npu.models[0].source.data == blob
    assert b"\0" in blob


def test_blobs_keep_trailing_bytes(npu, blob, session_on):
    elementwise(npu, lambda a: a)
    longer = blob + b"tail\0\0\0"
    session_on(mixed(longer)).run(None, {"X": X})
    assert npu.models[0].source.data == longer


def test_mixed_graph_keeps_the_users_threads(npu, blob):
    elementwise(npu, lambda a: a)
    session = ort_rknn.InferenceSession(mixed(blob), quiet())
    assert session.get_session_options().intra_op_num_threads == 0


@pytest.fixture
def on_disk(tmp_path, blob):
    """Writes a mixed model whose node names a file, beside that file."""
    (tmp_path / "in").mkdir()
    folder = tmp_path / "in"
    (folder / "m.rknn").write_bytes(blob)
    (folder / "sub").mkdir()
    (folder / "sub" / "m.rknn").write_bytes(blob)
    (tmp_path / "out.rknn").write_bytes(blob)
    (folder / "link_out.rknn").symlink_to(tmp_path / "out.rknn")
    (folder / "link_in.rknn").symlink_to("m.rknn")
    (folder / "folder_out").symlink_to(tmp_path)
    (tmp_path / "in2").mkdir()
    (tmp_path / "in2" / "m.rknn").write_bytes(blob)

    def write(cache):
        path = folder / "model_ctx.onnx"
        path.write_bytes(mixed(cache, embed_mode=0))
        return str(path)

    return write


@pytest.mark.parametrize("name", ["m.rknn", "sub/m.rknn", "./m.rknn", "link_in.rknn"])
def test_a_node_may_name_a_file_beside_its_model(npu, on_disk, session_on, name):
    elementwise(npu, lambda a: -a)
    path = on_disk(name)
    session = session_on(path)
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], np.maximum(-(X + 1), 0))
    assert npu.models[0].source.path == os.path.realpath(Path(path).parent / name)


@pytest.mark.parametrize(
    "name",
    [
        "../out.rknn",
        "sub/../../out.rknn",
        "sub/../m.rknn",
        "..\\out.rknn",
        "link_out.rknn",
        "folder_out/out.rknn",
        "../in2/m.rknn",
        "m.rknn\0.onnx",
        "",
    ],
)
def test_a_node_may_not_name_a_file_elsewhere(npu, on_disk, session_on, name):
    elementwise(npu, lambda a: a)
    with pytest.raises(state.InvalidArgument, match=r"npu: ep_cache_context .* leads out of the model's folder"):
        session_on(on_disk(name))
    assert npu.loads == 0


def test_a_node_may_not_name_an_absolute_path(npu, on_disk, session_on, models, tmp_path):
    elementwise(npu, lambda a: a)
    for absolute in (tmp_path / "out.rknn", tmp_path / "in" / "m.rknn"):
        with pytest.raises(state.InvalidArgument, match="leads out of the model's folder"):
            session_on(on_disk(str(absolute)))
    assert npu.loads == 0


def test_a_node_names_a_file_that_is_not_there(npu, on_disk, session_on):
    elementwise(npu, lambda a: a)
    for name in ("nothing.rknn", "sub"):
        with pytest.raises(state.NoSuchFile, match=f"npu: its compiled model '{name}' is not in"):
            session_on(on_disk(name))


def test_a_node_names_a_file_but_the_model_came_from_memory(npu, blob, session_on):
    elementwise(npu, lambda a: a)
    with pytest.raises(state.InvalidArgument, match="the model was loaded from memory"):
        session_on(mixed("m.rknn", embed_mode=0))


@pytest.mark.parametrize(
    "attributes, error, text",
    [
        ({"main_context": 0}, state.InvalidArgument, "main_context=0 is not supported"),
        ({"embed_mode": 2}, state.InvalidArgument, "embed_mode=2; expected 0"),
        ({"cache": b"not a model"}, state.InvalidArgument, r"npu \(embedded\): .*not an \.rknn model"),
        ({"cache": b""}, state.InvalidArgument, r"npu \(embedded\): .*not an \.rknn model.*empty"),
        ({"cache": b"ort_rknn-handoff:" + b"0" * 32}, state.InvalidArgument, "or is in another process"),
    ],
)
def test_nodes_that_cannot_be_served(npu, blob, session_on, attributes, error, text):
    elementwise(npu, lambda a: a)
    attributes = {"cache": blob, **attributes}
    with pytest.raises(error, match=text):
        session_on(mixed(attributes.pop("cache"), **attributes))


def test_a_model_for_another_soc(npu, models, session_on):
    elementwise(npu, lambda a: a)
    other = (models / "conv_f16.rk3566.rknn").read_bytes()
    with pytest.raises(state.Fail, match="compiled for rk3566, this is rk3588"):
        session_on(mixed(other))


@pytest.mark.parametrize("source", ["RKNPU2ExecutionProvider", "RknnExecutionProvider"])
def test_other_names_for_us(npu, blob, session_on, source):
    elementwise(npu, lambda a: a + 1)
    np.testing.assert_array_equal(session_on(mixed(blob, source=source)).run(None, {"X": X})[0], np.maximum(X + 2, 0))


def test_nodes_of_others_are_left_alone(npu, blob, session_on):
    with (
        pytest.raises(state.NotImplemented, match="EPContext"),
        pytest.warns(FallbackWarning, match="a model from memory stays on the CPU"),
    ):
        plain_session(mixed(blob, source="QNNExecutionProvider"))
    assert npu.loads == 0


def test_several_nodes(npu, blob, session_on):
    elementwise(npu, lambda a: a * 2)
    nodes = [
        context_node(["X"], ["a"], blob, name="first"),
        helper.make_node("Neg", ["a"], ["b"]),
        context_node(["b"], ["c"], blob, name="second"),
        context_node(["X"], ["d"], blob, name="third"),
        helper.make_node("Add", ["c", "d"], ["Y"]),
    ]
    hidden = [tensor(n, (2, 3)) for n in "abcd"]
    session = session_on(model(nodes, [tensor("X", (2, 3))], [tensor("Y", (2, 3))], value_info=hidden))
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], -4 * X + 2 * X)
    assert npu.open_models == 3


def test_one_node_of_several_that_fails_closes_the_others(npu, blob, session_on):
    elementwise(npu, lambda a: a)
    nodes = [context_node(["X"], ["a"], blob, name="first"), context_node(["a"], ["Y"], b"rubbish", name="second")]
    with pytest.raises(state.InvalidArgument):
        session_on(model(nodes, [tensor("X", (2, 3))], [tensor("Y", (2, 3))], value_info=[tensor("a", (2, 3))]))
    assert npu.open_models == 0


def many_ports(npu):
    npu.inputs = (info("p", (2, 3)), info("q", (2, 3)))
    npu.outputs = (info("sum", (2, 3)), info("difference", (2, 3)), info("product", (2, 3)))
    npu.compute = lambda arrays: [arrays[0] + arrays[1], arrays[0] - arrays[1], arrays[0] * arrays[1]]


def test_unused_outputs_and_their_order(npu, blob, session_on):
    """A fused node lacks unused outputs: ports are found by name, not by position."""
    many_ports(npu)
    npu.outputs = (info("s", (2, 3)), info("d", (2, 3)), info("p", (2, 3)))
    npu.inputs = (info("X", (2, 3)), info("Z", (2, 3)))
    node = context_node(["X", "Z"], ["s", "d", "p"], blob)
    made = model(
        [node, helper.make_node("Neg", ["p"], ["Y"])],
        [tensor("Z", (2, 3)), tensor("X", (2, 3))],
        [tensor("Y", (2, 3))],
        value_info=[tensor(n, (2, 3)) for n in "sdp"],
    )
    session = session_on(made)
    for _ in range(2):
        np.testing.assert_array_equal(session.run(None, {"X": X, "Z": X + 5})[0], -(X * (X + 5)))


def test_an_unused_output_has_a_buffer_as_long_as_the_run(npu, blob, monkeypatch):
    """Other shapes evict the plan of a running run; its unused output still has a buffer."""
    monkeypatch.setattr(kernel, "_KEPT", 2)
    places = []

    class Numpy:
        def __getattr__(self, name):
            return getattr(np, name)

        def empty(self, *args):
            place = np.empty(*args)
            places.append(weakref.ref(place))
            return place

    monkeypatch.setattr(kernel, "np", Numpy())
    npu.inputs = (info("x", (1, 3)),)
    npu.outputs = (info("y", (1, 3)), info("z", (1, 3)))
    npu.compute = lambda arrays: [arrays[0] + 1, arrays[0] + 2]
    npu.gates[1] = threading.Event()
    value = [tensor(name, (None, 3)) for name in "xyz"]
    node = context_node(["x"], ["y", "z"], blob)
    given = {"schedule": "auto", "split_batch": True}
    session = plain_session(model([node], value[:1], value[1:2], value_info=value[2:]), given)
    with ThreadPoolExecutor(1) as pool:
        try:
            held = pool.submit(session.run, None, {"x": np.zeros((1, 3), np.float32)})
            while not npu.log:
                time.sleep(0.001)
            for n in (2, 3, 4, 5, 6):
                assert session.run(None, {"x": np.zeros((n, 3), np.float32)})[0].shape == (n, 3)
            assert len(places) == 6 and places[0]() is not None and places[1]() is None
        finally:
            npu.gates[1].set()
        np.testing.assert_array_equal(held.result()[0], np.ones((1, 3)))


def test_slots_in_another_order_than_the_models(npu, blob, session_on):
    npu.inputs = (info("Z", (2, 3)), info("X", (2, 3)))
    npu.outputs = (info("d", (2, 3)), info("s", (2, 3)))
    npu.compute = lambda arrays: [arrays[0] - arrays[1], arrays[0] + arrays[1]]
    node = context_node(["X", "Z"], ["s", "d"], blob)
    session = session_on(model([node], [tensor(n, (2, 3)) for n in "XZ"], [tensor(n, (2, 3)) for n in "sd"]))
    s, d = session.run(None, {"X": X, "Z": X * 3})
    np.testing.assert_array_equal(s, X * 4)
    np.testing.assert_array_equal(d, X * 2)


def test_repeated_inputs(npu, blob, session_on):
    """A fused node has an input once that its node has twice."""
    many_ports(npu)
    node = context_node(["X", "X"], ["s", "d", "p"], blob)
    session = session_on(model([node], [tensor("X", (2, 3))], [tensor(n, (2, 3)) for n in "sdp"]))
    s, d, p = session.run(None, {"X": X})
    np.testing.assert_array_equal(s, 2 * X)
    np.testing.assert_array_equal(d, 0 * X)
    np.testing.assert_array_equal(p, X * X)


def test_absent_inputs(npu, blob, session_on):
    many_ports(npu)
    node = context_node(["X", ""], ["s", "d", "p"], blob)
    with pytest.raises(state.InvalidArgument, match="npu: its input 1 is missing"):
        session_on(model([node], [tensor("X", (2, 3))], [tensor(n, (2, 3)) for n in "sdp"]))


def test_absent_outputs(npu, blob, session_on):
    """An output that nothing uses still has a name, by which ports are found."""
    many_ports(npu)
    node = context_node(["X", "Z"], ["", "d", "p"], blob)
    with pytest.raises(state.InvalidArgument, match="npu: its output 0 is missing"):
        session_on(model([node], [tensor(n, (2, 3)) for n in "XZ"], [tensor(n, (2, 3)) for n in "dp"]))


def test_initializers_as_inputs(npu, blob, session_on):
    many_ports(npu)
    five = helper.make_tensor("five", FLOAT, [2, 3], [5.0] * 6)
    node = context_node(["X", "five"], ["s", "d", "p"], blob)
    outputs = [tensor(n, (2, 3)) for n in "sdp"]
    session = session_on(model([node], [tensor("X", (2, 3))], outputs, initializers=[five]))
    np.testing.assert_array_equal(session.run(["s"], {"X": X})[0], X + 5)


def test_a_node_in_a_branch(npu, blob, session_on):
    elementwise(npu, lambda a: a * 3)
    then = helper.make_graph([context_node(["X"], ["t"], blob)], "then", [], [tensor("t", (2, 3))])
    other = helper.make_graph([helper.make_node("Neg", ["X"], ["e"])], "else", [], [tensor("e", (2, 3))])
    choose = helper.make_node("If", ["C"], ["Y"], then_branch=then, else_branch=other)
    made = model([choose], [tensor("C", [], helper.TensorProto.BOOL), tensor("X", (2, 3))], [tensor("Y", (2, 3))])
    session = session_on(made)
    np.testing.assert_array_equal(session.run(None, {"C": np.array(True), "X": X})[0], X * 3)
    np.testing.assert_array_equal(session.run(None, {"C": np.array(False), "X": X})[0], -X)
    assert len(npu.log) == 1


def test_shapes_are_checked_where_onnxruntime_does_not(npu, blob, session_on):
    elementwise(npu, lambda a: a)
    node = context_node(["a"], ["Y"], blob)
    made = model([helper.make_node("Neg", ["X"], ["a"]), node], [tensor("X", ["n", "m"])], [tensor("Y", ["n", "m"])])
    session = session_on(made)
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], -X)
    for wrong in (X.T.copy(), X[:1], X[:0], np.zeros((4, 3), np.float32)):
        with pytest.raises(state.InvalidArgument, match="shape"):
            session.run(None, {"X": np.ascontiguousarray(wrong)})


@pytest.mark.parametrize("known", ["stated", "recorded", "recorded otherwise", "not known"])
def test_a_nodes_batch_is_cut_only_where_its_record_or_the_option_says_so(npu, session_on, known, tmp_path):
    """The graph that it was compiled from cannot be read."""
    elementwise(npu, lambda a: a)
    record = '"independent":true' if known == "recorded" else '"independent":false'
    compiled = stand_in([("x", "float32", (2, 3))], [("y", "float32", (2, 3))], "rk3588", custom_string=_record(record))
    if not known.startswith("recorded"):
        compiled = stand_in([("x", "float32", (2, 3))], [("y", "float32", (2, 3))], "rk3588")
    value = [tensor("X", ["n", 3]), tensor("Y", ["n", 3])]
    made = model([context_node(["X"], ["Y"], compiled)], value[:1], value[1:])
    session = session_on(made, {"split_batch": "1"} if known == "stated" else None)
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], X)
    more = np.arange(15, dtype=np.float32).reshape(5, 3)
    if known in ("stated", "recorded"):
        np.testing.assert_array_equal(session.run(None, {"X": more})[0], more)
    else:
        with pytest.raises(state.InvalidArgument, match=r"Compiled are: X: \[2, 3\].*split_batch=True"):
            session.run(None, {"X": more})


def _record(independent):
    entry = '["m.onnx",1,1,"' + "0" * 64 + '"]'
    return '{"ort_rknn_origin":{"v":1,"onnx":' + entry + "," + independent + "}}"


def test_options_that_change_the_signature_need_our_session(npu, blob):
    elementwise(npu, lambda a: a)
    with pytest.raises(state.InvalidArgument, match="changes a session's signature"):
        plain_session(mixed(blob), {"input_dtype": "uint8"})
    with pytest.raises(state.InvalidArgument, match="unknown provider option 'nonsense'"):
        plain_session(mixed(blob), {"nonsense": "1"})


def test_original_onnx_on_the_cpu(npu, blob, tmp_path):
    npu.present = False
    one = helper.make_node("Neg", ["X"], ["Y"])
    (tmp_path / "m.onnx").write_bytes(model([one], [tensor("X", (2, 3))], [tensor("Y", (2, 3))]))
    (tmp_path / "m_ctx.onnx").write_bytes(mixed(blob))
    with pytest.warns(FallbackWarning):
        session = ort_rknn.InferenceSession(tmp_path / "m_ctx.onnx", providers=[OURS])
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], -X)
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(NpuUnavailable, match=r"m_ctx\.onnx.*looked for m\.onnx"):
        ort_rknn.InferenceSession(tmp_path / "m_ctx.onnx")


def test_a_hub_cache_of_links(npu, session_on, models, tmp_path):
    """Model and file are links into one folder, as hubs lay out their caches; a link elsewhere is none of these."""
    elementwise(npu, lambda a: -a)
    snapshot, blobs, other = tmp_path / "snapshots" / "1", tmp_path / "blobs", tmp_path / "other"
    for folder in (snapshot, blobs, other):
        folder.mkdir(parents=True)
    (blobs / "aaaa").write_bytes(mixed(b"m.rknn", embed_mode=0))
    (blobs / "bbbb").write_bytes(mixed(b"out.rknn", embed_mode=0))
    (blobs / "cccc").write_bytes((models / "conv_f16.rk3588.rknn").read_bytes())
    (other / "dddd").write_bytes((models / "conv_f16.rk3588.rknn").read_bytes())
    for name, target in {
        "m.onnx": "../../blobs/aaaa",
        "bad.onnx": "../../blobs/bbbb",
        "m.rknn": "../../blobs/cccc",
        "out.rknn": "../../other/dddd",
    }.items():
        (snapshot / name).symlink_to(target)
    session = session_on(str(snapshot / "m.onnx"))
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], np.maximum(-(X + 1), 0))
    with pytest.raises(state.InvalidArgument, match="leads out of the model's folder"):
        session_on(str(snapshot / "bad.onnx"))
