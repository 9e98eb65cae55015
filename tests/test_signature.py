"""The caller's inputs and outputs, matched with the compiled model's."""

from dataclasses import replace

import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state
from support.fake_npu import FakeNpu, image, info

from ort_rknn._errors import OptionError
from ort_rknn._executor.batches import Splitting
from ort_rknn._executor.declared import Declared, Normalization
from ort_rknn._executor.ports import Known
from ort_rknn._executor.signature import negotiate
from ort_rknn._options import read_options
from ort_rknn._tensors import onnx_order
from ort_rknn.adapter import LoadSettings, ModelSource, Quantization

INT8 = Quantization(0.5, 3)


def match(
    inputs,
    outputs,
    declared_in,
    declared_out,
    *,
    sets=(),
    shapes=None,
    normalization=None,
    splitting=None,
    evidence=None,
    **given,
):
    npu = FakeNpu(inputs=inputs, outputs=outputs, shape_sets=sets, shapes=shapes)
    model = npu.load(npu.device, ModelSource(data=b""), LoadSettings())
    options = read_options(given)
    return negotiate(
        model,
        declared_in,
        declared_out,
        options,
        Known(normalization or {}, splitting, evidence),
        "m.rknn",
    )


def d(name, *dims, dtype="float32"):
    return Declared(name, dtype, dims)


IMAGE = [image("x", (1, 3, 8, 6))]
OUT = [info("y", (1, 5), "float16")]


def one(**given):
    return match(IMAGE, OUT, [d("x", 1, 3, 8, 6)], [d("y", 1, 5)], **given)


def test_the_rule_is_the_onnxs():
    signature = one()
    (x,), (y,) = signature.inputs, signature.outputs
    assert (x.name, x.dtype, x.dims, x.layout, x.wire_dtype) == ("x", "float32", (1, 3, 8, 6), "NCHW", "float32")
    assert (y.name, y.dtype, y.dims, y.wire_dtype) == ("y", "float32", (1, 5), "float32")
    assert (x.elem_type, y.elem_type) == (1, 1)
    assert signature.split is None and not signature.splits


def test_layout():
    for given in ("nhwc", {"x": "nhwc"}):
        (x,) = one(layout=given).inputs
        assert (x.dims, x.layout) == ((1, 8, 6, 3), "NHWC")
    with pytest.raises(OptionError, match="names an input 'z'; the model has x"):
        one(layout={"z": "nhwc"})
    flat = [info("x", (1, 4))]
    with pytest.raises(OptionError, match="only 4-D inputs have a layout"):
        match(flat, OUT, [d("x", 1, 4)], [d("y", 1, 5)], layout={"x": "nhwc"})
    assert match(flat, OUT, [d("x", 1, 4)], [d("y", 1, 5)], layout="nhwc").inputs[0].layout == "UNDEFINED"


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16"])
def test_input_dtype(dtype):
    (x,) = one(input_dtype=dtype).inputs
    assert (x.dtype, x.wire_dtype) == (dtype, dtype)
    with pytest.raises(OptionError, match="names an input 'z'"):
        one(input_dtype={"z": dtype})


def test_dtypes_that_the_runtime_is_not_fed():
    (x,) = match(IMAGE, OUT, [d("x", 1, 3, 8, 6, dtype="float64")], [d("y", 1, 5)]).inputs
    assert (x.dtype, x.wire_dtype) == ("float64", "float32")
    with pytest.raises(state.Fail, match="uint64, which an input on the NPU cannot have"):
        match(IMAGE, OUT, [d("x", 1, 3, 8, 6, dtype="uint64")], [d("y", 1, 5)])


