"""An actor whose virtual NPU takes a given time per run."""

from ort_rknn_ray import NpuModel

MILLISECONDS = 20


class Timed(NpuModel):
    def __init__(self, *args, **kwargs):
        from ort_rknn_virtual.control import virtual_npu

        virtual_npu("rk3588").run_time_us = MILLISECONDS * 1000
        super().__init__(*args, **kwargs)


class Hanging(NpuModel):
    """The first of them that is asked never answers a call."""

    async def run(self, feed, output_names=None):
        import asyncio
        import os

        mark = os.path.join(os.environ["TEST_MARKS"], "hangs")
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            self.hangs = True
        except FileExistsError:
            pass
        if getattr(self, "hangs", False):
            await asyncio.sleep(3600)
        return await super().run(feed, output_names)
