"""IOBinding and OrtValue."""

import gc
import weakref

import numpy as np
import pytest

OUTPUTS = ["map", "vector"]


def value(target, array):
    return target.ort.OrtValue.ortvalue_from_numpy(array)


def bound(target, session, feed, outputs=OUTPUTS):
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for name in outputs:
        binding.bind_output(name)
    return binding


def test_outputs_come_in_binding_order(target, feed, wanted):
    session = target.session()
    binding = bound(target, session, feed, ["vector", "map"])
    session.run_with_iobinding(binding)
    vector, a_map = binding.copy_outputs_to_cpu()
    assert target.same(vector, wanted["vector"])
    assert target.same(a_map, wanted["map"])
    values = binding.get_outputs()
    assert [v.shape() for v in values] == [list(wanted["vector"].shape), list(wanted["map"].shape)]
    assert [v.data_type() for v in values] == ["tensor(float)"] * 2
    assert [v.device_name() for v in values] == ["cpu"] * 2
    assert len(binding.get_outputs_as_ortvaluevector()) == 2


def test_only_bound_outputs_are_made(target, feed, wanted):
    session = target.session()
    binding = bound(target, session, feed, ["vector"])
    session.run_with_iobinding(binding)
    (vector,) = binding.copy_outputs_to_cpu()
    assert target.same(vector, wanted["vector"])


def test_no_output_bound(target, feed):
    session = target.session()
    with pytest.raises(RuntimeError, match="At least one output should be requested"):
        session.run_with_iobinding(bound(target, session, feed, []))


def test_a_missing_input(target, feed):
    session = target.session()
    with pytest.raises(RuntimeError, match="Missing Input: a"):
        session.run_with_iobinding(bound(target, session, {"b": feed["b"]}))


def test_unknown_names(target, feed):
    session = target.session()
    binding = bound(target, session, feed)
    with pytest.raises(RuntimeError, match="nothing"):
        binding.bind_cpu_input("nothing", feed["b"])
    binding.bind_output("nothing")
    with pytest.raises(RuntimeError, match="nothing"):
        session.run_with_iobinding(binding)


@pytest.mark.parametrize("change", [lambda a: a.astype(np.float64), lambda a: a[0], lambda a: a[:, :2].copy()])
def test_dtype_and_shape_are_looked_at_when_it_runs(target, feed, change):
    session = target.session()
    binding = bound(target, session, {**feed, "a": change(feed["a"])})
    with pytest.raises(RuntimeError, match=r"Unexpected input data type|Invalid rank|Got invalid dimensions"):
        session.run_with_iobinding(binding)
    binding.bind_cpu_input("a", feed["a"])
    session.run_with_iobinding(binding)
    assert len(binding.copy_outputs_to_cpu()) == 2


def test_an_input_is_read_when_it_runs_and_kept_alive(target, feed, wanted):
    session = target.session()
    arrays = {name: np.zeros_like(array) for name, array in feed.items()}
    binding = bound(target, session, arrays)
    for name, array in feed.items():
        arrays[name][:] = array  # in place: the binding reads the array itself
    alive = [weakref.ref(array) for array in arrays.values()]
    del arrays
    gc.collect()
    session.run_with_iobinding(binding)
    assert all(ref() is not None for ref in alive)
    assert target.same(binding.copy_outputs_to_cpu()[0], wanted["map"])


def test_a_strided_input_is_copied_when_it_is_bound(target, feed, wanted):
    session = target.session()
    strided = np.asfortranarray(feed["a"])
    binding = bound(target, session, {**feed, "a": strided})
    strided[:] = 0
    session.run_with_iobinding(binding)
    assert target.same(binding.copy_outputs_to_cpu()[0], wanted["map"])