def test_ports_are_matched_by_name():
    inputs, outputs = [info("a", (1, 2)), info("b", (1, 3))], [info("p", (1, 4)), info("q", (1, 5))]
    signature = match(inputs, outputs, [d("b", 1, 3), d("a", 1, 2)], [d("q", 1, 5), d("p", 1, 4)])
    assert [(p.name, p.index) for p in (*signature.inputs, *signature.outputs)] == [
        ("b", 1),
        ("a", 0),
        ("q", 1),
        ("p", 0),
    ]
    # All names foreign: by place.
    signature = match(inputs, outputs, [d("x", 1, 2), d("y", 1, 3)], [d("v", 1, 4), d("w", 1, 5)])
    assert [p.index for p in (*signature.inputs, *signature.outputs)] == [0, 1, 0, 1]


class NoEvidence:
    """An ONNX with nothing to go by but its declarations."""

    is_origin = False


def test_foreign_names_are_matched_by_shape_or_not_at_all():
    """With an ONNX, positions prove nothing: two outputs of one shape under other names cannot be distinguished."""
    inputs, outputs = [info("a", (1, 2)), info("b", (1, 3))], [info("p", (1, 4)), info("q", (1, 5))]

    def by_shape(*declared_out):
        declared_in = [d("y", 1, 3), d("x", 1, 2)]
        return match(inputs, outputs, declared_in, declared_out, evidence=NoEvidence())

    signature = by_shape(d("w", 1, 5), d("v", 1, 4))
    assert [p.index for p in (*signature.inputs, *signature.outputs)] == [1, 0, 1, 0]
    for declared_out in ([d("w", 1, None), d("v", 1, 4)], [d("w", 1, "n"), d("v", 1, "n")]):
        with pytest.raises(state.Fail, match="their shapes do not tell which is which"):
            by_shape(*declared_out)
    outputs = [info("p", (1, 4)), info("q", (1, 4))]
    with pytest.raises(state.Fail, match="do not tell which is which"):
        by_shape(d("w", 1, 4), d("v", 1, 4))
    one = match(IMAGE, OUT, [d("image", 1, 3, 8, 6)], [d("scores", 1, 5)], evidence=NoEvidence())
    assert [p.index for p in (*one.inputs, *one.outputs)] == [0, 0]


@pytest.mark.parametrize("names", [("a",), ("a", "c"), ("a", "b", "c")])
def test_a_model_of_other_ports_was_compiled_from_another_onnx(names):
    inputs = [info("a", (1, 2)), info("b", (1, 2))]
    with pytest.raises(state.Fail, match=r"m.rknn: the compiled model has the inputs.*compiled from another model"):
        match(inputs, OUT, [d(n, 1, 2) for n in names], [d("y", 1, 5)])


@pytest.mark.parametrize("dims", [(1, 3, 8, 7), (1, 8, 6, 3), (2, 3, 8, 6), (1, 3, 48), (3, 8, 6, 2)])
def test_shapes_that_do_not_fit_are_found_at_load(dims):
    with pytest.raises(state.Fail, match=r"'x' is .* in the ONNX, but .* in the compiled model"):
        match(IMAGE, OUT, [d("x", *dims)], [d("y", 1, 5)])
    with pytest.raises(state.Fail, match="output 'y'"):
        match(IMAGE, OUT, [d("x", 1, 3, 8, 6)], [d("y", 1, 6)])


def test_axes_of_length_one_may_come_and_go():
    signature = match([info("x", (1, 8))], [info("y", (1,))], [d("x", 8)], [d("y")])
    assert (signature.inputs[0].dims, signature.outputs[0].dims) == ((8,), ())


