"""The execution provider: onnxruntime's C ABI served from Python by ctypes. Internal but for the names exported here,
which ``ort_rknn`` itself exports too.

``_stub`` the library without code that onnxruntime opens; ``_abi`` slots, structures and calls; ``_provider`` the
callbacks; ``_claims`` which nodes are taken; ``_kernel`` a run; ``_handoff`` how a session passes its executor;
``_registration`` register and unregister.
"""

from .registration import get_ep_names, get_library_path, register, unregister

__all__ = ["get_ep_names", "get_library_path", "register", "unregister"]
