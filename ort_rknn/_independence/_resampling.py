"""Operators that change the number of pixels of an image: resizing, padding, rearranging."""

from __future__ import annotations

from ._call import NodeCall
from ._lengths import Length, over, times
from ._shapes import as_length
from ._values import Abstract, Value


def resize(call: NodeCall) -> list[Abstract]:
    """Resize, Upsample: along axes other than the samples'."""
    value = call.value(0)
    dims = call.shape_of(value)
    upsample = call.node.op_type == "Upsample"
    if call.text("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise call.refuse("crops the image while resizing it")
    if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refuse("keeps the aspect ratio")
    axes = [call.axis(axis, len(dims)) for axis in call.numbers("axes") or range(len(dims))]
    by_scale = 1 if upsample or call.opset < 11 else 2
    result = list(dims)
    if not upsample and call.has(3):
        sizes = call.entries(3)
        if len(sizes) != len(axes):
            raise call.refuse("has a different number of sizes than axes")
        for axis, size in zip(axes, sizes):
            if axis == value.axis and size != dims[axis]:
                raise call.refuse("resizes along the samples' axis")
            if axis != value.axis:
                result[axis] = as_length(call, size)
        return [Value(tuple(result), value.axis, value.outer)]
    if upsample and call.opset < 9:
        found = call.node.attributes.get("scales")
        scales: list[Length | float] = list(found.reals) if found is not None else []
    else:
        scales = list(call.scales(by_scale))
    if len(scales) != len(axes):
        raise call.refuse("has a different number of scales than axes")
    for axis, scale in zip(axes, scales):
        if scale == 1:
            continue
        if axis == value.axis:
            raise call.refuse("resizes along the samples' axis")
        whole = int(scale) if isinstance(scale, int | float) and scale == int(scale) else None
        length = times(dims[axis], whole) if whole else None
        result[axis] = length if length is not None else call.length()
    return [Value(tuple(result), value.axis, value.outer)]


def pad(call: NodeCall) -> list[Abstract]:
    """Pad along axes other than the samples'."""
    value = call.value(0)
    dims = call.shape_of(value)
    if call.opset < 11:
        pads: list[Length] = list(call.numbers("pads") or [])
    else:
        pads = call.entries(1)
        call.fixed(2)
    axes = [call.axis(axis, len(dims)) for axis in (call.integers(3) if call.has(3) else range(len(dims)))]
    count = len(axes)
    if len(pads) != 2 * count or len(set(axes)) < count:
        raise call.refuse("has pads that do not fit its axes")
    result = list(dims)
    for at, axis in enumerate(axes):
        before, after = pads[at], pads[at + count]
        if before == 0 and after == 0:
            continue
        if axis == value.axis:
            raise call.refuse("pads along the samples' axis")
        length = dims[axis]
        if isinstance(length, int) and isinstance(before, int) and isinstance(after, int):
            result[axis] = max(length + before + after, 0)
        else:
            result[axis] = call.length()
    return [Value(tuple(result), value.axis, value.outer)]


def depth_to_space(call: NodeCall) -> list[Abstract]:
    """DepthToSpace and SpaceToDepth, [N, C, H, W]."""
    value = call.value(0)
    dims = call.shape_of(value)
    if len(dims) != 4 or value.axis not in (None, 0):
        raise call.refuse("expects [N, C, H, W], with the samples along the first axis")
    block = call.number("blocksize", 0)
    shrinks = call.node.op_type == "DepthToSpace"
    channels = over(dims[1], block * block) if shrinks else times(dims[1], block * block)
    spatial = [times(dim, block) if shrinks else over(dim, block) for dim in dims[2:]]
    lengths = [length if length is not None else call.length() for length in (channels, *spatial)]
    return [Value((dims[0], *lengths), value.axis, value.outer)]


def grid_sample(call: NodeCall) -> list[Abstract]:
    """GridSample: images and grids of the same samples."""
    value, grid = call.value(0), call.value(1)
    dims, places = call.shape_of(value), call.shape_of(grid)
    if len(dims) < 3 or len(dims) != len(places):
        raise call.refuse("has inputs of different ranks")
    if value.axis is None and grid.axis is None:
        return [Value((dims[0], dims[1], *places[1:-1]))]
    if value.axis != 0 or grid.axis != 0 or dims[0] != places[0] or value.outer != grid.outer:
        raise call.refuse("does not have the samples along the first axis of both inputs")
    return [Value((dims[0], dims[1], *places[1:-1]), 0, value.outer)]
