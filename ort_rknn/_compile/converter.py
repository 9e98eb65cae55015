"""Runs the vendor's toolkit in a process of its own, with JSON requests, and trusts a result only if it can be read.

One :class:`Converter` is one process and one scratch folder. The toolkit leaves files in its working directory, prints
to stdout and stderr, and returns 0 for models that no board can run. So it works in the scratch folder and writes to a
log, and its result is read back before it counts.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from ..files import RknnFile, RknnFileError, read_rknn
from .layers import BuildLog, LayerError, read_build_log, read_layer_errors
from .toolkit import Toolkit, clean_environment

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WORKER = Path(__file__).with_name("worker.py")
#: Timeout for one request in seconds; a hybrid quantization of a large model takes minutes.
_SECONDS = 3600.0
#: The maximum number of characters shown of an exception's message.
_LONGEST = 300


class ConversionError(Exception):
    """The toolkit refused, or produced something that no board can run. The message says which, and what to do.

    ``step``: the toolkit's function that refused ("" if none did); ``operators``: (name, type) of the operators at
    fault, if known; ``log``: path of the toolkit's own output; ``died``: the toolkit's process ended.
    """

    def __init__(
        self,
        text: str,
        *,
        step: str = "",
        operators: Sequence[tuple[str, str]] = (),
        log: str = "",
        died: bool = False,
    ) -> None:
        super().__init__(text)
        self.died = died
        self.step = step
        self.operators = tuple(operators)
        self.log = log


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """The settings of one build. Shapes are in the ONNX's order (NCHW)."""

    model: str
    """Path of the ONNX."""
    target: str
    """"rk3588" ..."""
    inputs: Mapping[str, tuple[int, ...]] | None = None
    """Shape by input name; None: the ONNX's own. Names may be those of inner tensors: the graph is cut there."""
    outputs: tuple[str, ...] | None = None
    """Names of the outputs; None: the ONNX's own. Names may be those of inner tensors."""
    shape_sets: tuple[tuple[tuple[int, ...], ...], ...] = ()
    """For a dynamic model: per set one shape per input."""
    mean: Sequence[Sequence[float]] | None = None
    """Per input, per channel: subtracted from the runtime's input; None: nothing."""
    std: Sequence[Sequence[float]] | None = None
    dataset: str | None = None
    """Path of the calibration list (a line per sample, a ``.npy`` per input) for int8. None: float16."""
    batch: int | None = None
    """Samples per run, if the ONNX has one."""
    custom_string: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    """More arguments for the toolkit's ``config``, unchanged: quantized_algorithm, op_target ..."""
    build: Mapping[str, Any] = field(default_factory=dict)
    """More arguments for the toolkit's ``build``, unchanged: auto_hybrid ..."""

    def request(self, out: str) -> dict[str, Any]:
        """The worker's request. The toolkit silently ignores unknown keywords of ``config``, so only known ones are
        sent."""
        config: dict[str, Any] = {"target_platform": self.target, **self.config}
        if self.mean is not None:
            config["mean_values"] = [list(m) for m in self.mean]
        if self.std is not None:
            config["std_values"] = [list(s) for s in self.std]
        if self.shape_sets:
            config["dynamic_input"] = [[list(shape) for shape in group] for group in self.shape_sets]
        if self.custom_string:
            config["custom_string"] = self.custom_string
        load: dict[str, Any] = {}
        if self.inputs is not None:
            load["inputs"] = list(self.inputs)
            load["input_size_list"] = [list(shape) for shape in self.inputs.values()]
        if self.outputs is not None:
            load["outputs"] = list(self.outputs)
        build: dict[str, Any] = {"do_quantization": self.dataset is not None, **self.build}
        if self.dataset is not None:
            build["dataset"] = self.dataset
        if self.batch is not None:
            build["rknn_batch_size"] = self.batch
        model = os.path.abspath(self.model)  # the toolkit works in another folder
        return {"do": "build", "model": model, "out": out, "config": config, "load": load, "build": build}


@dataclass(frozen=True, slots=True)
class Built:
    """A compiled model that was read back."""

    path: str
    """In the converter's scratch folder, which is deleted with the converter."""
    file: RknnFile
    log: BuildLog