def test_a_dimension_is_a_number_where_all_sets_agree_and_batching_cannot_change_it():
    free = [d("x", "N", 3, "h", "w")]
    inputs = [*IMAGE, info("z", (1, 2))]
    static = match(inputs, [info("y", (1, 5))], [*free, d("z", 1, 2)], [d("y", 1, 5)])
    assert static.split is None and static.inputs[0].dims == (1, 3, 8, 6)
    assert any("leading axis free" in note for note in static.notes)
    batched = match(IMAGE, [info("y", (1, 5))], free, [d("y", "N", 5)])
    assert not batched.splits
    assert (batched.inputs[0].dims, batched.outputs[0].dims) == (("N", 3, 8, 6), ("N", 5))
    sets = (((1, 3, 8, 6),), ((1, 3, 8, 12),))
    dynamic = match(
        IMAGE, [info("y", (1, 8, 6))], free, [d("y", 1, "h", "w")], sets=sets, shapes=[((1, 8, 6),), ((1, 8, 12),)]
    )
    assert (dynamic.inputs[0].dims, dynamic.outputs[0].dims) == (("N", 3, 8, "w"), (1, 8, "w"))
    assert not dynamic.splits


PROVED = Splitting(True, "it is proved")


def test_samples_are_judged_only_where_a_batch_could_be_cut():
    asked = []

    def judge(without):
        asked.append(1)
        assert not without
        return PROVED

    def match_free(declared_in, declared_out, compiled=(1, 5), **given):
        out = [info("y", compiled)]
        return match(IMAGE, out, [d("x", *declared_in)], [d("y", *declared_out)], splitting=judge, **given).split

    assert match_free((1, 3, 8, 6), (1, 5)) is None
    assert match_free((1, 3, "h", "w"), ("N", 5)) is None
    assert "without a free first axis" in match_free(("N", 3, 8, 6), (1, 5)).reason
    assert "without a free first axis" in match_free(("N", 3, 8, 6), (), (1,)).reason
    assert "output 'y' is [5]" in match_free(("N", 3, 8, 6), ("M",), (5,)).reason
    assert match_free(("N", 3, 8, 6), ("N", 5), split_batch=False) == Splitting(
        False, "the provider option split_batch=False states it"
    )
    assert asked == []
    assert match_free(("N", 3, 8, 6), ("N", 5)) is PROVED
    assert match_free((None, 3, 8, 6), (None, 5)) is PROVED
    assert asked == [1, 1]


@pytest.mark.parametrize(
    ("inputs", "compiled", "dims", "splits"),
    [
        (("N", 3, 8, 6), (1, 5), ("N", 5), True),
        ((None, 3, 8, 6), (1, 5), (None, 5), True),
        (("N", 3, 8, 6), (4, 5), (None, 5), False),
        ((1, 3, 8, 6), (1, 5), (1, 5), None),
    ],
)
def test_an_output_of_unknown_rank_may_be_a_batch(inputs, compiled, dims, splits):
    signature = match(IMAGE, [info("y", compiled)], [d("x", *inputs)], [Declared("y", "float32", None)],
                      splitting=lambda without: PROVED)  # fmt: skip
    assert (signature.split and signature.split.allowed) is splits
    assert signature.outputs[0].dims == dims


def test_inputs_that_were_compiled_for_different_first_axes_are_no_batch():
    pair = [info("a", (1, 4)), info("b", (3, 4))]
    split = match(pair, [info("y", (1, 3))], [d("a", "n", 4), d("b", "m", 4)], [d("y", "n", "m")]).split
    assert not split.allowed and "'a' and 'b' were compiled for first axes of 1 and 3" in split.reason


@pytest.mark.parametrize(
    "dims, out, compiled, text",
    [
        ((1, 3, 8, 6), (1, 5), (1, 5), r"input 'x' is \[1, 3, 8, 6\], without a free first axis"),
        (("N", 3, 8, 6), (1, 5), (1, 5), r"output 'y' is \[1, 5\], without a free first axis"),
        (("N", 3, 8, 6), ("N",), (5,), r"output 'y' is \[5\] in the compiled model, for a first axis of 1"),
    ],
)
def test_a_batch_that_is_stated_must_be_one(dims, out, compiled, text):
    with pytest.raises(OptionError, match=f"split_batch=True: {text}"):
        match(IMAGE, [info("y", compiled)], [d("x", *dims)], [d("y", *out)], split_batch=True)


