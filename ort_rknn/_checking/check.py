"""``ort_rknn.check``: compares the compiled model with the ONNX on the CPU, and says whose numbers were compared."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .saved import Run, save_runs, saved_runs

if TYPE_CHECKING:
    from .._compile.accuracy import OutputAccuracy
    from .._compile.calibration import Data, Fit
    from .._compile.layers import LayerError
    from .._compile.record import BuildRecord

Numbers = Literal["npu", "simulator", "virtual"]


class NothingCompared(Exception):
    """Nothing compiled could run. The message says why."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a comparison."""

    numbers: Numbers
    """Whose numbers were compared with the ONNX's: the NPU's, the vendor's simulator's, or the virtual NPU's. The
    virtual NPU's are the ONNX's own, so only names, shapes and dtypes are checked."""
    note: str
    """The device, or what the simulator ran."""
    accuracy: float
    """The bound."""
    outputs: tuple[OutputAccuracy, ...]
    layers: tuple[LayerError, ...] = ()
    """If requested: every layer on the vendor's simulator, in graph order."""
    random: bool = False
    """The feeds were random values, which may be far from real ones: normally distributed floats, integers 0 and 1."""

    unused_record: str = ""
    """Where it is not within the bound: why the record of the conversion beside the ONNX was not used, if there is one.
    Samples may have been fed without the mean and std of the conversion then."""
    int8: bool = False
    """In a session: tensors that enter or leave the NPU are int8. Even a virtual NPU's values are rounded there."""

    @property
    def within(self) -> bool:
        """Whether every output is within the bound."""
        return all(one.problem(self.accuracy) is None for one in self.outputs)

    @property
    def first_bad_layer(self) -> LayerError | None:
        """The first layer whose cosine is below the bound."""
        return next((layer for layer in self.layers if layer.entire < self.accuracy), None)

    @property
    def verdict(self) -> str:
        """The result in words. Never "accurate" for a virtual NPU."""
        if self.numbers == "virtual" and not self.within and self.int8:
            return (
                "undecided: int8 rounds the tensors that enter and leave the NPU, and the outputs differ by more than "
                "the bound. The vendor's simulator can tell: --simulator SOC"
            )
        if self.numbers == "virtual":
            return "plumbing only: names, shapes and dtypes fit" if self.within else "the plumbing is at fault"
        return "accurate" if self.within else "NOT accurate"


@dataclass(frozen=True, slots=True)
class Feeds:
    """The feeds of both sides."""

    data: Data | None = None
    shapes: Sequence[Mapping[str, tuple[int, ...]]] = ()
    mean: tuple[tuple[float, ...], ...] = ()
    std: tuple[tuple[float, ...], ...] = ()
    fit: Fit | None = None


