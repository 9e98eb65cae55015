"""The origin of a loaded model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..adapter.contract import Model, ModelSource

if TYPE_CHECKING:
    from ..files.compatibility import Compatibility
    from ..files.pinned import Pinned


@dataclass(frozen=True, slots=True)
class Provenance:
    """What an executor knows about its model besides the model itself."""

    source: ModelSource = field(default_factory=lambda: ModelSource(data=b""))
    """What the compiled model was loaded from."""
    held: Pinned | None = None
    """The open file that it was loaded from. The executor closes it."""
    device: str = ""
    """Its name, by which sessions share their use of cores."""
    load_again: Callable[[], Model] | None = None
    """Loads it in a forked child."""
    compatibility: Compatibility | None = None
    """The verdict on the compiled model; None if nothing is known about it."""
    onnx: str | bytes | None = None
    """The ONNX for calls whose shapes were not compiled, if the options say so."""
    cpu_session: Callable[..., Any] | None = None
    """Creates its session."""
