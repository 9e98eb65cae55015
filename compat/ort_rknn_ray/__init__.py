"""Several boards with Ray: one actor per board, which owns the board's NPU with all its cores.

    ray start --address=head:6379 $(ort-rknn ray-resources)      # on each board

    from ort_rknn_ray import Boards
    with Boards("model.onnx") as boards:                         # anywhere in the cluster
        for (detections,) in boards.map(frames):
            ...

:class:`NpuModel` is the actor's class, :class:`Boards` distributes calls over all boards and retries those of a board
that dies, :class:`NpuBatches` is for Ray Data's ``map_batches``, :func:`deployment` creates a Ray Serve deployment. The
resource is named ``rknpu``, because "NPU" is another vendor's in Ray. Needs the extra ``ray``.
"""

from __future__ import annotations

from ._board import LABELS, RESOURCE, Board, this_board
from ._boards import Boards, CallFailed
from ._data import NpuBatches
from ._model import NpuModel
from ._serve import deployment
from ._store import StoredModel, put_model

__all__ = [
    "LABELS",
    "RESOURCE",
    "Board",
    "Boards",
    "CallFailed",
    "NpuBatches",
    "NpuModel",
    "StoredModel",
    "deployment",
    "put_model",
    "this_board",
]
