"""``import rknnlite`` in a process whose parent uses this API: replaces this module by ours.

Its folder is already on ``PYTHONPATH`` and ``sys.path`` (see :func:`ort_rknn_rknnlite.offer`).
"""

import os
import sys

del sys.modules[__name__]

try:
    import ort_rknn_rknnlite
except ModuleNotFoundError:  # another interpreter, which may have the vendor's package
    _here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [path for path in sys.path if path != _here]
    import rknnlite  # type: ignore[import-not-found]  # noqa: F401
else:
    ort_rknn_rknnlite.install()
