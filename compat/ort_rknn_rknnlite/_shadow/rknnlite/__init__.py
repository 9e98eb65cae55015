"""``import rknnlite`` in a process whose parent has the face: puts the face in this module's place.

Its folder is on ``PYTHONPATH`` and ``sys.path`` by then (see :func:`ort_rknn_rknnlite.offer`).
"""

import os
import sys

del sys.modules[__name__]

try:
    import ort_rknn_rknnlite
except ModuleNotFoundError:  # another interpreter, which has the vendor's package perhaps
    _here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [path for path in sys.path if path != _here]
    import rknnlite  # type: ignore[import-not-found]  # noqa: F401
else:
    ort_rknn_rknnlite.install()
