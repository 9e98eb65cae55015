"""Which rule an operator of the standard domain follows."""

from __future__ import annotations

from . import _elementwise, _spatial
from ._call import Rule

RULES: dict[str, Rule] = {
    **dict.fromkeys(_elementwise.UNARY, _elementwise.unary),
    **dict.fromkeys(_elementwise.BROADCAST, _elementwise.n_ary),
    "CastLike": _elementwise.cast_like,
    "Conv": _spatial.convolution,
    "ConvInteger": _spatial.convolution,
    "QLinearConv": _spatial.quantized_convolution,
    "ConvTranspose": _spatial.transposed_convolution,
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _spatial.pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _spatial.global_pool),
    "BatchNormalization": _spatial.batch_normalization,
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization", "LRN"), _spatial.by_sample),
}

#: Operators that draw random numbers, and those whose graphs inside are not followed.
NEVER: dict[str, str] = {
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
        "draws random numbers",
    ),
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), "has a graph inside, which is not followed"),
    "DynamicQuantizeLinear": "takes its scale from the whole batch",
}
