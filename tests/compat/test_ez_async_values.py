"""The face of EZ RKNN Async: OrtValue and IOBinding."""

import numpy as np
import pytest
from support.ez_async_models import X, fresh_npu, make, model

import ort_rknn_ez_async as ez

VALUE = ez.OrtValue


npu = pytest.fixture(fresh_npu, autouse=True)


@pytest.fixture
def session():
    with make() as made:
        yield made


HALF = X.astype(np.float16)


def on_device(session, array, name="x", io_kind="input"):
    return VALUE.ortvalue_from_numpy(array, "rknpu2", 0, name=name, session=session, io_kind=io_kind)


def test_a_cpu_value_shares_its_array():
    x = X.copy()
    value = VALUE.ortvalue_from_numpy(x)
    assert value.data_ptr() == x.ctypes.data
    x[0, 0, 0, 0] = 7
    assert value.numpy()[0, 0, 0, 0] == 7
    value.update_inplace(np.zeros_like(x))
    assert not x.any()
    assert value.memory_info() == {"device_type": "cpu", "device_id": 0}
    assert (value.device_name(), value.device_type(), value.device_id()) == ("cpu", "cpu", 0)
    assert (value.shape(), value.element_type()) == ([1, 3, 32, 32], "tensor(float)")
    assert value.is_tensor() and value.has_value()
    value.sync_to_device()
    value.sync_from_device()


def test_a_device_value_has_the_known_memory_info(session):
    value = on_device(session, HALF)
    info = value.memory_info()
    assert list(info) == [
        "device_type", "device_id", "size", "fd", "offset", "virt_addr", "import_count", "dmabuf_backed", "attr_size",
        "size_with_stride", "w_stride", "h_stride", "fmt", "pass_through", "aligned_size", "core_id", "layout",
        "strides",
    ]  # fmt: skip
    assert (info["device_type"], info["size"], info["offset"], info["fmt"], info["w_stride"]) == (
        "rknpu2",
        6144,
        0,
        1,
        32,
    )
    assert info["fd"] >= 0 and info["dmabuf_backed"]
    assert info["virt_addr"] == value.data_ptr()
    assert value.shape() == [1, 3, 32, 32]
    assert value.element_type() == "tensor(float16)"
    assert np.array_equal(value.numpy(), HALF)
    value.update_inplace(HALF * 2)
    assert np.array_equal(value.numpy(), HALF * 2)
    with pytest.raises(
        RuntimeError, match="update_inplace source element type mismatch: expected float16, got float32"
    ):
        value.update_inplace(X)
    with pytest.raises(RuntimeError, match="update_inplace source shape mismatch"):
        value.update_inplace(HALF[0])


def test_a_device_value_lies_in_nhwc(session):
    import ctypes

    value = on_device(session, HALF)
    raw = np.frombuffer((ctypes.c_char * 6144).from_address(value.data_ptr()), np.float16).reshape(1, 32, 32, 3)
    assert np.array_equal(raw, HALF.transpose(0, 2, 3, 1))


def test_element_types():
    for spelling in (np.float16, "float16", np.dtype("f2"), 10):
        value = VALUE.ortvalue_from_shape_and_type([2, 3], spelling)
        assert value.element_type() == "tensor(float16)"
    with pytest.raises(RuntimeError, match="ONNX type"):
        VALUE.ortvalue_from_shape_and_type([2], 77)
    with pytest.raises(TypeError):
        VALUE.ortvalue_from_shape_and_type([2], "nope")
    standalone = VALUE.ortvalue_from_shape_and_type([2, 3], "float32", "rknpu2")
    assert standalone.device_name() == "rknpu2"


def of_shape(session, shape, dtype, name=None, kind=None, device="rknpu2", number=0, **more):
    session = session if name or device == "rknpu3" else None
    return VALUE.ortvalue_from_shape_and_type(
        shape, dtype, device, number, name=name, session=session, io_kind=kind, **more
    )


