"""Operators on images [N, C, spatial axes]: convolutions, pooling, normalization by channel, resizing, padding."""

from __future__ import annotations

from ._call import NodeCall
from ._lengths import Length, over, times
from ._values import Dims, Value


def _picture(call: NodeCall, index: int = 0) -> tuple[Dims, Value]:
    """The shape of an input whose first axis holds the samples."""
    value = call.value(index)
    dims = call.shape_of(value)
    if len(dims) < 2:
        raise call.refuse(f"has an input of {len(dims)} axes, expected [N, C, ...]")
    if value.axis not in (None, 0):
        raise call.refuse(f"has the samples along axis {value.axis} of its input, and works across that axis")
    return dims, value


def _padding(call: NodeCall, count: int) -> tuple[list[int], list[int]]:
    pads = call.numbers("pads") or [0] * (2 * count)
    if len(pads) != 2 * count:
        raise call.refuse("has an attribute 'pads' that does not fit its kernel")
    return pads[:count], pads[count:]


def window(call: NodeCall, dims: Dims, kernel: list[Length]) -> list[Length]:
    """The spatial lengths after a sliding window."""
    count = len(kernel)
    strides = call.numbers("strides") or [1] * count
    dilations = call.numbers("dilations") or [1] * count
    automatic = call.text("auto_pad", "NOTSET")
    before, after = _padding(call, count)
    up = call.number("ceil_mode", 0)
    if len(dims) != count + 2 or len(strides) != count or len(dilations) != count or min(strides) < 1:
        raise call.refuse("has a different number of spatial axes than its kernel")
    result: list[Length] = []
    for position, size in enumerate(kernel):
        length = dims[2 + position]
        stride = strides[position]
        if automatic in ("SAME_UPPER", "SAME_LOWER"):
            quotient = over(length, stride)
            result.append(quotient if quotient is not None else _divided(call, length, stride))
            continue
        if automatic not in ("NOTSET", "VALID", ""):
            raise call.refuse(f"has the unknown padding {automatic!r}")
        padding = 0 if automatic == "VALID" else before[position] + after[position]
        if type(size) is int and padding == dilations[position] * (size - 1) and stride == 1:
            result.append(length)
        elif type(length) is int and type(size) is int and not up:
            result.append((length + padding - dilations[position] * (size - 1) - 1) // stride + 1)
        else:
            result.append(call.length())
    return result


def _divided(call: NodeCall, length: Length, stride: int) -> Length:
    return -(-length // stride) if type(length) is int else call.length()


def convolution(call: NodeCall) -> list[Value]:
    """Conv, ConvInteger: input, weights, bias."""
    return _convolve(call, 1)


def quantized_convolution(call: NodeCall) -> list[Value]:
    """QLinearConv: input, scale, zero point, weights with their scale and zero point."""
    return _convolve(call, 3)


def _convolve(call: NodeCall, at: int) -> list[Value]:
    dims, value = _picture(call)
    call.fixed_from(1)
    weights = call.dims(at)
    if len(weights) != len(dims):
        raise call.refuse("has weights of a different rank than its input")
    return [Value((dims[0], weights[0], *window(call, dims, list(weights[2:]))), value.axis, value.outer)]


def transposed_convolution(call: NodeCall) -> list[Value]:
    """ConvTranspose. Its spatial lengths are followed if the padding is explicit."""
    dims, value = _picture(call)
    call.fixed_from(1)
    weights = call.dims(1)
    count = len(dims) - 2
    if len(weights) != len(dims):
        raise call.refuse("has weights of a different rank than its input")
    channels = times(weights[1], call.number("group", 1))
    strides = call.numbers("strides") or [1] * count
    dilations = call.numbers("dilations") or [1] * count
    extra = call.numbers("output_padding") or [0] * count
    explicit = call.text("auto_pad", "NOTSET") == "NOTSET" and not call.numbers("output_shape")
    before, after = _padding(call, count)
    spatial: list[Length] = []
    for position in range(count):
        length, size = dims[2 + position], weights[2 + position]
        if explicit and type(size) is int:
            # stride * (length - 1) + rest
            rest = extra[position] + (size - 1) * dilations[position] + 1 - before[position] - after[position]
            stride = strides[position]
            if type(length) is int:
                spatial.append(stride * (length - 1) + rest)
                continue
            scaled = times(length, stride)
            if rest == stride and scaled is not None:
                spatial.append(scaled)
                continue
        spatial.append(call.length())
    return [Value((dims[0], channels if channels is not None else call.length(), *spatial), value.axis, value.outer)]


def pool(call: NodeCall) -> list[Value]:
    """MaxPool, AveragePool, LpPool. The second output of MaxPool counts across all samples and is not followed."""
    dims, value = _picture(call)
    kernel = call.numbers("kernel_shape")
    if not kernel:
        raise call.refuse("has no attribute 'kernel_shape'")
    return [Value((dims[0], dims[1], *window(call, dims, list(kernel))), value.axis, value.outer)]


def global_pool(call: NodeCall) -> list[Value]:
    """All spatial axes become 1."""
    dims, value = _picture(call)
    return [Value((dims[0], dims[1], *[1] * (len(dims) - 2)), value.axis, value.outer)]


def batch_normalization(call: NodeCall) -> list[Value]:
    """In inference mode: with the given statistics."""
    value = call.value(0)
    dims = call.shape_of(value)
    trains = call.number("training_mode", 0) if call.opset >= 14 else len([o for o in call.node.outputs if o]) > 1
    if trains or (call.opset < 9 and call.number("spatial", 1) != 1):
        raise call.refuse("takes its statistics from the whole batch (training mode)")
    call.fixed_from(1)
    if value.axis == 1:
        raise call.refuse("has the samples along its channels")
    return [Value(dims, value.axis, value.outer)]


def by_sample(call: NodeCall) -> list[Value]:
    """InstanceNormalization, GroupNormalization, LRN: each element of the first axis separately."""
    dims, value = _picture(call)
    call.fixed_from(1)
    return [Value(dims, value.axis, value.outer)]
