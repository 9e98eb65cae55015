"""What a context needs from its model."""

from __future__ import annotations

from typing import Protocol

from ort_rknn.adapter import LoadSettings, Shape, TensorInfo

from ._binding import Binding, Handle


class Owner(Protocol):
    """A loaded model, as its contexts see it."""

    binding: Binding
    settings: LoadSettings
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    shape_sets: tuple[tuple[Shape, ...], ...]

    def set_shapes(self, handle: Handle, shape_set: int) -> None:
        """Select one of a dynamic model's shape sets."""

    def another_handle(self, core_mask: int) -> Handle:
        """One more handle of the model on these cores."""

    def give_back(self, handle: Handle) -> None:
        """Destroy a handle, or keep it for the next context. Called once per handle."""
