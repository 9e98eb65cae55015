"""SessionOptions: config entries, overrides, profiling, saving, assignment, initializers."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument
from support.targets import MODELS, TARGETS, VIRTUAL, save, version

import ort_rknn

RECORD = "session.record_ep_graph_assignment_info"


def with_config(target, **entries):
    options = target.ort.SessionOptions()
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    return options


def test_config_entries(target, feed, wanted):
    options = with_config(target, session__use_env_allocators="0", my__own="kept")
    session = target.session(options=options)
    assert session.get_session_options().get_session_config_entry("my.own") == "kept"
    assert target.same(session.run(["map"], feed)[0], wanted["map"])
    with pytest.raises(RuntimeError, match="does not have configuration"):
        session.get_session_options().get_session_config_entry("nothing")


def test_properties_arrive(target):
    options = target.ort.SessionOptions()
    options.log_severity_level = 3
    options.logid = "mine"
    options.graph_optimization_level = target.ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.execution_mode = target.ort.ExecutionMode.ORT_PARALLEL
    options.inter_op_num_threads = 2
    options.intra_op_num_threads = 2
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.use_deterministic_compute = True
    made = target.session(options=options).get_session_options()
    assert made is not options
    for name in vars(type(options)):
        if not name.startswith("_") and not callable(getattr(options, name)):
            assert getattr(made, name) == getattr(options, name), name


def test_strictness(target):
    options = target.ort.SessionOptions()
    with pytest.raises(AttributeError):
        options.nothing = 1
    for name, value in (("intra_op_num_threads", "2"), ("enable_profiling", "yes"), ("logid", None)):
        with pytest.raises(TypeError):
            setattr(options, name, value)
    with pytest.raises(TypeError):
        options.add_session_config_entry("a", 1)


# Free dimensions --------------------------------------------------------------------------------------------------


def test_free_dimension_overrides_by_name(target):
    options = target.ort.SessionOptions()
    options.add_free_dimension_override_by_name("h", 16)
    options.add_free_dimension_override_by_name("w", 24)
    options.add_free_dimension_override_by_name("nothing", 3)
    session = target.session("dynamic.onnx", options)
    assert session.get_inputs()[0].shape == [1, 3, 16, 24]
    assert session.get_outputs()[0].shape == [1, 4, 16, 24]
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 24), dtype=np.float32)
    control = onnxruntime.InferenceSession(MODELS / "dynamic.onnx", providers=["CPUExecutionProvider"])
    assert target.same(session.run(None, {"x": x})[0], control.run(None, {"x": x})[0])
    with pytest.raises(InvalidArgument, match="Got invalid dimensions"):
        session.run(None, {"x": np.zeros((1, 3, 32, 32), np.float32)})


def test_a_free_batch_that_is_overridden(target):
    control = onnxruntime.InferenceSession(MODELS / "free_batch.onnx", providers=["CPUExecutionProvider"])
    (name,) = [d for d in control.get_inputs()[0].shape if isinstance(d, str)]
    options = target.ort.SessionOptions()
    options.add_free_dimension_override_by_name(name, 3)
    session = target.session("free_batch.onnx", options)
    assert session.get_inputs()[0].shape[0] == session.get_outputs()[0].shape[0] == 3
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16), dtype=np.float32)
    assert target.same(session.run(None, {"x": x})[0], control.run(None, {"x": x})[0])
    with pytest.raises(InvalidArgument, match="Got: 2 Expected: 3"):
        session.run(None, {"x": x[:2]})


def test_free_dimension_overrides_by_denotation(target, tmp_path):
    path = save(tmp_path / "d.onnx", [helper.make_node("Neg", ["x"], ["y"])], {"x": ["N", 4]}, {"y": ["N", 4]})
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    onnx.save(model, path)
    options = target.ort.SessionOptions()
    options.add_free_dimension_override_by_denotation("DATA_BATCH", 2)
    session = target.session(path, options)
    assert session.get_inputs()[0].shape == session.get_outputs()[0].shape == [2, 4]
    x = np.ones((2, 4), np.float32)
    assert target.same(session.run(None, {"x": x})[0], -x)
    with pytest.raises(InvalidArgument, match="Got: 3 Expected: 2"):
        session.run(None, {"x": np.ones((3, 4), np.float32)})


def test_an_override_to_a_shape_that_was_not_compiled():
    """Such a session could never run on the NPU: it falls back to the CPU, or a policy for missing shapes handles
    it."""
    options = ort_rknn.SessionOptions()
    options.add_free_dimension_override_by_name("h", 15)
    options.add_free_dimension_override_by_name("w", 24)
    x = {"x": np.zeros((1, 3, 15, 24), np.float32)}
    with pytest.warns(ort_rknn.FallbackWarning, match=r"overrides ask for x \[1, 3, 15, 24\]. Compiled are: x \[1, 3"):
        session = ort_rknn.InferenceSession(MODELS / "dynamic.onnx", options, provider_options=VIRTUAL)
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert session.run(None, x)[0].shape == (1, 4, 15, 24)
    target = TARGETS["ours, NPU"]()
    session = target.session("dynamic.onnx", options, provider_options={**VIRTUAL, "on_missing_shape": "cpu"})
    assert session.get_outputs()[0].shape == [1, 4, 15, 24]
    assert session.run(None, x)[0].shape == (1, 4, 15, 24)
    target.close()


def test_overrides_with_another_layout_and_one_that_is_left_free():
    target = TARGETS["ours, NPU"]()
    options = target.ort.SessionOptions()
    options.add_free_dimension_override_by_name("h", 16)
    session = target.session("dynamic.onnx", options, provider_options={**VIRTUAL, "layout": "NHWC"})
    assert session.get_inputs()[0].shape == [1, 16, "w", 3]
    assert session.get_outputs()[0].shape == [1, 4, 16, "w"]
    assert "[1, 16, 'w', 3]" in session.explain()
    for width in (16, 24):
        assert session.run(None, {"x": np.zeros((1, 16, width, 3), np.float32)})[0].shape == (1, 4, 16, width)
    target.close()


# Profiling --------------------------------------------------------------------------------------------------------


def profiled(target, prefix, **given):
    options = target.ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return target.session(options=options, **given)


def test_profiling_gives_one_file_with_the_kernels(target, feed, tmp_path):
    session = profiled(target, tmp_path / "profile")
    assert session.get_profiling_start_time_ns() > 0
    for _ in range(3):
        session.run(None, feed)
    path = session.end_profiling()
    assert list(tmp_path.iterdir()) == [Path(path)]
    assert Path(path).name.startswith("profile_")
    events = json.loads(Path(path).read_text())
    kernels = [e for e in events if e.get("cat") == "Node" and e.get("args", {}).get("provider") == target.provider]
    assert len(kernels) >= 3
    assert all(e["dur"] >= 0 and e["ts"] >= 0 and e["name"].endswith("_kernel_time") for e in kernels)
    if target.npu:
        assert len(kernels) == 3  # one node, three runs
    assert session.end_profiling() == ""
    assert len(session.run(None, feed)) == 2


def test_profiling_that_is_off(target):
    session = target.session()
    assert session.end_profiling() == ""
    assert session.get_profiling_start_time_ns() == 0


def test_two_profiles_are_two_files(target, feed, tmp_path):
    sessions = [profiled(target, tmp_path / f"p{k}") for k in range(2)]
    paths = set()
    for session in sessions:
        session.run(None, feed)
        paths.add(session.end_profiling())
    assert len(paths) == len(list(tmp_path.iterdir())) == 2


# Saving, compiling, assigning -------------------------------------------------------------------------------------


def test_the_optimised_model_is_saved(on_cpu, tmp_path, feed, wanted):
    options = on_cpu.ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    on_cpu.session(options=options)
    again = on_cpu.session(str(tmp_path / "optimised.onnx"))
    assert np.allclose(again.run(["map"], feed)[0], wanted["map"], atol=1e-5)


def test_a_path_that_cannot_be_written(on_cpu, tmp_path):
    options = on_cpu.ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "no" / "such" / "folder.onnx")
    with pytest.raises(InvalidArgument, match="SystemError"):
        on_cpu.session(options=options)


def test_compiled_nodes_are_not_saved(tmp_path, feed):
    """onnxruntime cannot save a graph that a provider compiled: the CPU's is saved, and the fallback is reported."""
    options = ort_rknn.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    with pytest.warns(ort_rknn.FallbackWarning, match="optimized_model_filepath"):
        session = ort_rknn.InferenceSession(MODELS / "two_io.onnx", options, provider_options=VIRTUAL)
    assert len(session.run(None, feed)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["optimised.onnx"]


def test_a_context_model(target, tmp_path, feed, wanted):
    """Without a compiling provider, onnxruntime silently writes none; ours writes what is compiled."""
    options = with_config(target, ep__context_enable="1", ep__context_file_path=str(tmp_path / "context.onnx"))
    session = target.session(options=options)
    assert target.same(session.run(["map"], feed)[0], wanted["map"])
    written = {path.name for path in tmp_path.iterdir()}
    if target.npu and "ep.context_enable: written to" in session.explain():
        assert "context.onnx" in written
    else:
        assert not written
    assert options.get_session_config_entry("ep.context_enable") == "1"


since_1_24 = pytest.mark.skipif(version() < (1, 24), reason="onnxruntime has it since 1.24")


@since_1_24
def test_which_provider_has_which_node(target, feed):
    session = target.session(options=with_config(target, session__record_ep_graph_assignment_info="1"))
    groups = session.get_provider_graph_assignment_info()
    assert {group.ep_name for group in groups} == {target.provider}
    nodes = [node for group in groups for node in group.get_nodes()]
    if target.npu:
        assert [(node.op_type, node.domain) for node in nodes] == [("EPContext", "com.microsoft")]
        assert nodes[0].name.startswith("two_io")
    else:
        assert {"Conv"} <= {node.op_type for node in nodes}
    assert len(session.run(None, feed)) == 2


@since_1_24
def test_assignment_that_was_not_recorded(target):
    with pytest.raises(Fail, match=RECORD.replace(".", r"\.")):
        target.session().get_provider_graph_assignment_info()


def test_no_cpu_fallback_is_fine_where_there_is_none(feed):
    target = TARGETS["ours, NPU"]()
    session = target.session(options=with_config(target, session__disable_cpu_ep_fallback="1"))
    assert len(session.run(None, feed)) == 2
    target.close()


@pytest.mark.parametrize("optimiser", ["ConstantFolding", "NoSuchOptimizer"])
def test_disabled_optimisers(target, feed, wanted, optimiser):
    session = target.session(disabled_optimizers=[optimiser])
    assert target.same(session.run(["map"], feed)[0], wanted["map"])


# Initializers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def weighted(tmp_path):
    weight = numpy_helper.from_array(np.full((1, 4), 2, np.float32), "w")
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    return save(tmp_path / "w.onnx", nodes, {"x": [1, 4]}, {"y": [1, 4]}, initializers=[weight])


def test_an_initializer_of_the_users(on_cpu, weighted):
    options = on_cpu.ort.SessionOptions()
    weight = on_cpu.ort.OrtValue.ortvalue_from_numpy(np.full((1, 4), 5, np.float32))
    options.add_initializer("w", weight)
    session = on_cpu.session(weighted, options)
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(session.run(None, {"x": x})[0], 5 * x)
    with pytest.raises(RuntimeError, match="already"):
        options.add_initializer("w", weight)


def test_weights_of_the_users_are_not_dropped_on_the_npu(weighted, tmp_path):
    """A compiled model contains its weights: with others the session falls back to the CPU and says so."""
    value = ort_rknn.OrtValue.ortvalue_from_numpy(np.full((1, 4), 5, np.float32))
    external = tmp_path / "external.onnx"
    onnx.save(onnx.load(weighted), external, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    raw = np.full(4, 5, np.float32).tobytes()
    x = np.ones((1, 4), np.float32)
    for method, model, name, given in (
        ("add_initializer", weighted, "w", ("w", value)),
        ("add_external_initializers", str(external), "w", (["w"], [value])),
        (
            "add_external_initializers_from_files_in_memory",
            str(external),
            "weights.bin",
            (["weights.bin"], [raw], [len(raw)]),
        ),
    ):
        options = ort_rknn.SessionOptions()
        if not hasattr(options, method):  # not in every release
            continue
        getattr(options, method)(*given)
        with pytest.warns(ort_rknn.FallbackWarning, match=f"SessionOptions.{method} replaces '{name}'"):
            session = ort_rknn.InferenceSession(model, options, provider_options=VIRTUAL)
        assert np.array_equal(session.run(None, {"x": x})[0], 5 * x)
    options = ort_rknn.SessionOptions()
    options.add_initializer("w", value)
    with pytest.raises(ort_rknn.NpuUnavailable, match="add_initializer"), ort_rknn.swapped("only"):
        ort_rknn.InferenceSession(weighted, options, provider_options=VIRTUAL)


def test_an_initializer_for_a_name_that_the_model_lacks(target, weighted):
    options = target.ort.SessionOptions()
    value = target.ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 4), np.float32))
    options.add_initializer("another models", value)
    x = np.ones((1, 4), np.float32)
    assert target.same(target.session(weighted, options).run(None, {"x": x})[0], 2 * x)


def test_external_data_beside_the_model(target, tmp_path, weighted):
    model = onnx.load(weighted)
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    x = np.arange(4, dtype=np.float32)[None]
    assert target.same(target.session(str(path)).run(None, {"x": x})[0], 2 * x)


def test_external_data_that_is_missing(on_cpu, tmp_path, weighted):
    path = tmp_path / "external.onnx"
    onnx.save(onnx.load(weighted), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(Exception, match=r"weights\.bin"):
        on_cpu.session(str(path))


def test_optimisation_levels_give_the_same_answers(target, feed, wanted):
    for level in target.ort.GraphOptimizationLevel.__members__.values():
        options = target.ort.SessionOptions()
        options.graph_optimization_level = level
        got = target.session(options=options).run(["map"], feed)[0]
        assert np.allclose(got, wanted["map"], atol=1e-2)
