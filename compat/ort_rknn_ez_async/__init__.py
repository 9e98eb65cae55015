"""The API of EZ RKNN Async (``ztu_somemodelruntime_ez_rknn_async`` 0.11), implemented with ort_rknn's executor.

    import ort_rknn_ez_async as ort        # instead of: import ztu_somemodelruntime_ez_rknn_async as ort

    session = ort.InferenceSession("model.rknn", provider_options=ort.make_provider_options(schedule=[0, 1, 2]))

With this one changed import, a program written for that library runs on a board, on the virtual NPU
(``ORT_RKNN_DEVICE=virtual:rk3588``), and, with a FallbackWarning, on the CPU with the ONNX twin beside the ``.rknn``.
Names, options, defaults and results are that library's; ``docs/multicore.md`` explains the options. Written from its
behavior, without its code.

Intentional differences:

* ``run`` executes on the caller's own thread while a context is free. It works inside a callback, and a slow callback
  delays no ``run``.
* Accepts what that library rejects unnecessarily: read-only and unpickled arrays, float64 and uint64, lists,
  any Mapping, bytearray and memoryview models, provider lists with ``CPUExecutionProvider``, every compiled
  shape of a dynamic model, ONNX models.
* ``NodeArg.type`` is what ``run`` accepts and returns (``get_native_inputs()`` has the compiled types),
  ``NodeArg.layout`` is the layout of ``NodeArg.shape``, and "any" means NHWC everywhere.
* Unknown options, keywords and run options are errors.
* Values of device "rknpu2" are in memory shared with the NPU, if the device supports it; they may be used with any
  context, and with any session that stores the tensor in the same way. RKNPU3 is refused.
* New: ``flush()`` for the pipeline, ``close()`` and ``with``, ``schedule="auto"``, and the provider options ``device``,
  ``adapter``, ``runtime_library``, ``onnx_model``, ``rknn_model``, ``run_timeout_ms`` and ``retries`` of ort_rknn.
"""

from ort_rknn import package_version as __version__

from ._binding import IOBinding, SessionIOBinding
from ._nodes import ModelMetadata, NodeArg
from ._session import InferenceSession
from ._values import OrtValue
from .options import (
    RknnProviderOptions,
    Rknpu2ProviderOptions,
    Rknpu3ProviderOptions,
    make_provider_options,
    make_rknpu2_provider_options,
    make_rknpu3_provider_options,
)

__all__ = [
    "IOBinding",
    "InferenceSession",
    "ModelMetadata",
    "NodeArg",
    "OrtValue",
    "RknnProviderOptions",
    "Rknpu2ProviderOptions",
    "Rknpu3ProviderOptions",
    "SessionIOBinding",
    "__version__",
    "make_provider_options",
    "make_rknpu2_provider_options",
    "make_rknpu3_provider_options",
]
