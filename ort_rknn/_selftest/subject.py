"""What the self-test's checks use: a device, its models, and sessions that stay on it."""

from __future__ import annotations

import statistics
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime

from .._errors import FallbackWarning
from .._options import PROVIDER
from ..adapter.contract import CallForm, LoadSettings, Model, ModelSource, PortForm
from ..adapter.plugins import Found
from ..files import read_onnx
from ..files.wrapper import side_by_side

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

State = Literal["ok", "info", "failure", "left out"]
#: Compiled with rknn-toolkit2 2.5.0 from two of the test models: three convolutions in float16, and three shape sets.
MODELS = Path(__file__).parent / "models"
#: For float16 compared with float32.
_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class Line:
    """The result of one check."""

    check: str
    """Its name: the same in every release. ``docs/board.md`` lists the questions that it answers."""
    state: State
    """"info": a measurement, or this board's behavior if several are acceptable. "failure": the contract is violated.
    "left out": it cannot be checked on this device, ``seen`` says why."""
    seen: str


@dataclass(slots=True)
class Subject:
    """One device, through one adapter."""

    found: Found
    quick: bool
    """Shorter measurements."""
    feed: NDArray[np.float32] = field(init=False)
    wanted: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.feed = np.random.default_rng(3).standard_normal((1, 3, 32, 32), dtype=np.float32)
        cpu = onnxruntime.InferenceSession(self.onnx(), providers=["CPUExecutionProvider"])
        self.wanted = cpu.run(None, {"x": self.feed})[0]

    def onnx(self, name: str = "conv_f16") -> str:
        """Path of an ONNX."""
        return str(MODELS / f"{name}.onnx")

    def compiled(self, name: str = "conv_f16", soc: str = "") -> str | None:
        """Path of the model compiled for this device, or for another SoC; None if there is none."""
        path = MODELS / f"{name}.{soc or self.found.device.soc}.rknn"
        return str(path) if path.exists() else None

    def options(self, **options: Any) -> dict[str, Any]:
        """Provider options for this device."""
        device = self.found.device
        return {"device": device.name, "adapter": device.adapter, **options}

    @contextmanager
    def session(self, name: str = "conv_f16", **options: Any) -> Iterator[Any]:
        """A session that never falls back. Raises what a session raises."""
        given = self.options(rknn_model=self.compiled(name), **options)
        with self._never_on_cpu(self.onnx(name), given) as session:
            yield session

    @contextmanager
    def parts(self, count: int) -> Iterator[Any]:
        """A session of ``count`` parts on core 0, each the compiled model, and all fed the same. The virtual NPU has no
        ONNX for them and invents the numbers."""
        onnx, compiled = read_onnx(self.onnx()), self.compiled()
        assert compiled is not None
        content = side_by_side(
            model=onnx,
            fed=onnx.inputs[0],
            outputs=[replace(onnx.outputs[0], name=f"part{number}") for number in range(count)],
            source=PROVIDER,
            cache_context=Path(compiled).read_bytes(),
        )
        with self._never_on_cpu(content, self.options(schedule="0")) as session:
            yield session

    @contextmanager
    def _never_on_cpu(self, model: str | bytes, options: Mapping[str, Any]) -> Iterator[Any]:
        from .._session.session import InferenceSession

        with warnings.catch_warnings():
            warnings.simplefilter("error", FallbackWarning)
            session = InferenceSession(model, providers=[(PROVIDER, dict(options)), "CPUExecutionProvider"])
        with session:
            if PROVIDER not in session.get_providers():
                raise RuntimeError(f"the session runs on the CPU: {session.explain()}")
            yield session

    @contextmanager
    def model(self, path: str | None = None, **settings: Any) -> Iterator[Model]:
        """The model, or the one at ``path``, loaded directly through the adapter."""
        source = ModelSource(path=path or self.compiled())
        given = LoadSettings(**{"twin": self.onnx(), **settings})
        model = self.found.adapter.load(self.found.device, source, given)
        try:
            yield model
        finally:
            model.close()

    def run_bare(self, model: Model, mask: int) -> NDArray[np.float32]:
        """One run on a new context with ``mask``."""
        context = model.context(mask)
        try:
            out = np.zeros_like(self.wanted)
            context.run(self.form(), [self.feed.ctypes.data], [out.ctypes.data])
            return out
        finally:
            context.close()

    def form(self) -> CallForm:
        """float32 NCHW in and out."""
        ports = [PortForm("float32", "NCHW", array.shape, array.nbytes) for array in (self.feed, self.wanted)]
        return CallForm((ports[0],), (ports[1],))

    def wrong(self, got: NDArray[np.generic]) -> str:
        """The difference from the ONNX's numbers, if it is too large; else ""."""
        if got.shape != self.wanted.shape:
            return f"shape {list(got.shape)}, not {list(self.wanted.shape)}"
        apart = float(np.abs(got.astype(np.float32) - self.wanted).max() / np.abs(self.wanted).max())
        return "" if apart <= _TOLERANCE else f"{apart:.2g} of the largest value away from the ONNX's numbers"

    def median_ms(self, call: Callable[[], Any]) -> float:
        """The median time of a call, after some warm-up calls."""
        times = []
        for _ in range(3):
            call()
        for _ in range(10 if self.quick else 100):
            began = time.perf_counter()
            call()
            times.append((time.perf_counter() - began) * 1e3)
        return statistics.median(times)

    def rounds_ms(self, calls: Sequence[Callable[[], Any]]) -> NDArray[np.float64]:
        """The times of several calls, which alternate, so that disturbances of the machine affect all of them: a row
        per round, a column per call."""
        rounds = []
        for _ in range(3 + (20 if self.quick else 300)):
            ends = [time.perf_counter()]
            for call in calls:
                call()
                ends.append(time.perf_counter())
            rounds.append(ends)
        return np.diff(np.asarray(rounds[3:]), axis=1) * 1e3

    def run_ms(self, session: Any, feed: Mapping[str, Any] | None = None) -> float:
        """The median time of a session's run."""
        return self.median_ms(partial(session.run, None, {"x": self.feed} if feed is None else feed))

    def per_second(self, session: Any, callers: int) -> float:
        """Runs per second with this many callers."""
        seconds = 0.1 if self.quick else 1.0
        counts, errors = [0] * callers, list[BaseException]()
        end = time.perf_counter() + seconds

        def call(number: int) -> None:
            try:
                while time.perf_counter() < end:
                    session.run(None, {"x": self.feed})
                    counts[number] += 1
            except BaseException as error:  # raised again by the thread that asked
                errors.append(error)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return sum(counts) / seconds
