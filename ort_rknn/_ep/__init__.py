"""The execution provider: onnxruntime's C ABI, implemented in Python with ctypes. Internal, except for the names
exported here, which ``ort_rknn`` exports too.

``stub``: the library without code that onnxruntime opens; ``abi``: slots, structures and calls; ``provider``: the
callbacks; ``claims``: which nodes are taken; ``kernel``: a run; ``handoff``: how a session passes its executor;
``registration``: register and unregister.
"""

from .registration import get_ep_names, get_library_path, register, unregister

__all__ = ["get_ep_names", "get_library_path", "register", "unregister"]
