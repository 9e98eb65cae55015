"""The API of EZ RKNN Async (``ztu_somemodelruntime_ez_rknn_async`` 0.11), standing on ort_rknn's executor.

    import ort_rknn_ez_async as ort        # instead of: import ztu_somemodelruntime_ez_rknn_async as ort

    session = ort.InferenceSession("model.rknn", provider_options=ort.make_provider_options(schedule=[0, 1, 2]))

A program that was written for that library runs by changing this one import: on a board, on the virtual NPU
(``ORT_RKNN_DEVICE=virtual:rk3588``), and on the CPU with the ONNX twin beside the ``.rknn``, which a FallbackWarning
tells. Names, options, defaults and results are that library's; see ``docs/multicore.md`` for what the options mean.
Written from its behavior, without its code.

What is different on purpose:

* ``run`` executes on the caller's own thread while a context is free. It works inside a callback, and a slow callback
  delays no ``run``.
* What that library rejects without need is taken: read-only and unpickled arrays, float64 and uint64, lists, any
  Mapping, bytearray and memoryview models, provider lists with ``CPUExecutionProvider``, every compiled shape of a
  dynamic model, ONNX models.
* ``NodeArg.type`` is what ``run`` takes and gives (``get_native_inputs()`` has the compiled types),
  ``NodeArg.layout`` is the layout of ``NodeArg.shape``, and "any" means NHWC everywhere.
* Unknown options, keywords and run options are errors.
* Values of device "rknpu2" lie in memory that the NPU shares, where the device gives such; they may be used with any
  context, and with any session that stores the tensor likewise. RKNPU3 is refused.
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
