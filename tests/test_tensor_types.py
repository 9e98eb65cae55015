"""The one table of dtypes, against onnxruntime and onnx."""

import numpy as np
import onnx
import onnxruntime
import pytest

from ort_rknn._tensors import DTYPE_OF_ELEMENT, DTYPES
from ort_rknn.adapter import DTYPE_OF_TYPE


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_types_are_those_of_onnxruntime(dtype):
    element, size = DTYPES[dtype]
    value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, dtype))
    assert DTYPE_OF_TYPE[value.data_type()] == dtype
    assert value.element_type() == element
    assert np.dtype(dtype).itemsize == size
    assert onnx.helper.tensor_dtype_to_np_dtype(element) == np.dtype(dtype)


def test_nothing_else_has_a_dtype():
    assert sorted(DTYPE_OF_TYPE.values()) == sorted(DTYPES) == sorted(DTYPE_OF_ELEMENT.values())
    for text in ("tensor(string)", "tensor(bfloat16)", "seq(tensor(float))", "float", ""):
        assert text not in DTYPE_OF_TYPE