@pytest.mark.parametrize(
    ("make_it", "text"),
    [
        (
            lambda s: of_shape(s, [1, 3, 32, 31], "float16", "x", "input"),
            r"OrtValue for input 'x' shape mismatch: expected \[1, 3, 32, 32\], got \[1, 3, 32, 31\]",
        ),
        (
            lambda s: of_shape(s, [1, 3, 32, 32], "float32", "x", "input"),
            "OrtValue for input 'x' element type mismatch: expected float16, got float32",
        ),
        (lambda s: of_shape(s, [1, 8, 16, 15], "float16", "y", "output"), "OrtValue for output 'y' shape mismatch"),
        (lambda s: of_shape(s, [1, 8, 16, 16], "int8", "y", "output"), "OrtValue for output 'y' element type mismatch"),
        (lambda s: VALUE.ortvalue_from_shape_and_type([1], "float16", "rknpu3"), "standalone RKNPU3 OrtValue"),
        (lambda s: of_shape(s, [1], "float16", device="rknpu3"), "device_type does not match"),
        (lambda s: of_shape(s, [1], "float16", device="gpu"), "device_type must be 'cpu', 'rknpu2', or 'rknpu3'"),
        (lambda s: of_shape(s, [1], "float16", number=1), "device_id 0 only"),
        (lambda s: of_shape(s, [1], "float16", "x", "in"), "io_kind must be"),
        (lambda s: of_shape(s, [1], "float16", "q", "input"), "Unknown input name: q"),
        (lambda s: of_shape(s, [1], "float16", mem_flags="sram"), "host memory"),
        (lambda s: of_shape(s, [1], "float16", mem_flags="nope"), "invalid mem_flags"),
        (lambda s: VALUE.ortvalue_from_numpy(X, layout="nc1hwc2"), "layout='nc1hwc2' is not supported"),
        (lambda s: VALUE.ortvalue_from_numpy(X, "rknpu2"), "requires session, name and io_kind"),
        (lambda s: VALUE.ortvalue_from_numpy(np.array(["a"])), "Unsupported numpy dtype"),
        (lambda s: VALUE.ortvalue_from_dmabuf(10**6, [1], "float16", size=2), "the dma-buf 1000000 cannot be used"),
        (
            lambda s: VALUE.ortvalue_from_dmabuf(3, [1], "float16", size=2, name="x"),
            "requires session, name and io_kind",
        ),
    ],
)
def test_values_that_cannot_be(session, make_it, text):
    with pytest.raises(RuntimeError, match=text):
        make_it(session)


def test_binding_runs_as_run_does(npu, session):
    expected = session.run(None, HALF)[0]
    binding = session.io_binding()
    assert isinstance(binding, ez.IOBinding)
    binding.bind_cpu_input("x", HALF)
    binding.bind_output("y")
    for call in (
        lambda: session.run_with_iobinding(binding),
        lambda: session.run_with_iobinding(io_binding=binding),
        lambda: session.run_with_iobinding(iobinding=binding),
    ):
        call()
        (y,) = binding.copy_outputs_to_cpu()
        assert y.dtype == np.float16
        assert np.array_equal(y.astype(np.float32), expected)
    binding.synchronize_inputs()
    binding.synchronize_outputs()
    assert [v.device_name() for v in binding.get_outputs()] == ["cpu"]


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "any", "nchw_software"])
def test_device_values_in_every_layout(layout):
    with make(layout=layout) as session:
        x = HALF if layout.startswith("nchw") else np.ascontiguousarray(HALF.transpose(0, 2, 3, 1))
        expected = session.run(None, x)[0]
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", on_device(session, x))
        y = of_shape(session, [1, 8, 16, 16], "float16", "y", "output")
        binding.bind_ortvalue_output("y", y)
        session.run_with_iobinding(binding)
        assert np.array_equal(y.numpy().astype(np.float32), expected)
        assert binding.get_outputs()[0] is y


def test_what_a_value_holds_at_the_run_counts(session):
    value = on_device(session, HALF)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", value)
    binding.bind_output("y", "rknpu2")
    value.update_inplace(HALF * 2)
    session.run_with_iobinding(binding)
    assert np.array_equal(binding.copy_outputs_to_cpu()[0].astype(np.float32), session.run(None, HALF * 2)[0])