def test_binding_again(target, feed, wanted):
    session = target.session()
    binding = bound(target, session, {name: np.zeros_like(array) for name, array in feed.items()})
    session.run_with_iobinding(binding)
    zeros = binding.copy_outputs_to_cpu()[0]
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    session.run_with_iobinding(binding)
    assert target.same(binding.copy_outputs_to_cpu()[0], wanted["map"])
    assert not np.array_equal(zeros, binding.copy_outputs_to_cpu()[0])


def test_clearing(target, feed, wanted):
    session = target.session()
    binding = bound(target, session, feed)
    binding.clear_binding_outputs()
    with pytest.raises(RuntimeError, match="At least one output"):
        session.run_with_iobinding(binding)
    binding.bind_output("vector")
    binding.clear_binding_inputs()
    with pytest.raises(RuntimeError, match="Missing Input"):
        session.run_with_iobinding(binding)
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    session.run_with_iobinding(binding)
    assert target.same(binding.copy_outputs_to_cpu()[0], wanted["vector"])
    binding.synchronize_inputs()
    binding.synchronize_outputs()


def test_an_output_by_address(target, feed, wanted):
    session = target.session()
    binding = bound(target, session, feed, [])
    into = np.zeros_like(wanted["vector"])
    binding.bind_output("vector", "cpu", 0, np.float32, into.shape, into.ctypes.data)
    session.run_with_iobinding(binding)
    assert target.same(into, wanted["vector"])
    with pytest.raises(ValueError, match="are to be provided"):
        binding.bind_output("vector", "cpu", 0, None, None, into.ctypes.data)


def test_an_input_by_address(target, feed, wanted):
    session = target.session()
    binding = bound(target, session, {"b": feed["b"]}, ["map"])
    array = np.ascontiguousarray(feed["a"])
    binding.bind_input("a", "cpu", 0, np.float32, array.shape, array.ctypes.data)
    session.run_with_iobinding(binding)
    assert target.same(binding.copy_outputs_to_cpu()[0], wanted["map"])


def test_values_as_inputs_and_outputs(target, feed, wanted):
    session = target.session()
    binding = session.io_binding()
    values = {name: value(target, array) for name, array in feed.items()}
    for name, one in values.items():
        binding.bind_ortvalue_input(name, one)
    into = value(target, np.zeros_like(wanted["map"]))
    binding.bind_ortvalue_output("map", into)
    del values
    gc.collect()
    session.run_with_iobinding(binding)
    assert target.same(into.numpy(), wanted["map"])
    assert binding.get_outputs()[0].data_ptr() == into.data_ptr()


def test_an_output_that_is_too_small(target, feed):
    session = target.session()
    binding = bound(target, session, feed, [])
    binding.bind_ortvalue_output("vector", value(target, np.zeros((1, 2), np.float32)))
    with pytest.raises(RuntimeError, match="Got invalid dimensions for output: vector"):
        session.run_with_iobinding(binding)


def test_a_bound_output_keeps_its_buffer(target, feed):
    session = target.session()
    binding = bound(target, session, feed, ["vector"])
    session.run_with_iobinding(binding)
    (first,) = binding.get_outputs()
    before = first.numpy().copy()
    binding.bind_cpu_input("b", np.ones_like(feed["b"]))
    session.run_with_iobinding(binding)
    assert binding.get_outputs()[0].data_ptr() == first.data_ptr()
    assert not np.array_equal(first.numpy(), before)


def test_results_outlive_binding_and_session(target, feed, wanted):
    session = target.session()
    binding = bound(target, session, feed)
    session.run_with_iobinding(binding)
    values = binding.get_outputs()
    target.made.clear()
    del binding, session
    gc.collect()
    assert target.same(values[0].numpy(), wanted["map"])


def test_a_binding_is_its_sessions_own(target, feed):
    session, other = target.session(), target.session()
    binding = bound(target, other, feed)
    try:
        session.run_with_iobinding(binding)
    except ValueError as error:
        assert "IOBinding must be used with" in str(error)
    else:
        # Releases that do not look run the session that was named.
        assert len(binding.copy_outputs_to_cpu()) == 2


