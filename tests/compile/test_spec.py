"""The arguments passed to the toolkit for a part."""

from ort_rknn._compile.observe import Observed
from ort_rknn._compile.partition import GraphPart
from ort_rknn._compile.spec import part_spec


def test_inputs_without_mean_and_std_have_neutral_ones_for_each_channel():
    """rknn-toolkit2 2.5.0 refuses any number of them but the length of axis 1, whatever the rank."""
    shapes = {"image": (1, 3, 8, 8), "inner": (1, 5, 8), "row": (1, 8)}
    part = GraphPart([0], inputs=["inner", "image", "row"])
    made = part_spec("m.onnx", part, Observed(shapes=shapes), "rk3588", {"image": (1, 3, 8, 8)}, [(1.0,) * 3], [])
    assert made.mean == [(0.0,) * 5, (1.0,) * 3, (0.0,) * 8]
    assert made.std is None