def test_unnamed_free_dimensions():
    signature = match(IMAGE, [info("y", (1, 5))], [d("x", None, 3, None, 6)], [d("y", None, 5)])
    assert signature.inputs[0].dims == (None, 3, 8, 6)


def test_unknown_rank_takes_the_compiled_shape():
    signature = match(IMAGE, OUT, [Declared("x", "float32", None)], [Declared("y", "float32", None)])
    assert (signature.inputs[0].dims, signature.outputs[0].dims) == ((1, 3, 8, 6), (1, 5))


@pytest.mark.parametrize(
    "declared, compiled, asked, got, wire",
    [
        ("float32", info("y", (1, 5), "int8", INT8), "onnx", "float32", "float32"),
        ("float16", info("y", (1, 5), "float16"), "onnx", "float16", "float16"),
        ("float64", info("y", (1, 5), "float16"), "onnx", "float64", "float32"),
        ("int64", info("y", (1, 5), "int64"), "onnx", "int64", "int64"),
        ("int64", info("y", (1, 5), "int32"), "onnx", "int64", "int32"),
        ("float32", info("y", (1, 5), "int8", INT8), "native", "int8", "int8"),
        ("float32", info("y", (1, 5), "float16"), "native", "float16", "float16"),
        ("float16", info("y", (1, 5), "float16"), "float32", "float32", "float32"),
    ],
)
def test_outputs(declared, compiled, asked, got, wire):
    (y,) = match(IMAGE, [compiled], [d("x", 1, 3, 8, 6)], [d("y", 1, 5, dtype=declared)], output_dtype=asked).outputs
    assert (y.dtype, y.wire_dtype) == (got, wire)


@pytest.mark.parametrize("compiled", [info("y", (1, 5), "int8", INT8), info("y", (1, 5), "float16")])
def test_integers_never_travel_through_float(compiled):
    with pytest.raises(state.Fail, match="would lose its integers; output_dtype='native'"):
        match(IMAGE, [compiled], [d("x", 1, 3, 8, 6)], [d("y", 1, 5, dtype="int64")])


def test_integers_beyond_an_inputs_scale_are_not_fed():
    """Of an ONNX that begins with DequantizeLinear: the runtime would make 1.0, the largest value, of 1 and of 255."""
    small = [replace(IMAGE[0], dtype="int8", quantization=Quantization(1 / 255, -128))]
    given = [d("x", 1, 3, 8, 6, dtype="uint8")], [d("y", 1, 5)]
    with pytest.raises(state.Fail, match="scale ends below most of its integers"):
        match(small, OUT, *given)
    match(small, OUT, *given, normalization={"x": Normalization((0.0,), (255.0,))})
    match([replace(small[0], quantization=Quantization(1.0, -128))], OUT, *given)
    match(small, OUT, [d("x", 1, 3, 8, 6)], given[1])


def test_native_of_a_type_that_numpy_lacks():
    with pytest.raises(OptionError, match="bfloat16"):
        match(IMAGE, [info("y", (1, 5), "bfloat16")], [d("x", 1, 3, 8, 6)], [d("y", 1, 5)], output_dtype="native")


def test_normalization_is_undone_for_floats_only():
    norm = {"x": Normalization((1.0,) * 3, (2.0,) * 3)}
    signature = match(IMAGE, OUT, [d("x", 1, 3, 8, 6)], [d("y", 1, 5)], normalization=norm)
    assert signature.inputs[0].denormalizes
    assert any("input_dtype='uint8'" in note for note in signature.notes)
    signature = match(IMAGE, OUT, [d("x", 1, 3, 8, 6)], [d("y", 1, 5)], normalization=norm, input_dtype="uint8")
    assert not signature.inputs[0].denormalizes


def test_onnx_order():
    assert onnx_order((1, 8, 6, 3), "NHWC") == (1, 3, 8, 6)
    assert onnx_order((1, 8, 6, 3), "NCHW") == (1, 8, 6, 3)
    assert onnx_order((4, 5), "UNDEFINED") == (4, 5)
