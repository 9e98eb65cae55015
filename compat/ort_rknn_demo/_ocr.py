"""Part one: RapidOCR, unmodified, reads an image through our session."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ort_rknn._session.session import InferenceSession

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image

    from ort_rknn_demo import Outcome

_INSTALL = "pip install 'ort-rknn[demo]'"
_TITLE = "CORNER BAKERY"
_LINES = (
    "Open daily 7:30 - 18:00",
    "Sourdough loaf 4.80",
    "Cinnamon roll 2.95",
    "Espresso 2.40",
    "Thank you, see you soon!",
)


class Missing(Exception):
    """A requirement of part one is not installed; the message says what to do."""


def show(save: str | None) -> Outcome:
    """Draw, read, compare, and report which provider ran which model and for how long."""
    print("Part one: RapidOCR, an unmodified program, reads a picture through our session")
    try:
        picture = draw()
        if save is not None:
            _write(picture, save)
        engine_module, make_reader = _load_rapidocr()
    except Missing as missing:
        print(f"  Left out: {missing}")
        return "left out"
    except OSError as error:
        print(f"  The picture cannot be written: {error}")
        return "failed"
    import numpy as np

    pixels = np.asarray(picture)[:, :, ::-1]  # blue first, as OpenCV has them
    with our_session_in(engine_module) as sessions:
        reader = make_reader()
    found, _ = reader(pixels)  # at the first call onnxruntime creates its plans and buffers
    for session in sessions:
        session.runs, session.seconds = 0, 0.0
    began = time.perf_counter()
    found, _ = reader(pixels)
    took = time.perf_counter() - began
    read = [str(text) for _, text, _ in found or ()]
    right = _compare(read)
    _print_report(sessions, took)
    return "fine" if right else "failed"


# The picture --------------------------------------------------------------------------------------------------


def draw() -> Image:
    """A shop sign of 760 x 480 pixels, in the font that Pillow includes. Raises Missing."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise Missing(f"Pillow does not load ({error}). {_INSTALL}") from None
    try:
        large, normal = ImageFont.load_default(52), ImageFont.load_default(34)
    except (TypeError, ImportError):  # older ones take no size, or were built without FreeType
        raise Missing(
            "Pillow's own font comes in sizes from Pillow 10.1 on, with FreeType: pip install -U pillow"
        ) from None
    image = Image.new("RGB", (760, 480), "#f5efe0")
    pen = ImageDraw.Draw(image)
    pen.rectangle((8, 8, 751, 471), outline="#7a3b1d", width=4)
    pen.text((44, 32), _TITLE, fill="#7a3b1d", font=large)
    for row, line in enumerate(_LINES):
        pen.text((44, 124 + 68 * row), line, fill="#222222", font=normal)
    return image


def _write(picture: Image, path: str) -> None:
    try:
        picture.save(path)
    except ValueError as error:  # an unknown file extension
        raise OSError(f"{path}: {error}") from None
    print(f"  The picture is in {os.path.abspath(path)}")


def _compare(read: list[str]) -> bool:
    """Print what was drawn and read, side by side; spaces are ignored, because RapidOCR's alphabet hardly has them."""
    drawn = (_TITLE, *_LINES)
    print(f"\n  {'drawn':<28}read")
    known = {text.replace(" ", ""): text for text in read}
    right = 0
    for line in drawn:
        answer = known.pop(line.replace(" ", ""), None)
        right += answer is not None
        print(f"  {line:<28}{answer if answer is not None else '(not read like this)'}")
    for text in known.values():
        print(f"  {'':<28}{text}")
    print(f"\n  {right} of {len(drawn)} lines were read as they were drawn (but for spaces).")
    return right == len(drawn)


# RapidOCR on our session --------------------------------------------------------------------------------------


class TimedSession(InferenceSession):
    """Our session, which measures the time spent in ``run``."""

    runs = 0
    seconds = 0.0

    def run(self, *given: Any, **named: Any) -> Any:
        """As onnxruntime's."""
        began = time.perf_counter()
        try:
            return super().run(*given, **named)
        finally:
            self.seconds += time.perf_counter() - began
            self.runs += 1


@contextmanager
def our_session_in(module: ModuleType) -> Iterator[list[TimedSession]]:
    """For the duration of the block, ``InferenceSession`` in ``module`` (which imported it from onnxruntime) is ours.

    This is equivalent to changing the program's import to ``from ort_rknn import InferenceSession``; nothing else of
    the program is changed. Yields the list of sessions created.
    """
    made: list[TimedSession] = []

    def make(*given: Any, **named: Any) -> TimedSession:
        session = TimedSession(*given, **named)
        made.append(session)
        return session

    theirs = module.InferenceSession
    module.InferenceSession = make  # type: ignore[attr-defined]
    try:
        yield made
    finally:
        module.InferenceSession = theirs  # type: ignore[attr-defined]


def _load_rapidocr() -> tuple[ModuleType, Any]:
    """The RapidOCR module that creates sessions, and its reader class. Raises Missing."""
    try:
        from rapidocr_onnxruntime import RapidOCR
        from rapidocr_onnxruntime.utils import infer_engine
    except ImportError as error:
        raise Missing(_why_not(error)) from None
    return infer_engine, RapidOCR


def _why_not(error: ImportError) -> str:
    text = str(error)
    if error.name in ("rapidocr_onnxruntime", "rapidocr_onnxruntime.utils"):
        if sys.version_info >= (3, 13):
            return "rapidocr-onnxruntime 1.4.4 is made for Python below 3.13; use an environment with Python 3.12"
        return f"rapidocr-onnxruntime is not installed. {_INSTALL}"
    if ".so" in text and "cannot open shared object file" in text:
        # RapidOCR depends on opencv-python, which needs desktop libraries, as seen with 5.0.0.93.
        library = text.partition(":")[0]
        return (
            f"OpenCV does not load, because this machine has no {library}. RapidOCR brings in the OpenCV for desktops; "
            "replace it with the one for machines without: pip install --no-deps --force-reinstall "
            "opencv-python-headless. Or install the libraries: apt-get install libgl1 libglib2.0-0"
        )
    return f"RapidOCR does not load ({text}). {_INSTALL}"


def _print_report(sessions: list[TimedSession], took: float) -> None:
    print(f"\n  {'model':<40}{'provider':<28}{'runs':>5}{'ms':>9}")
    for session in sessions:
        name = os.path.basename(str(session._model_path))
        print(f"  {name:<40}{session.get_providers()[0]:<28}{session.runs:>5}{session.seconds * 1000:>9.1f}")
    models = sum(session.seconds for session in sessions)
    print(f"  {'the models together':<73}{models * 1000:>9.1f}")
    print(f"  {'reading the picture, all in all':<73}{took * 1000:>9.1f}")
    because: dict[str, None] = {}
    for session in sessions:
        for line in session.explain().splitlines():
            if line.startswith(("fell back:", "because:")):
                because[line.partition(":")[2].strip()] = None
                break
    for reason in because:
        print(f"  Why there: {reason.rstrip('.')}.")
    on_cpu = any(session.get_providers()[0] == "CPUExecutionProvider" for session in sessions)
    if on_cpu and os.environ.get("ORT_RKNN_POLICY", "") not in ("prefer", "only"):
        print("  RapidOCR itself asks for the CPU. Where there is an NPU, and compiled models beside RapidOCR's, the")
        print("  environment variable ORT_RKNN_POLICY=prefer puts the NPU first anyway.")
