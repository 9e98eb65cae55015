"""Actors whose virtual NPU takes a given time per run, hangs, fails, or is missing, and one that dies.

Ray's workers import them by name, which they cannot do with classes of a test file.
"""

import asyncio
import os
from pathlib import Path

import ort_rknn
from ort_rknn_ray import NpuBatches, NpuModel

MILLISECONDS = 20


class Timed(NpuModel):
    def __init__(self, *args, **kwargs):
        from ort_rknn_virtual.control import virtual_npu

        virtual_npu("rk3588").run_time_us = MILLISECONDS * 1000
        super().__init__(*args, **kwargs)


class Hanging(NpuModel):
    """The first one to be called never answers."""

    async def run(self, feed, output_names=None):
        mark = os.path.join(os.environ["TEST_MARKS"], "hangs")
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            self.hangs = True
        except FileExistsError:
            pass
        if getattr(self, "hangs", False):
            await asyncio.sleep(3600)
        return await super().run(feed, output_names)


class Gone(Timed):
    """The first one to be called has no device while the file "gone" exists, and reports each of its runs on the NPU
    and each error."""

    async def run(self, feed, output_names=None):
        from ort_rknn_virtual.control import virtual_npu

        marks = Path(os.environ["TEST_MARKS"])
        try:
            os.close(os.open(marks / "chosen", os.O_CREAT | os.O_EXCL))
            self.chosen, self.faulty = True, False
        except FileExistsError:
            pass
        if not getattr(self, "chosen", False):
            return await super().run(feed, output_names)
        npu, gone = virtual_npu("rk3588"), (marks / "gone").exists()
        if gone and not self.faulty:
            npu.fault("rknn_run", -3)
        if not gone and self.faulty:
            npu.clear_faults()
        self.faulty = gone
        try:
            result = await super().run(feed, output_names)
        except Exception:
            _told(marks / "errors")
            raise
        _told(marks / "runs")
        return result


def _told(path):
    with path.open("a") as file:
        file.write(".")


class OnCpu(NpuModel):
    """On a machine without an NPU."""

    def __init__(self, *args, **kwargs):
        os.environ.pop("ORT_RKNN_DEVICE", None)
        super().__init__(*args, **kwargs)


class Broken(NpuModel):
    """All its runs fail."""

    async def run(self, feed, output_names=None):
        raise ort_rknn.capi.onnxruntime_pybind11_state.RuntimeException("rknn_run failed")


class Dying(Timed):
    """Its process ends, once, while it runs the marked feed."""

    async def run(self, feed, output_names=None):
        feed = dict(feed)
        if not feed.pop("k"):
            mark = Path(os.environ["TEST_MARKS"]) / "died"
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
                os._exit(1)
            except FileExistsError:
                pass
        return await super().run(feed, output_names)


class SlowBatches(NpuBatches):
    """Records each batch, so that the test knows when it is in the middle."""

    def __init__(self, model):
        from ort_rknn_virtual.control import virtual_npu

        virtual_npu("rk3588").run_time_us = MILLISECONDS * 1000
        super().__init__(model)

    def __call__(self, batch):
        made = super().__call__(batch)
        _told(Path(os.environ["TEST_MARKS"]) / "batches")
        return made
