"""Under the import swap with policy "prefer", calls that feed initializers, which a compiled model has inside."""

import importlib
import logging
import re
import threading
import weakref

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.models_in_parts import three_steps, write_in_parts

import ort_rknn

DEVICE = "virtual:rk3588"
CPU = "CPUExecutionProvider"
X = np.linspace(-2, 2, 4, dtype=np.float32)[None]
W = np.array([3, 4, 5, 6], np.float32)


@pytest.fixture(autouse=True)
def clean():
    yield
    ort_rknn.uninstall()


def model(default, dims=None, kind=TensorProto.FLOAT):
    """y = x * w + x, with w an initializer that may be fed."""
    default = np.asarray(default)
    nodes = [
        helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["m"]),
        helper.make_node("Add", ["m", "x"], ["y"]),
    ]
    values = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [values("x", TensorProto.FLOAT, ["N", 4]), values("w", kind, default.shape if dims is None else dims)],
        [values("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(default, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def session(content, policy="prefer", **options):
    with ort_rknn.swapped(policy, device=DEVICE, options=options):
        return importlib.import_module("onnxruntime").InferenceSession(content, providers=[CPU])


def bound(session, feed):
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()


def by_callback(session, feed):
    ended, results = threading.Event(), []

    def callback(outputs, _, error):
        results.extend(outputs if not error else [error])
        ended.set()

    session.run_async(None, feed, callback, None)
    assert ended.wait(30)
    return results


def by_ort_values(session, feed):
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
    return [value.numpy() for value in session.run_with_ort_values(["y"], values)]


WAYS = {
    "run": lambda session, feed: session.run(None, feed),
    "submit": lambda session, feed: session.submit(None, feed).result(),
    "map": lambda session, feed: next(iter(session.map([feed]))),
    "run_async": by_callback,
    "run_with_ort_values": by_ort_values,
    "IOBinding": bound,
}


@pytest.mark.parametrize("way", WAYS)
def test_fed_and_not_fed_through_every_way_to_call(way):
    call = WAYS[way]
    content = model(np.full(4, 2, np.float32))
    with session(content) as ours:
        assert ours.get_providers()[0] == "RKNNExecutionProvider"
        for samples in (1, 3):
            x = np.repeat(X, samples, 0)
            assert np.allclose(call(ours, {"x": x})[0], 3 * x, atol=1e-2)
            assert np.array_equal(call(ours, {"x": x, "w": W})[0], x * W + x)
        assert np.allclose(call(ours, {"x": X})[0], 3 * X, atol=1e-2)
        assert ours.stats().cpu_calls == 2
        assert ours.stats().total.runs > 0
        assert "fed:       2 calls that fed an initializer ran on the ONNX twin on the CPU" in ours.explain()


@pytest.mark.parametrize(
    ("default", "fed"),
    [
        (np.float32(2), np.array(5, np.float32)),
        (np.float32(2), np.array(np.nan, np.float32)),
        (np.float64([2]), np.array([5.0])),
        pytest.param(
            np.float16([2, 2, 2, 2]),
            np.array([1, 2, 3, 4], np.float16),
            id="float16[4]",
            marks=pytest.mark.skipif(
                onnxruntime.__version__.startswith("1.23."), reason="onnxruntime 1.23 alone crashes on this model"
            ),
        ),
        (np.int64(2), np.array(-7)),
        (np.int32([[2]]), np.array([[1 << 20]], np.int32)),
        (np.uint32(2), np.array(0, np.uint32)),
        (np.full((3, 4), 2, np.float32), np.arange(12, dtype=np.float32).reshape(3, 4)),
        (np.bool_(True), np.array(False)),
        (np.array([True, False, True, True]), np.array([False, False, True, False])),
        (np.uint8([[2], [2], [2]]), np.uint8([[0], [255], [7]])),
        (np.int8(2), np.array(-128, np.int8)),
        (np.int16(2), np.array(-3, np.int16)),
        (np.uint16([2, 2, 2, 2]), np.arange(4, dtype=np.uint16)),
    ],
    ids=lambda value: f"{value.dtype.name}{list(np.shape(value))}",
)
def test_every_type_that_may_be_fed(default, fed):
    default = np.asarray(default)
    content = model(default, kind=helper.np_dtype_to_tensor_dtype(default.dtype))
    plain = onnxruntime.InferenceSession(content)
    x = np.repeat(X, 3, 0)
    with session(content) as ours:
        (mine,), (theirs,) = ours.get_overridable_initializers(), plain.get_overridable_initializers()
        assert (mine.name, mine.type, mine.shape) == (theirs.name, theirs.type, theirs.shape)
        assert str(mine) == str(theirs)
        for feed in ({"x": x, "w": fed}, {"x": x}, {"x": x, "w": default}):
            want = plain.run(None, feed)[0]
            assert np.allclose(ours.run(None, feed)[0], want, atol=1e-2, equal_nan=True)
        assert ours.stats().cpu_calls == 2


def test_free_axes_and_empty_feeds():
    content = model(np.full(4, 2, np.float32), ["K"])
    plain = onnxruntime.InferenceSession(content)
    with session(content) as ours:
        for w in (W, W[:1]):
            feed = {"x": X, "w": w}
            assert np.array_equal(ours.run(None, feed)[0], plain.run(None, feed)[0])
        none = X[:0]
        assert ours.run(None, {"x": none, "w": W})[0].shape == (0, 4)


def test_a_feed_that_the_model_does_not_take_is_the_same_error():
    content = model(np.full(4, 2, np.float32))
    with session(content) as ours:
        for w in (W[:3], W[:0], W[None]):
            with pytest.raises(Exception, match=r"Invalid rank for input: w|Got invalid dimensions for input: w"):
                ours.run(None, {"x": X, "w": w})
        with pytest.raises(Exception, match="Unexpected input data type"):
            ours.run(None, {"x": X, "w": W.astype(np.float64)})
        assert ours.stats().cpu_calls == 0


def test_reported_once(caplog):
    caplog.set_level(logging.INFO, "ort_rknn")
    with session(model(np.full(4, 2, np.float32))) as ours:
        for _ in range(3):
            ours.run(None, {"x": X, "w": W})
        told = [r.getMessage() for r in caplog.records if "calls that feed it run on the ONNX" in r.getMessage()]
        assert len(told) == 1
        assert "w was compiled in" in told[0]
        assert "(w) were compiled in: feeding one, or an active LoRA adapter for one, runs the call" in ours.explain()


@pytest.mark.parametrize(
    ("policy", "options"), [("respect", {}), ("prefer", {"on_missing_shape": "error"})], ids=["respect", "error"]
)
def test_elsewhere_it_stays_an_error(policy, options):
    with ort_rknn.swapped(policy, device=DEVICE, options=options):
        made = importlib.import_module("onnxruntime").InferenceSession(
            model(np.full(4, 2, np.float32)), providers=["RKNNExecutionProvider", CPU]
        )
    with made:
        assert list(made.get_overridable_initializers()) == []
        with pytest.raises(Exception, match="Invalid input name: w"):
            made.run(None, {"x": X, "w": W})


def test_a_short_feed_of_a_wrong_shape_is_the_same_error():
    content = model(np.uint8([2, 2, 2, 2]), kind=TensorProto.UINT8)
    plain = onnxruntime.InferenceSession(content)
    with session(content) as ours:
        for shape in ((3,), (0,), (16,), (1, 4), ()):
            feed = {"x": X, "w": np.zeros(shape, np.uint8)}
            with pytest.raises(Exception) as theirs:
                plain.run(None, feed)
            with pytest.raises(Exception) as mine:
                ours.run(None, feed)
            text = str(theirs.value).partition("INVALID_ARGUMENT : ")[2].partition("\n")[0]
            assert text in str(mine.value)
        assert np.allclose(ours.run(None, {"x": X})[0], 3 * X, atol=1e-2)


#: onnxruntime makes no OrtValue of texts, and binds none.
OF_TEXTS = ("run", "submit", "map", "run_async")


@pytest.mark.parametrize("way", OF_TEXTS)
def test_a_text(way):
    """onnxruntime's strings have no bytes that a kernel could look at."""
    content = model(np.array("1", np.object_), kind=TensorProto.STRING)
    fed = {"x": X, "w": np.array("0", np.object_)}
    with session(content) as ours:
        assert ours.get_providers()[0] == "RKNNExecutionProvider"
        for _ in range(2):
            assert np.allclose(WAYS[way](ours, {"x": X})[0], 2 * X, atol=1e-2)
            assert np.array_equal(WAYS[way](ours, fed)[0], X)
        assert "fed:       2 calls that fed one of w ran on the ONNX on the CPU" in ours.explain()


def weights_as_inputs():
    """As some exporters write it: all weights are among the inputs."""
    names = [f"w{k}" for k in range(17)]
    nodes = [helper.make_node("Add", ["x" if k == 0 else f"t{k}", name], [f"t{k + 1}"]) for k, name in enumerate(names)]
    nodes[-1].output[0] = "y"
    values = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [values("x", TensorProto.FLOAT, [1, 4]), *(values(name, TensorProto.FLOAT, [4]) for name in names)],
        [values("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.ones(4, np.float32), name) for name in names],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_an_exporter_listed_as_inputs(way, caplog):
    """No kernel looks at each of them in every run, and yet they may be fed."""
    caplog.set_level(logging.INFO, "ort_rknn")
    with session(weights_as_inputs()) as ours:
        for _ in range(2):
            assert np.allclose(WAYS[way](ours, {"x": X})[0], X + 17, atol=0.05)
            assert np.allclose(WAYS[way](ours, {"x": X, "w3": W})[0], X + 16 + W, atol=1e-5)
        assert ours.stats().total.runs == 2
        assert sum("calls that feed an initializer" in r.getMessage() for r in caplog.records) == 1
        explained = ours.explain()
        assert "feeding one, or an active LoRA adapter for one, runs the call on the ONNX twin on the CPU" in explained
        assert "fed:       2 calls that fed one of w0, w1, w10, w11" in explained


@pytest.mark.parametrize("way", ["run", "submit", "map"])
def test_a_subclass_and_a_run_of_the_instance_are_called(way):
    with ort_rknn.swapped("prefer", device=DEVICE):
        swapped = importlib.import_module("onnxruntime").InferenceSession

        class Twice(swapped):
            def run(self, output_names, input_feed, run_options=None):
                return [2 * result for result in super().run(output_names, input_feed, run_options)]

        class Own(swapped):
            def __init__(self, *given, **options):
                self.run = lambda *_: ["mine"]
                super().__init__(*given, **options)

        twice, own = (kind(weights_as_inputs(), providers=[CPU]) for kind in (Twice, Own))
    with twice, own:
        for _ in range(2):
            assert np.allclose(WAYS[way](twice, {"x": X, "w3": W})[0], 2 * (X + 16 + W), atol=1e-5)
            assert np.allclose(WAYS[way](twice, {"x": X})[0], 2 * (X + 17), atol=0.1)
            assert WAYS[way](own, {"x": X, "w3": W}) == WAYS[way](own, {"x": X}) == ["mine"]


def test_an_override_of_run_with_ort_values_is_called():
    with ort_rknn.swapped("prefer", device=DEVICE):
        swapped = importlib.import_module("onnxruntime").InferenceSession

        class Own(swapped):
            def run_with_ort_values(self, *given):
                return ["mine"]

        own = Own(weights_as_inputs(), providers=[CPU])
    with own:
        assert own.run_with_ort_values(None, {"x": X, "w3": W}) == ["mine"]


def test_a_method_keeps_its_session():
    run, run_async = session(weights_as_inputs()).run, session(weights_as_inputs()).run_async
    assert np.allclose(run(None, {"x": X, "w3": W})[0], X + 16 + W, atol=1e-5)
    told = threading.Event()
    run_async(None, {"x": X, "w3": W}, lambda *_: told.set(), None)
    assert told.wait(60)


def in_parts(folder):
    """A model in parts as a converter writes it: the initializers are compiled in, or constants of CPU nodes."""
    made = three_steps()
    values = helper.make_tensor_value_info
    made.graph.input.append(values("w2", TensorProto.FLOAT, [2, 4, 3, 3]))
    path = write_in_parts(folder, made)
    context = folder / "m.rk3588_ctx.onnx"
    written = onnx.load(context)
    del written.graph.input[1:]
    onnx.save(written, context)
    return path


def bind(binding, name, array, how):
    value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
    if how == "array" and name == "x":  # onnxruntime takes initializers in the other two ways only
        binding.bind_cpu_input(name, array)
    elif how != "address":
        binding.bind_ortvalue_input(name, value)
    else:
        binding.bind_input(name, "cpu", 0, array.dtype, list(array.shape), value.data_ptr())
    return value


@pytest.mark.parametrize("how", ["array", "OrtValue", "address"])
@pytest.mark.parametrize("output", ["free", "own memory"])
def test_a_binding_that_is_used_again(how, output):
    """It is one of the NPU's session until an initializer is bound, and again after its inputs were cleared."""
    y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(X))

    def result():
        return y.numpy() if output == "own memory" else binding.copy_outputs_to_cpu()[0]

    with session(weights_as_inputs()) as ours:
        binding = ours.io_binding()
        assert isinstance(binding, onnxruntime.IOBinding)
        held = [bind(binding, "x", X, how)]
        if output == "own memory":
            binding.bind_ortvalue_output("y", y)
        else:
            binding.bind_output("y")
        for _ in range(2):
            ours.run_with_iobinding(binding)
            assert np.allclose(result(), X + 17, atol=0.05)
            held.append(bind(binding, "w3", W, how))
            ours.run_with_iobinding(binding)
            assert np.allclose(result(), X + 16 + W, atol=1e-5)
            assert np.allclose(binding.get_outputs()[0].numpy(), X + 16 + W, atol=1e-5)
            held.append(bind(binding, "x", 2 * X, how))
            ours.run_with_iobinding(binding)
            assert np.allclose(result(), 2 * X + 16 + W, atol=1e-5)
            binding.clear_binding_inputs()
            assert np.allclose(binding.copy_outputs_to_cpu()[0], 2 * X + 16 + W, atol=1e-5)
            with pytest.raises(Exception, match="x"):
                ours.run_with_iobinding(binding)
            held.append(bind(binding, "x", X, how))
        runs = ours.stats().total.runs
        ours.run_with_iobinding(binding)
        assert ours.stats().total.runs == runs + 1
        held.append(bind(binding, "w3", W, how))
        wrong = bind(binding, "w4", W[:3], how)
        with pytest.raises(Exception, match="Got invalid dimensions for input: w4"):
            ours.run_with_iobinding(binding)
        del wrong
        with pytest.raises(Exception, match="w99"):
            bind(binding, "w99", W, how)
    with pytest.raises(Exception, match="the session was closed|the session that created it"):
        ours.run_with_iobinding(binding)


def test_a_failed_bind_changes_nothing():
    with session(weights_as_inputs()) as ours:
        binding = ours.io_binding()
        binding.bind_cpu_input("x", X)
        binding.bind_output("y")
        with pytest.raises(RuntimeError, match="w3"):
            binding.bind_cpu_input("w3", W)
        ours.run_with_iobinding(binding)
        assert np.allclose(binding.copy_outputs_to_cpu()[0], X + 17, atol=0.05)
        assert ours.stats().total.runs == 1


def test_a_binding_after_other_providers():
    """onnxruntime's own rule, or its own results; never the weights that were compiled in."""
    with session(weights_as_inputs()) as ours:
        binding = ours.io_binding()
        held = [bind(binding, "x", X, "OrtValue"), bind(binding, "w3", W, "OrtValue")]
        binding.bind_output("y")
        for providers in ([CPU], [("RKNNExecutionProvider", {"device": DEVICE}), CPU]):
            ours.set_providers(providers)
            try:
                ours.run_with_iobinding(binding)
            except (ValueError, RuntimeError) as error:
                assert re.search("Invalid input name: w3|the session that created it", str(error))
                continue
            assert np.allclose(binding.copy_outputs_to_cpu()[0], X + 16 + W, atol=1e-5)
        del held


@pytest.fixture
def adapter_options(tmp_path):
    """RunOptions with a LoRA adapter for an initializer."""
    kept = []

    def options(name, array):
        made = onnxruntime.AdapterFormat()
        made.set_adapter_version(1)
        made.set_model_version(1)
        made.set_parameters({name: onnxruntime.OrtValue.ortvalue_from_numpy(array)})
        made.export_adapter(str(tmp_path / "lora.onnx_adapter"))
        adapter = onnxruntime.LoraAdapter()
        adapter.Load(str(tmp_path / "lora.onnx_adapter"))
        result = onnxruntime.RunOptions()
        result.add_active_adapter(adapter)
        kept.append(adapter)
        return result

    return options


def test_a_lora_adapter(adapter_options):
    values = {"x": onnxruntime.OrtValue.ortvalue_from_numpy(X)}
    options = adapter_options("w3", W)
    with session(weights_as_inputs()) as ours:
        for _ in range(2):
            assert np.allclose(ours.run(None, {"x": X})[0], X + 17, atol=0.05)
            assert np.allclose(ours.run(None, {"x": X}, onnxruntime.RunOptions())[0], X + 17, atol=0.05)
            assert np.allclose(ours.run(None, {"x": X}, options)[0], X + 16 + W, atol=1e-5)
        assert np.allclose(ours.run_with_ort_values(["y"], values, options)[0].numpy(), X + 16 + W, atol=1e-5)
        assert np.allclose(ours.submit(None, {"x": X}, options).result()[0], X + 16 + W, atol=1e-5)
        assert "fed:       4 calls that fed one of w0" in ours.explain()
        with pytest.raises(Exception, match="Invalid input name: w99"):
            ours.run(None, {"x": X}, adapter_options("w99", W))


def test_a_lora_adapter_of_a_model_in_parts(adapter_options, tmp_path):
    path = in_parts(tmp_path)
    rng = np.random.default_rng(1)
    feed = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    w2 = rng.standard_normal((2, 4, 3, 3)).astype(np.float32)
    wanted = onnxruntime.InferenceSession(path).run(None, {**feed, "w2": w2})
    with session(path) as ours:
        assert ours.get_providers()[0] == "RKNNExecutionProvider"
        for got, want in zip(ours.run(None, feed, adapter_options("w2", w2)), wanted, strict=True):
            assert np.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("way", ["run", "submit", "map", "run_async"])
def test_a_model_in_parts(way, tmp_path):
    path = in_parts(tmp_path)
    rng = np.random.default_rng(1)
    feed = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    fed = {**feed, "w2": rng.standard_normal((2, 4, 3, 3)).astype(np.float32)}
    plain = onnxruntime.InferenceSession(path)
    with session(path) as ours:
        assert ours.get_providers()[0] == "RKNNExecutionProvider"
        given, wanted = ours.get_overridable_initializers(), plain.get_overridable_initializers()
        assert [str(one) for one in given] == [str(one) for one in wanted]
        for one in (feed, fed, feed, fed):
            for got, want in zip(WAYS[way](ours, one), plain.run(None, one)):
                assert np.allclose(got, want, atol=0.05)
        assert "fed:       2 calls that fed one of w2 ran" in ours.explain()
        wrong = {**fed, "w2": fed["w2"][:1]}
        with pytest.raises(Exception, match="Got invalid dimensions for input: w2"):
            ours.run(None, wrong)


def test_other_providers_and_the_end(tmp_path):
    """What serves such calls follows set_providers(), needs no file at its path, and ends with the session."""
    path = in_parts(tmp_path)
    rng = np.random.default_rng(1)
    feed = {"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)}
    fed = {**feed, "w2": rng.standard_normal((2, 4, 3, 3)).astype(np.float32)}
    (want, _) = onnxruntime.InferenceSession(path).run(None, fed)
    ours = session(path)
    for file in tmp_path.glob("*.onnx"):
        file.unlink()
    assert np.array_equal(ours.run(None, fed)[0], want)
    ours.set_providers([CPU])
    assert np.array_equal(ours.run(None, fed)[0], want)
    assert ours.run.__func__ is ort_rknn.InferenceSession.run
    ours.close()
    for one in (feed, fed):
        for call in (ours.run, lambda *given: ours.run_async(*given, lambda *_: None, None)):
            with pytest.raises(Exception, match="the session was closed"):
                call(None, one)
    gone = session(in_parts(tmp_path))
    assert np.array_equal(gone.run(None, fed)[0], want)
    watched = weakref.ref(gone)
    del gone
    assert watched() is None


def test_a_close_during_the_first_such_call(tmp_path):
    """The files that it would read are no longer held open."""
    path = in_parts(tmp_path)
    with session(path) as ours:
        ours._npu.unpin()
        feed = {"x": np.zeros((1, 3, 8, 8), np.float32), "w2": np.zeros((2, 4, 3, 3), np.float32)}
        with pytest.raises(Exception, match="the session was closed or its providers were changed during this call"):
            ours.run(None, feed)


@pytest.mark.parametrize("options", [{"layout": "nhwc"}, {"on_missing_shape": "error"}], ids=str)
def test_where_the_onnx_has_another_form_it_stays_an_error(options):
    with session(weights_as_inputs(), **options) as ours:
        with pytest.raises(Exception, match="Invalid input name: w3"):
            ours.run(None, {"x": X, "w3": W})
        assert "is an error" in ours.explain()
