"""Shared by the tests of the lite2 adapter: a board with the vendor's package, real or a stand-in, and a virtual NPU.

``RKNNLITE_UNDER_TEST=real`` uses the installed rknn-toolkit-lite2 and the board's own files, which ``tests/aarch64``
sets up. Otherwise the package is ``fake_rknnlite``, and the board a temporary folder.
"""

import gc
import importlib
import os
import sys
from pathlib import Path

import numpy as np

from ort_rknn._planning import discovery
from ort_rknn.adapter import CallForm, LoadSettings, ModelSource, PortForm, Query
from ort_rknn_lite2 import Lite2Adapter
from ort_rknn_virtual._abi import TICKET, open_library
from ort_rknn_virtual._compute import TwinCompute
from ort_rknn_virtual.control import VirtualNpu

MODELS = Path(__file__).parents[1] / "models"
REAL = os.environ.get("RKNNLITE_UNDER_TEST") == "real"
IMPORT = "from support import fake_rknnlite\nfake_rknnlite.change_logging()\nRKNNLite = fake_rknnlite.RKNNLite\n"


class Board:
    """A board, its adapter, and the controls of its NPU."""

    def __init__(self, folder, monkeypatch):
        if REAL:
            self.root = Path("/")
            library = self.root / "usr/lib/librknnrt.so"
        else:
            from ort_rknn_virtual import _build

            library = _build.library("rk3588")
            self.root = folder / "board"
            write_board(self.root)
            (self.root / "usr/lib/librknnrt.so").symlink_to(library)
            write_package(folder / "site")
            monkeypatch.syspath_prepend(str(folder / "site"))
            self.fake = importlib.import_module("support.fake_rknnlite")
            monkeypatch.setattr(self.fake, "LIBRARY", str(library))
        self.npu = VirtualNpu("rk3588", library=library)
        self.npu.reset()
        self.adapter = Lite2Adapter(self.root)
        for name in [name for name in sys.modules if name.partition(".")[0] == "rknnlite" and not REAL]:
            monkeypatch.delitem(sys.modules, name)

    def use_for_sessions(self, monkeypatch):
        """Make the adapters of sessions use this board."""
        for name in ("lite2", "librknnrt"):
            monkeypatch.setattr(discovery.adapters()[name], "_root", self.root)

    def find(self, **query):
        return self.adapter.find(Query(environ={}, **query))

    def load(self, name="conv_f16", *, data=False, **settings):
        (device,) = self.find().devices
        path = MODELS / f"{name}.rk3588.rknn"
        source = ModelSource(data=path.read_bytes()) if data else ModelSource(path=str(path))
        return self.adapter.load(device, source, LoadSettings(**settings))

    def runs(self):
        return [event for event in self.npu.events() if event.kind == "run"]

    def compute(self, onnx):
        """From now on open contexts compute with an ONNX model. Close it after them."""
        compute = TwinCompute(str(onnx))
        library = open_library(str(self.npu.library))
        closed = {event.context for event in self.npu.events() if event.kind == "destroy"}
        for event in self.npu.events():
            if event.kind == "init" and event.code == 0 and event.context not in closed:
                assert library.rknn_virtual_set_compute(event.context, compute.callback, TICKET) == 0
        return compute

    def assert_all_closed(self):
        gc.collect()
        self.npu.clear_faults()
        counters = self.npu.counters()
        assert (counters.contexts, counters.models, counters.misuses) == (0, 0, 0), counters
        self.npu.reset()


def write_board(root):
    for folder in ("usr/lib", "proc/device-tree", "dev/dri"):
        (root / folder).mkdir(parents=True)
    (root / "proc/device-tree/compatible").write_text("radxa,rock-5b\0rockchip,rk3588\0")
    (root / "dev/dri/renderD129").touch()


def write_package(site):
    (site / "rknnlite/api").mkdir(parents=True)
    (site / "rknnlite/__init__.py").touch()
    (site / "rknnlite/api/__init__.py").write_text(IMPORT)


def random(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def port(array, layout=None, **more):
    layout = layout or ("NCHW" if array.ndim == 4 else "UNDEFINED")
    return PortForm(array.dtype.name, layout, array.shape, array.nbytes, **more)


def run(context, inputs, outputs, shape_set=None, layout=None, **more):
    form = CallForm(
        tuple(port(a, layout if a.ndim == 4 else None, **more) for a in inputs), tuple(map(port, outputs)), shape_set
    )
    context.run(form, [a.ctypes.data for a in inputs], [a.ctypes.data for a in outputs])
    return outputs
