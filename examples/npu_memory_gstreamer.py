"""A GStreamer pipeline whose dma-bufs are read by the NPU.

    python examples/npu_memory_gstreamer.py model.onnx "v4l2src io-mode=dmabuf ! video/x-raw,format=RGB,..."

The pipeline must give RGB frames of the model's size. Buffers that are not dma-bufs, and planes whose rows have padding
that the NPU does not support, are copied; ``explain()`` counts the latter. Needs PyGObject and GStreamer with its
GstAllocators introspection. Not verified on a board.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import ort_rknn as ort


def array_of(buffer: Any, shape: tuple[int, ...], allocators: Any, gst: Any, video: Any) -> np.ndarray[Any, Any]:
    """The frame of a Gst.Buffer, without a copy if it is a dma-buf."""
    memory = buffer.peek_memory(0)
    meta = video.buffer_get_video_meta(buffer)
    _, height, width, channels = shape
    pitch = meta.stride[0] if meta is not None else width * channels
    if allocators.is_dmabuf_memory(memory):
        start = memory.offset + (meta.offset[0] if meta is not None else 0)
        strides = (height * pitch, pitch, channels, 1)
        return ort.from_dmabuf(allocators.dmabuf_memory_get_fd(memory), shape, np.uint8, start, strides)
    ok, mapped = buffer.map(gst.MapFlags.READ)
    assert ok
    try:
        rows = np.frombuffer(mapped.data, np.uint8)[: height * pitch].reshape(height, pitch)
        return rows[:, : width * channels].reshape(shape).copy()
    finally:
        buffer.unmap(mapped)


def main(model: str, pipeline: str) -> int:
    """Returns the number of frames."""
    try:
        import gi

        for name, version in (("Gst", "1.0"), ("GstApp", "1.0"), ("GstAllocators", "1.0"), ("GstVideo", "1.0")):
            gi.require_version(name, version)
        from gi.repository import Gst, GstAllocators, GstVideo
    except (ImportError, ValueError) as error:
        raise SystemExit(
            f"GStreamer for Python is not here ({error}): install PyGObject and GStreamer's typelibs"
        ) from None
    Gst.init(None)
    bin_ = Gst.parse_launch(f"{pipeline} ! appsink name=sink max-buffers=2 sync=false")
    sink = bin_.get_by_name("sink")
    options = ort.make_provider_options(layout="nhwc", input_dtype="uint8")
    done = 0
    with ort.InferenceSession(model, provider_options=options) as session:
        (image,) = session.get_inputs()
        (output, *_) = session.get_outputs()
        shape = tuple(image.shape)
        binding = session.io_binding()
        bin_.set_state(Gst.State.PLAYING)
        try:
            while (sample := sink.emit("pull-sample")) is not None:
                x = array_of(sample.get_buffer(), shape, GstAllocators, Gst, GstVideo)
                # The address, so that padded rows are not copied; holding the sample keeps the decoder from reusing the
                # frame.
                binding.bind_input(image.name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
                binding.bind_output(output.name)
                session.run_with_iobinding(binding)
                done += 1
        finally:
            bin_.set_state(Gst.State.NULL)
        print(session.explain())
    return done


if __name__ == "__main__":
    print(main(*sys.argv[1:]), "frames")