class Converter:
    """A toolkit process. Not thread-safe. Must be closed; a context manager.

    ``log``: the file to which the toolkit's output is appended. Raises ConversionError if the interpreter cannot be
    started.
    """

    def __init__(self, toolkit: Toolkit, log: str | os.PathLike[str]) -> None:
        self.toolkit = toolkit
        self.log = os.path.abspath(os.fspath(log))
        self._builds = 0
        self.last: BuildSpec | None = None
        """The last build, which is the one that the simulator runs."""
        with ExitStack() as opened:
            self.folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="ort_rknn-convert-"))
            self._process = self._start()
            self._answers = True
            opened.callback(self._end)
            self._opened = opened.pop_all()

    def _start(self) -> subprocess.Popen[str]:
        try:
            return subprocess.Popen(  # noqa: S603  # the user's own interpreter
                [self.toolkit.python, "-I", "-W", "ignore", os.fspath(_WORKER), self.log],
                cwd=self.folder,
                env={**clean_environment(), "TMPDIR": self.folder},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # handle Ctrl-C ourselves: close() ends the process
            )
        except OSError as error:
            raise ConversionError(f"the toolkit's interpreter {self.toolkit.python} cannot be run: {error}") from error

    def build(self, spec: BuildSpec) -> Built:
        """Convert. Raises ConversionError if the toolkit refuses, produces nothing, produces something unreadable, or
        accepts operators that no runtime can run. A process that an earlier request ended is started again."""
        if not self._answers:
            self._end()
            self._process = self._start()
            self._answers = True
        self._builds += 1
        self.last = None
        out = os.path.join(self.folder, f"{self._builds}.rknn")
        before = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        name = os.path.basename(spec.model)
        answer = self._ask(spec.request(out), f"{name}: ")
        log = self._log_since(before)
        if not answer["ok"]:
            raise self._refused(name, answer, log)
        if log.no_lowering:
            listed = ", ".join(f"{kind} {node!r}" for node, kind in log.no_lowering)
            raise ConversionError(
                f"{name}: the toolkit accepted operators that no board's runtime has: {listed}",
                operators=log.no_lowering,
                log=self.log,
            )
        try:
            file = read_rknn(out)
        except (RknnFileError, OSError) as error:
            raise ConversionError(
                f"{name}: the toolkit reported success, but made no model: {error}", log=self.log
            ) from error
        self.last = spec
        return Built(out, file, log)

    def simulate(self, feeds: Sequence[NDArray[Any]], layouts: Sequence[str]) -> list[NDArray[np.generic]]:
        """Run the last build on the toolkit's simulator. ``layouts``: "nchw" or "nhwc" per feed.

        Raises ConversionError if the simulator refuses.
        """
        import numpy as np

        # 2.5.0 says "Unsupport inputs[0].dtype: float64"; the compiled model takes float16.
        feeds = [array.astype(np.float32) if array.dtype == np.float64 else array for array in feeds]
        source, out = os.path.join(self.folder, "feeds.npz"), os.path.join(self.folder, "outputs.npz")
        np.savez(source, **{str(i): array for i, array in enumerate(feeds)})  # type: ignore[arg-type]
        answer = self._ask({"do": "simulate", "feeds": source, "out": out, "layouts": list(layouts)})
        if not answer["ok"]:
            raise ConversionError(
                f"the toolkit's simulator: {_last_words(answer['error'])}", step=answer["step"], log=self.log
            )
        with np.load(out, allow_pickle=False) as file:
            return [file[str(i)] for i in range(len(file.files))]

    def layer_errors(self, feeds: Sequence[NDArray[Any]]) -> tuple[LayerError, ...]:
        """The difference of each layer of the last build from the ONNX's, on the simulator, for one sample.

        Raises ConversionError if the toolkit refuses.
        """
        import numpy as np

        folder = tempfile.mkdtemp(prefix="layers-", dir=self.folder)
        paths = [os.path.join(folder, f"{number}.npy") for number in range(len(feeds))]
        for place, feed in zip(paths, feeds):
            np.save(place, feed, allow_pickle=False)
        answer = self._ask({"do": "layers", "feeds": paths, "out": os.path.join(folder, "out")})
        if not answer["ok"]:
            raise ConversionError(
                f"the toolkit's layers: {_last_words(answer['error'])}", step=answer["step"], log=self.log
            )
        try:
            text = Path(folder, "out", "error_analysis.txt").read_text(errors="replace")
        except OSError as error:
            raise ConversionError(f"the toolkit's layers: it left no table: {error}", log=self.log) from error
        return read_layer_errors(text)

    def close(self) -> None:
        """End the process and remove the scratch folder. Idempotent."""
        self._opened.close()

    def __enter__(self) -> Converter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Inner ------------------------------------------------------------------------------------------------------

    def _ask(self, request: Mapping[str, Any], about: str = "") -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._answers = False
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = _read_line(self._process.stdout, _SECONDS)
        except OSError:
            line = ""
        if not line:
            try:
                code: int | None = self._process.wait(5)  # its pipe closed: it is about to end
            except subprocess.TimeoutExpired:
                code = None
            how = f"with exit code {code}" if code is not None and code >= 0 else _died(code)
            said = f"{about}the toolkit's process ended {how}"
            raise ConversionError(f"{said}. Its whole output: {self.log}", log=self.log, died=True)
        self._answers = True
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _log_since(self, start: int) -> BuildLog:
        try:
            with open(self.log, "rb") as file:
                file.seek(start)
                return read_build_log(file.read().decode("utf-8", "replace"))
        except OSError:
            return BuildLog((), (), ())

    def _refused(self, name: str, answer: Mapping[str, Any], log: BuildLog) -> ConversionError:
        said = "; ".join(log.problems[:4]) or _last_words(answer["error"])
        step = f" in {answer['step']}" if answer["step"] else ""
        return ConversionError(
            f"{name}: the toolkit refused it{step}: {said}. Its whole output: {self.log}",
            step=answer["step"],
            log=self.log,
        )

    def _end(self) -> None:
        process = self._process
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass  # the unwritten data is no longer needed
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            # Including its children: the toolkit starts some.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


def _read_line(stream: IO[str], seconds: float) -> str:
    import select

    if not select.select([stream], [], [], seconds)[0]:
        raise ConversionError(f"the toolkit has not answered for {seconds:.0f} seconds; it was ended")
    return stream.readline()


def _last_words(error: str) -> str:
    """The message of an exception, without the tracebacks that the toolkit puts into it."""
    head, _, trace = error.partition("Traceback (most recent call last)")
    raised: list[str] = re.findall(r"^(?:\w+\.[\w.]+|\w*(?:Error|Exception)): .+$", trace, re.MULTILINE)
    said = raised[-1].strip() if raised else head
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."


def _died(code: int | None) -> str:
    if code is None:
        return "without an exit code"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"by signal {name}{hint}"