def test_quantized_tensors_are_stored_integers():
    with make(model("conv_i8")) as session:
        expected = session.run(None, X)[0]
        value = on_device(session, X)
        assert value.element_type() == "tensor(int8)"
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", value)
        binding.bind_output("y", element_type=np.int8, shape=[1, 20, 8, 8])
        session.run_with_iobinding(binding)
        (y,) = binding.copy_outputs_to_cpu()
        scale, zero = 0.0381174237, -4
        assert y.dtype == np.int8
        assert np.allclose((y.astype(np.float32) - zero) * scale, expected, atol=1e-5)


def test_chaining_needs_tensors_that_are_alike(session):
    with make(model("conv_i8")) as other:
        y = VALUE.ortvalue_from_shape_and_type(
            [1, 20, 8, 8], "int8", "rknpu2", name="y", session=other, io_kind="output"
        )
        with pytest.raises(RuntimeError, match="OrtValue for input 'x' shape mismatch"):
            other.io_binding().bind_ortvalue_input("x", y)
    with make() as other:
        value = on_device(other, HALF)
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", value)
        binding.bind_output("y")
        session.run_with_iobinding(binding)
    with make(model("conv_i8")) as quantized, make(model("conv_i8"), layout="nhwc") as nhwc:
        value = on_device(quantized, X)
        value._tensor = __import__("dataclasses").replace(value._tensor, quantization=None)
        with pytest.raises(RuntimeError, match="native zero-copy layout mismatch: quantization"):
            quantized.io_binding().bind_ortvalue_input("x", value)
        with pytest.raises(RuntimeError, match="shape mismatch"):
            nhwc.io_binding().bind_ortvalue_input("x", on_device(quantized, X))


def test_what_is_not_bound_or_not_ours_is_an_error(session):
    binding = session.io_binding()
    with pytest.raises(RuntimeError, match="All model inputs must be bound before run_with_iobinding"):
        session.run_with_iobinding(binding)
    with pytest.raises(TypeError, match="one binding"):
        session.run_with_iobinding()
    binding.bind_cpu_input("x", HALF)
    binding.bind_output("y")
    with pytest.raises(RuntimeError, match="nothing ran"):
        binding.get_outputs()
    with make() as other, pytest.raises(RuntimeError, match="IoBinding belongs to a different session"):
        other.run_with_iobinding(binding)
    with pytest.raises(RuntimeError, match="bind_input with raw buffer_ptr is not supported"):
        binding.bind_input("x", "cpu", 0, np.float16, [1, 3, 32, 32], 0)
    with pytest.raises(RuntimeError, match="bind_output with raw buffer_ptr is not implemented"):
        binding.bind_output("y", buffer_ptr=1)
    with pytest.raises(RuntimeError, match="Unknown input name: q"):
        binding.bind_cpu_input("q", HALF)
    with pytest.raises(RuntimeError, match="element type mismatch: expected float16, got float32"):
        binding.bind_cpu_input("x", X)
    binding.clear_binding_inputs()
    binding.clear_binding_outputs()
    assert binding.get_outputs() == []


def test_outputs_that_were_not_requested_are_not_reported():
    with make(model("two_io")) as session:
        binding = session.io_binding()
        binding.bind_cpu_input("a", np.ones((1, 3, 16, 16), np.float16))
        binding.bind_cpu_input("b", np.ones((1, 16), np.float16))
        binding.bind_output("vector")
        session.run_with_iobinding(binding)
        assert [v.shape() for v in binding.get_outputs()] == [[1, 6]]


@pytest.mark.filterwarnings("ignore::ort_rknn.FallbackWarning")
def test_bindings_work_on_the_cpu_too():
    with (
        make(model("conv_i8")) as on_npu,
        ez.InferenceSession(model("conv_i8"), providers=["CPUExecutionProvider"]) as cpu,
    ):
        results = []
        for session in (on_npu, cpu):
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", on_device(session, X))
            binding.bind_output("y")
            session.run_with_iobinding(binding)
            results += binding.copy_outputs_to_cpu()
        assert results[0].dtype == results[1].dtype == np.int8
        assert np.abs(results[0].astype(int) - results[1]).max() <= 3
