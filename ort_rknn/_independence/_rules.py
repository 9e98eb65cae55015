"""The rule for each operator of the standard domain."""

from __future__ import annotations

from . import (
    _elementwise,
    _indexing,
    _numbers,
    _parts,
    _positions,
    _products,
    _recurrent,
    _reductions,
    _resampling,
    _shapes,
    _spatial,
)
from ._call import Rule

RULES: dict[str, Rule] = {
    **dict.fromkeys(_elementwise.UNARY, _elementwise.unary),
    **dict.fromkeys(_elementwise.BROADCAST, _elementwise.n_ary),
    "Add": _positions.add,
    "Mul": _positions.multiply,
    "Div": _positions.divide,
    "PRelu": _elementwise.prelu,
    "CastLike": _elementwise.cast_like,
    # pictures
    "Conv": _spatial.convolution,
    "ConvInteger": _spatial.convolution,
    "QLinearConv": _spatial.quantized_convolution,
    "ConvTranspose": _spatial.transposed_convolution,
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _spatial.pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _spatial.global_pool),
    "BatchNormalization": _spatial.batch_normalization,
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization", "LRN"), _spatial.by_sample),
    "Resize": _resampling.resize,
    "Upsample": _resampling.resize,
    "Pad": _resampling.pad,
    "DepthToSpace": _resampling.depth_to_space,
    "SpaceToDepth": _resampling.depth_to_space,
    "GridSample": _resampling.grid_sample,
    # products
    "MatMul": _products.matmul,
    "MatMulInteger": _products.matmul_integer,
    "QLinearMatMul": _products.quantized_matmul,
    "Gemm": _products.gemm,
    "Einsum": _products.einsum,
    # along axes
    **dict.fromkeys(
        (
            "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
            "ReduceProd", "ReduceSum", "ReduceSumSquare",
        ),
        _reductions.reduce,
    ),
    "ArgMax": _reductions.arg,
    "ArgMin": _reductions.arg,
    "TopK": _reductions.top_k,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _reductions.softmax),
    **dict.fromkeys(("LpNormalization", "CumSum"), _reductions.along_axis),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _reductions.layer_normalization),
    "MeanVarianceNormalization": _reductions.mean_variance,
    "QuantizeLinear": _reductions.quantize,
    "DequantizeLinear": _reductions.quantize,
    "Dropout": _reductions.dropout,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent.recurrent),
    # shapes
    "Identity": _shapes.identity,
    "Cast": _shapes.cast,
    "Transpose": _shapes.transpose,
    "Squeeze": _shapes.squeeze,
    "Unsqueeze": _shapes.unsqueeze,
    "Reshape": _shapes.reshape,
    "Flatten": _shapes.flatten,
    "Expand": _shapes.expand,
    "Tile": _shapes.tile,
    "ConstantOfShape": _shapes.constant_of_shape,
    "Range": _shapes.ranged,
    "Concat": _parts.concat,
    "Split": _parts.split,
    "Slice": _parts.slices,
    "Shape": _numbers.shape,
    "Size": _numbers.size,
    "Constant": _numbers.constant,
    # indices
    "Gather": _indexing.gather,
    "GatherElements": _indexing.gather_elements,
    "GatherND": _indexing.gather_nd,
    "OneHot": _indexing.one_hot,
    "Trilu": _indexing.trilu,
    "ReverseSequence": _indexing.reverse_sequence,
}  # fmt: skip

#: Operators that are followed only if all inputs are the same for all samples; then so are their outputs.
FIXED_ONLY = frozenset(("Compress", "EyeLike", "NonZero", "ScatterElements", "ScatterND", "Unique"))

#: Operators that always end a proof.
NEVER: dict[str, str] = {
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
        "draws random numbers",
    ),
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), "contains a graph, which is not examined"),
    "DynamicQuantizeLinear": "takes its scale from the whole batch",
}