def test_the_low_level_binding(target, feed, wanted):
    from onnxruntime.capi._pybind_state import SessionIOBinding

    session = target.session()
    binding = SessionIOBinding(session._sess)
    for name, array in feed.items():
        binding.bind_input(name, array)
    binding.bind_output("map", target.ort.OrtDevice.make("cpu", 0)._get_c_device())
    session._sess.run_with_iobinding(binding, None)
    assert target.same(binding.copy_outputs_to_cpu()[0], wanted["map"])


def test_run_with_ort_values(target, feed, wanted):
    session = target.session()
    values = {name: value(target, array) for name, array in feed.items()}
    results = session.run_with_ort_values(["vector", "map"], values)
    assert all(isinstance(one, target.ort.OrtValue) for one in results)
    assert target.same(results[0].numpy(), wanted["vector"])
    assert target.same(results[1].numpy(), wanted["map"])
    assert len(session.run_with_ort_values(None, values)) == 2
    again = session.run_with_ort_values(["vector"], {**values, "b": value(target, np.ones_like(feed["b"]))})
    assert not np.array_equal(again[0].numpy(), results[0].numpy())


def test_run_with_ort_values_that_do_not_fit(target, feed):
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    session = target.session()
    values = {name: value(target, array) for name, array in feed.items()}
    with pytest.raises(InvalidArgument, match="Invalid rank"):
        session.run_with_ort_values(None, {**values, "a": value(target, feed["a"][0])})
    with pytest.raises(InvalidArgument, match="Unexpected input data type"):
        session.run_with_ort_values(None, {**values, "a": value(target, feed["a"].astype(np.float64))})
    with pytest.raises(ValueError, match="Required inputs"):
        session.run_with_ort_values(None, {"a": values["a"]})
    with pytest.raises(InvalidArgument, match="Invalid output name"):
        session.run_with_ort_values(["nothing"], values)


def test_run_with_ortvaluevector(target, feed, wanted):
    from onnxruntime.capi import _pybind_state as C

    session = target.session()
    device = target.ort.OrtDevice.make("cpu", 0)._get_c_device()
    feeds, fetches = C.OrtValueVector(), C.OrtValueVector()
    for name in ("b", "a"):
        feeds.push_back(value(target, feed[name])._get_c_value())
    out = ["vector", "map"]
    session.run_with_ortvaluevector(C.RunOptions(), ["b", "a"], feeds, out, fetches, [device, device])
    assert len(fetches) == 2
    assert target.same(fetches[0].numpy(), wanted["vector"])
    assert target.same(fetches[1].numpy(), wanted["map"])


def test_values_are_fed_to_run_too(target, feed, wanted):
    session = target.session()
    results = session.run(["map"], {"a": value(target, feed["a"]), "b": feed["b"]})
    assert target.same(results[0], wanted["map"])


def test_value_shares_memory_with_its_array(target, feed, wanted):
    session = target.session()
    array = np.zeros_like(feed["a"])
    one = value(target, array)
    array[:] = feed["a"]
    assert one.data_ptr() == array.ctypes.data
    assert target.same(session.run(["map"], {"a": one, "b": feed["b"]})[0], wanted["map"])
    one.update_inplace(np.zeros_like(feed["a"]))
    assert not array.any()


def test_a_value_made_on_its_shape(target, feed, wanted):
    session = target.session()
    into = target.ort.OrtValue.ortvalue_from_shape_and_type(list(wanted["map"].shape), np.float32)
    assert into.shape() == list(wanted["map"].shape)
    assert into.is_tensor() and into.has_value() and not into.is_sparse_tensor()
    binding = bound(target, session, feed, [])
    binding.bind_ortvalue_output("map", into)
    session.run_with_iobinding(binding)
    assert target.same(np.asarray(into.numpy()), wanted["map"])