def check(
    model: str | os.PathLike[str],
    *,
    data: Data | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    mean: Sequence[float] | Sequence[Sequence[float]] = (),
    std: Sequence[float] | Sequence[Sequence[float]] = (),
    fit: Fit | None = None,
    accuracy: float = 0.99,
    simulator: str | None = None,
    against: str | os.PathLike[str] | None = None,
    provider_options: Mapping[str, Any] | None = None,
    toolkit: str | None = None,
    layers: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Checked:
    """Compare the compiled model of the ONNX at ``model`` with the ONNX on the CPU, using the same feeds.

    ``data``: samples, as for :func:`ort_rknn.convert`; None: the calibration samples of an int8 model, else random
    ones. ``shapes``: of inputs with free axes. ``mean``, ``std``: per channel, for the ONNX's pixels; one for all
    inputs, or one each. ``fit``: how images are resized. If one of these four is omitted, it is as in the conversion,
    if its record lies beside the ONNX. ``accuracy``: the bound, a cosine between 0 and 1, which also determines the
    maximum error of bounded and mixed outputs. ``simulator``: a SoC; the vendor's simulator runs the model that
    ``convert`` made for it, rebuilt from its record with the interpreter ``toolkit``. Without it, a session with
    ``provider_options`` runs the model. ``layers``: with ``simulator``, also compare every layer. ``against``: a file
    written by ``ort-rknn check --save``, in place of the ONNX.

    Raises NothingCompared if nothing compiled can run, ValueError for options and samples that do not fit,
    ``ort_rknn.ToolkitError`` and ``ort_rknn.ConversionError`` with ``simulator``, OSError for a file that cannot be
    read.
    """
    if not 0 < accuracy < 1:
        raise ValueError(f"accuracy={accuracy:g}: expected a number between 0 and 1")
    from .._compile.spec import rows

    groups = () if not shapes else ({name: tuple(shape) for name, shape in shapes.items()},)
    feeds = Feeds(data, groups, rows(mean), rows(std), fit)
    path = os.path.abspath(os.fspath(model))
    if simulator is None and layers:
        raise ValueError("layers are compared on the vendor's simulator: give simulator too")
    if simulator is None:
        return in_session(path, feeds, accuracy, provider_options or {}, against)
    if against is not None:
        raise ValueError("simulator runs the ONNX itself: it does not go with against")
    return simulated(path, feeds, accuracy, simulator, toolkit, progress, layers=layers)


def simulated(
    path: str,
    feeds: Feeds,
    accuracy: float,
    soc: str,
    toolkit: str | None,
    progress: Callable[[str], None],
    *,
    layers: bool = False,
) -> Checked:
    """Compare on the vendor's simulator."""
    from .._compile.check import on_simulator
    from .._compile.record import read_record, record_path
    from .._compile.toolkit import find_toolkit
    from .._rknpu import soc_family

    target = soc_family(soc)
    record = read_record(record_path(os.path.dirname(path), Path(path).stem, target), path)
    if feeds.shapes or feeds.mean or feeds.std or feeds.fit:
        raise ValueError(
            "shapes, mean, std and fit are as they were in the conversion: leave them out with the simulator"
        )
    of = find_toolkit(toolkit)
    folder = os.path.dirname(path)
    # In a folder that is read-only, the log goes where temporary files go, and stays there.
    place = folder if os.access(folder, os.W_OK) else tempfile.mkdtemp(prefix="ort_rknn-check-")
    log = os.path.join(place, f"{Path(path).stem}.check.log")
    outputs, each = on_simulator(path, record, feeds.data, of, log, progress=progress, layers=layers)
    random = feeds.data is None and not record.samples
    sets = len(record.shape_sets)
    one_set = f", the first of {sets} shape sets" if sets > 1 and not random else ""
    return Checked("simulator", f"built again for {target}{one_set}", accuracy, tuple(outputs), each, random)


def in_session(
    path: str,
    feeds: Feeds,
    accuracy: float,
    options: Mapping[str, Any],
    against: str | os.PathLike[str] | None,
) -> Checked:
    """Compare in a session, on the NPU that it finds."""
    from .._compile.accuracy import OutputAccuracy
    from .._options import PROVIDER
    from .._session.session import InferenceSession

    session = InferenceSession(path, providers=[(PROVIDER, dict(options)), "CPUExecutionProvider"])
    state = session._npu
    plan = state.plan if state is not None else None
    if plan is None or plan.found is None or plan.where == "cpu" or state is None or not state.executors:
        why = str(plan.fallback if plan is not None else "ORT_RKNN_DISABLE=1").rstrip(".")
        raise NothingCompared(
            f"nothing that was compiled ran, so nothing was compared: {why}. The vendor's simulator needs no NPU: "
            "--simulator SOC"
        )
    device = plan.found.device
    found = [OutputAccuracy(output.name) for output in session.get_outputs()]
    if against is not None:
        runs = saved_runs(os.fspath(against), [one.name for one in found])
    else:
        feeds = as_recorded(path, feeds, device.soc)
        runs = fresh_runs(path, feeds)
    for feed, want in runs:
        for one, expected, got in zip(found, want, session.run(None, feed)):
            one.add(expected, got)
    random = feeds.data is None and against is None
    numbers: Numbers = "virtual" if device.virtual else "npu"
    int8 = bool(session.quantization)
    checked = Checked(numbers, device.name, accuracy, tuple(found), random=random, int8=int8)
    return (
        checked
        if checked.within or against is not None
        else replace(checked, unused_record=_unused_record(path, device.soc))
    )


def _unused_record(path: str, soc: str) -> str:
    from .._compile.record import RecordError, read_record, record_path

    place = record_path(os.path.dirname(path), Path(path).stem, soc)
    try:
        if place.exists():
            read_record(place, path)
    except RecordError as error:
        return str(error)
    return ""


def as_recorded(path: str, feeds: Feeds, soc: str) -> Feeds:
    """Complete ``feeds`` from the record of the conversion for ``soc``: free axes, normalization and resizing of
    images, and for an int8 model the samples, because random values lie outside its scales."""
    from .._compile.calibration import DataError
    from .._compile.record import RecordError, read_record, record_path

    try:
        record = read_record(record_path(os.path.dirname(path), Path(path).stem, soc), path)
    except RecordError:
        return feeds
    feeds = _filled(path, feeds, record)
    if feeds.data is not None or not record.samples:
        return feeds
    if record.data is None or not os.path.exists(record.data):
        raise DataError("it is int8, and what it was made with is not here: give samples with --data")
    return replace(feeds, data=record.data)


def as_recorded_for_all(path: str, feeds: Feeds) -> Feeds:
    """The same for the runs that ``save`` keeps, which may be meant for any board: what all conversions agree on.

    Raises DataError if they differ, and ``feeds`` does not say."""
    from .._compile.calibration import DataError
    from .._compile.record import RECORD_ENDING, RecordError, read_record

    filled = []
    stem = Path(path).stem
    for place in sorted(Path(path).parent.glob(f"{glob.escape(stem)}.*{RECORD_ENDING}")):
        try:
            filled.append(_filled(path, feeds, read_record(place, path)))
        except RecordError:
            continue
    if any(other != filled[0] for other in filled[1:]):
        raise DataError("it was converted in more than one way: give --shape, --mean, --std and --fit")
    return filled[0] if filled else feeds


def _filled(path: str, feeds: Feeds, record: BuildRecord) -> Feeds:
    from .._compile.shapes import ShapeError, compiled_shapes
    from ..files import read_onnx

    if not feeds.shapes:
        try:
            compiled_shapes(read_onnx(path), ())
        except ShapeError:  # free axes, which the conversion was told
            feeds = replace(feeds, shapes=record.shape_sets)
    if not (feeds.mean or feeds.std):
        feeds = replace(feeds, mean=record.mean, std=record.std)
    fit: Fit = "letterbox" if record.fit == "letterbox" else "stretch"
    return feeds if feeds.fit else replace(feeds, fit=fit)


def fresh_runs(path: str, feeds: Feeds) -> Iterator[Run]:
    """Feeds and the ONNX's outputs, one sample at a time: random ones of every set of shapes, or the data, which have
    the shapes of the first."""
    from .._compile.check import MOST, on_cpu
    from .._compile.measure import spread
    from .._compile.shapes import compiled_shapes
    from ..files import read_onnx

    sets = compiled_shapes(read_onnx(path), feeds.shapes).sets
    form = {"mean": feeds.mean, "std": feeds.std, "fit": feeds.fit or "stretch"}
    for shapes in sets if feeds.data is None else sets[:1]:
        with tempfile.TemporaryDirectory(prefix="ort_rknn-check-") as scratch:
            samples, reference = on_cpu(path, shapes, feeds.data, scratch, form)
            for index in spread(samples.count, MOST):
                feed = samples.feed(index)
                yield feed, reference.run(feed)


def save(path: str, feeds: Feeds, place: Path) -> int:
    """Save feeds and the ONNX's outputs to a file; returns the number of samples."""
    from ..files import read_onnx

    names = [value.name for value in read_onnx(path).outputs]
    return save_runs(place, names, fresh_runs(path, as_recorded_for_all(path, feeds)))
