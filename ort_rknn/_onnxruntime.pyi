"""onnxruntime's public names, for type checkers, because it has no types of its own. Nothing of this exists at run
time.

The names are those of the newest onnxruntime; tests compare them with the installed one. The most used names have
types; the others are left to the checker's inference.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from onnxruntime import AdapterFormat as AdapterFormat
from onnxruntime import LoraAdapter as LoraAdapter
from onnxruntime import ModelCompiler as ModelCompiler
from onnxruntime import ModelPackage as ModelPackage
from onnxruntime import ModelPackageComponentContext as ModelPackageComponentContext
from onnxruntime import ModelPackageContext as ModelPackageContext
from onnxruntime import ModelPackageOptions as ModelPackageOptions
from onnxruntime import OrtArenaCfg as OrtArenaCfg
from onnxruntime import OrtDevice as OrtDevice
from onnxruntime import OrtEpAssignedNode as OrtEpAssignedNode
from onnxruntime import OrtEpAssignedSubgraph as OrtEpAssignedSubgraph
from onnxruntime import OrtEpContextData as OrtEpContextData
from onnxruntime import OrtEpContextDataBuffer as OrtEpContextDataBuffer
from onnxruntime import OrtEpDevice as OrtEpDevice
from onnxruntime import OrtExternalInitializerInfo as OrtExternalInitializerInfo
from onnxruntime import OrtHardwareDevice as OrtHardwareDevice
from onnxruntime import OrtMemoryInfo as OrtMemoryInfo
from onnxruntime import OrtSyncStream as OrtSyncStream
from onnxruntime import SessionIOBinding as SessionIOBinding
from onnxruntime import SparseTensor as SparseTensor
from onnxruntime import capi as capi
from onnxruntime import copy_tensors as copy_tensors
from onnxruntime import create_and_register_allocator as create_and_register_allocator
from onnxruntime import create_and_register_allocator_v2 as create_and_register_allocator_v2
from onnxruntime import onnxruntime_validation as onnxruntime_validation

#: All except those that ort_rknn defines itself.
__all__ = [
    "AdapterFormat",
    "ExecutionMode",
    "ExecutionOrder",
    "GraphOptimizationLevel",
    "IOBinding",
    "LoraAdapter",
    "ModelCompiler",
    "ModelMetadata",
    "ModelPackage",
    "ModelPackageComponentContext",
    "ModelPackageContext",
    "ModelPackageOptions",
    "ModelPackageWriteMode",
    "NodeArg",
    "OrtAllocatorType",
    "OrtArenaCfg",
    "OrtCompileApiFlags",
    "OrtDevice",
    "OrtDeviceMemoryType",
    "OrtDeviceVendorId",
    "OrtEpAssignedNode",
    "OrtEpAssignedSubgraph",
    "OrtEpContextData",
    "OrtEpContextDataBuffer",
    "OrtEpDevice",
    "OrtExecutionProviderDevicePolicy",
    "OrtExternalInitializerInfo",
    "OrtHardwareDevice",
    "OrtHardwareDeviceType",
    "OrtMemType",
    "OrtMemoryInfo",
    "OrtMemoryInfoDeviceType",
    "OrtSparseFormat",
    "OrtSyncStream",
    "OrtValue",
    "RunOptions",
    "SessionIOBinding",
    "SessionOptions",
    "SparseTensor",
    "__author__",
    "__version__",
    "capi",
    "copy_tensors",
    "create_and_register_allocator",
    "create_and_register_allocator_v2",
    "cuda_version",
    "disable_telemetry_events",
    "enable_telemetry_events",
    "get_build_info",
    "get_device",
    "get_ep_devices",
    "get_version_string",
    "has_collective_ops",
    "import_capi_exception",
    "onnxruntime_validation",
    "package_name",
    "preload_dlls",
    "print_debug_info",
    "register_execution_provider_library",
    "set_default_logger_callback",
    "set_default_logger_severity",
    "set_default_logger_verbosity",
    "set_global_thread_pool_sizes",
    "set_seed",
    "unregister_execution_provider_library",
    "version",
]

__version__: str
__author__: str

def disable_telemetry_events() -> None: ...
def enable_telemetry_events() -> None: ...
def get_all_providers() -> list[str]: ...
def get_available_providers() -> list[str]: ...
def get_build_info() -> str: ...
def get_device() -> str: ...
def get_ep_devices() -> list[Any]: ...
def get_version_string() -> str: ...
def has_collective_ops() -> bool: ...
def preload_dlls(cuda: bool = True, cudnn: bool = True, msvc: bool = True, directory: str | None = None) -> None: ...
def print_debug_info() -> None: ...
def register_execution_provider_library(registration_name: str, library_path: str, /) -> None: ...
def set_default_logger_callback(callback: Callable[..., object] | None, severity: int = 2) -> None: ...
def set_default_logger_severity(severity: int, /) -> None: ...
def set_default_logger_verbosity(verbosity: int, /) -> None: ...
def set_global_thread_pool_sizes(intra_op_num_threads: int = 0, inter_op_num_threads: int = 0) -> None: ...
def set_seed(seed: int, /) -> None: ...
def unregister_execution_provider_library(registration_name: str, /) -> None: ...

cuda_version: str
package_name: str
version: str
import_capi_exception: Any

class _Enum:
    """As created by pybind11: not an enum.Enum."""

    __members__: ClassVar[dict[str, Any]]
    name: str
    value: int

    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...

class ExecutionMode(_Enum):
    ORT_SEQUENTIAL: ClassVar[ExecutionMode]
    ORT_PARALLEL: ClassVar[ExecutionMode]

class ExecutionOrder(_Enum):
    DEFAULT: ClassVar[ExecutionOrder]
    PRIORITY_BASED: ClassVar[ExecutionOrder]
    MEMORY_EFFICIENT: ClassVar[ExecutionOrder]

class GraphOptimizationLevel(_Enum):
    ORT_DISABLE_ALL: ClassVar[GraphOptimizationLevel]
    ORT_ENABLE_BASIC: ClassVar[GraphOptimizationLevel]
    ORT_ENABLE_EXTENDED: ClassVar[GraphOptimizationLevel]
    ORT_ENABLE_LAYOUT: ClassVar[GraphOptimizationLevel]
    ORT_ENABLE_ALL: ClassVar[GraphOptimizationLevel]

class ModelPackageWriteMode(_Enum):
    PRESERVE: ClassVar[ModelPackageWriteMode]
    DENSE: ClassVar[ModelPackageWriteMode]

class OrtAllocatorType(_Enum):
    INVALID: ClassVar[OrtAllocatorType]
    ORT_DEVICE_ALLOCATOR: ClassVar[OrtAllocatorType]
    ORT_ARENA_ALLOCATOR: ClassVar[OrtAllocatorType]

class OrtCompileApiFlags(_Enum):
    NONE: ClassVar[OrtCompileApiFlags]
    ERROR_IF_NO_NODES_COMPILED: ClassVar[OrtCompileApiFlags]
    ERROR_IF_OUTPUT_FILE_EXISTS: ClassVar[OrtCompileApiFlags]

class OrtDeviceMemoryType(_Enum):
    DEFAULT: ClassVar[OrtDeviceMemoryType]
    HOST_ACCESSIBLE: ClassVar[OrtDeviceMemoryType]

class OrtDeviceVendorId(_Enum):
    NONE: ClassVar[OrtDeviceVendorId]
    AMD: ClassVar[OrtDeviceVendorId]
    NVIDIA: ClassVar[OrtDeviceVendorId]
    ARM: ClassVar[OrtDeviceVendorId]
    MICROSOFT: ClassVar[OrtDeviceVendorId]
    HUAWEI: ClassVar[OrtDeviceVendorId]
    QUALCOMM: ClassVar[OrtDeviceVendorId]
    INTEL: ClassVar[OrtDeviceVendorId]

class OrtExecutionProviderDevicePolicy(_Enum):
    DEFAULT: ClassVar[OrtExecutionProviderDevicePolicy]
    PREFER_CPU: ClassVar[OrtExecutionProviderDevicePolicy]
    PREFER_NPU: ClassVar[OrtExecutionProviderDevicePolicy]
    PREFER_GPU: ClassVar[OrtExecutionProviderDevicePolicy]
    MAX_PERFORMANCE: ClassVar[OrtExecutionProviderDevicePolicy]
    MAX_EFFICIENCY: ClassVar[OrtExecutionProviderDevicePolicy]
    MIN_OVERALL_POWER: ClassVar[OrtExecutionProviderDevicePolicy]

class OrtHardwareDeviceType(_Enum):
    CPU: ClassVar[OrtHardwareDeviceType]
    GPU: ClassVar[OrtHardwareDeviceType]
    NPU: ClassVar[OrtHardwareDeviceType]

class OrtMemType(_Enum):
    CPU_INPUT: ClassVar[OrtMemType]
    CPU_OUTPUT: ClassVar[OrtMemType]
    CPU: ClassVar[OrtMemType]
    DEFAULT: ClassVar[OrtMemType]

class OrtMemoryInfoDeviceType(_Enum):
    CPU: ClassVar[OrtMemoryInfoDeviceType]
    GPU: ClassVar[OrtMemoryInfoDeviceType]
    NPU: ClassVar[OrtMemoryInfoDeviceType]
    FPGA: ClassVar[OrtMemoryInfoDeviceType]

class OrtSparseFormat(_Enum):
    ORT_SPARSE_UNDEFINED: ClassVar[OrtSparseFormat]
    ORT_SPARSE_COO: ClassVar[OrtSparseFormat]
    ORT_SPARSE_CSRC: ClassVar[OrtSparseFormat]
    ORT_SPARSE_BLOCK_SPARSE: ClassVar[OrtSparseFormat]

class NodeArg:
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> list[Any]: ...

class ModelMetadata:
    custom_metadata_map: dict[str, str]
    description: str
    domain: str
    graph_description: str
    graph_name: str
    producer_name: str
    version: int

class RunOptions:
    log_severity_level: int
    log_verbosity_level: int
    logid: str
    only_execute_path_to_fetches: bool
    terminate: bool

    def __init__(self) -> None: ...
    def add_active_adapter(self, adapter: Any, /) -> None: ...
    def add_run_config_entry(self, key: str, value: str, /) -> None: ...
    def get_run_config_entry(self, key: str, /) -> str: ...

class SessionOptions:
    enable_cpu_mem_arena: bool
    enable_mem_pattern: bool
    enable_mem_reuse: bool
    enable_profiling: bool
    execution_mode: ExecutionMode
    execution_order: ExecutionOrder
    graph_optimization_level: GraphOptimizationLevel
    inter_op_num_threads: int
    intra_op_num_threads: int
    log_severity_level: int
    log_verbosity_level: int
    logid: str
    optimized_model_filepath: str
    profile_file_prefix: str
    use_deterministic_compute: bool
    use_per_session_threads: bool

    def __init__(self) -> None: ...
    def add_external_initializers(self, names: list[str], values: list[Any], /) -> None: ...
    def add_external_initializers_from_files_in_memory(
        self, names: Sequence[str], buffers: Sequence[bytes], lengths: Sequence[int], /
    ) -> None: ...
    def add_free_dimension_override_by_denotation(self, denotation: str, size: int, /) -> None: ...
    def add_free_dimension_override_by_name(self, name: str, size: int, /) -> None: ...
    def add_initializer(self, name: str, value: OrtValue, /) -> None: ...
    def add_provider(self, name: str, options: Mapping[str, str], /) -> None: ...
    def add_provider_for_devices(self, devices: Sequence[Any], options: Mapping[str, str], /) -> None: ...
    def add_session_config_entry(self, key: str, value: str, /) -> None: ...
    def clear_ep_context_data_read_func(self) -> None: ...
    def get_session_config_entry(self, key: str, /) -> str: ...
    def has_providers(self) -> bool: ...
    def register_custom_ops_library(self, path: str, /) -> None: ...
    def set_ep_context_data_read_func(self, read_func: Callable[..., Any]) -> None: ...
    def set_load_cancellation_flag(self, value: bool, /) -> None: ...
    def set_provider_selection_policy(self, policy: OrtExecutionProviderDevicePolicy, /) -> None: ...
    def set_provider_selection_policy_delegate(self, delegate: Callable[..., Any], /) -> None: ...

class OrtValue:
    def __init__(self, ortvalue: Any, numpy_obj: np.ndarray[Any, Any] | None = None, session: Any = None) -> None: ...
    @classmethod
    def from_dlpack(cls, data: Any, /) -> OrtValue: ...
    @classmethod
    def ort_value_from_sparse_tensor(cls, sparse_tensor: Any) -> OrtValue: ...
    @classmethod
    def ortvalue_from_numpy(
        cls, numpy_obj: np.ndarray[Any, Any], /, device_type: str = "cpu", device_id: int = 0, vendor_id: Any = -1
    ) -> OrtValue: ...
    @classmethod
    def ortvalue_from_numpy_with_onnx_type(cls, data: np.ndarray[Any, Any], /, onnx_element_type: int) -> OrtValue: ...
    @classmethod
    def ortvalue_from_shape_and_type(
        cls,
        shape: Sequence[int],
        element_type: Any,
        device_type: str = "cpu",
        device_id: int = 0,
        vendor_id: Any = -1,
        memory_info: Any = None,
    ) -> OrtValue: ...
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]: ...
    def __dlpack__(self, *, stream: Any = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def as_sparse_tensor(self) -> Any: ...
    def data_ptr(self) -> int: ...
    def data_type(self) -> str: ...
    def device_name(self) -> str: ...
    def element_type(self) -> int: ...
    def has_value(self) -> bool: ...
    def is_sparse_tensor(self) -> bool: ...
    def is_tensor(self) -> bool: ...
    def is_tensor_sequence(self) -> bool: ...
    def numpy(self) -> np.ndarray[Any, Any]: ...
    def shape(self) -> list[int]: ...
    def tensor_size_in_bytes(self) -> int: ...
    def update_inplace(self, data: Any) -> None: ...

class IOBinding:
    def __init__(self, session: InferenceSession) -> None: ...
    def bind_cpu_input(self, name: str, arr_on_cpu: np.ndarray[Any, Any]) -> None: ...
    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None: ...
    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None: ...
    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None: ...
    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None: ...
    def clear_binding_inputs(self) -> None: ...
    def clear_binding_outputs(self) -> None: ...
    def copy_outputs_to_cpu(self) -> list[np.ndarray[Any, Any]]: ...
    def get_outputs(self) -> list[OrtValue]: ...
    def get_outputs_as_ortvaluevector(self) -> Any: ...
    def synchronize_inputs(self) -> None: ...
    def synchronize_outputs(self) -> None: ...

class InferenceSession:
    """The base class of ort_rknn's session."""

    _sess: Any
    _model_path: Any
    _model_bytes: Any
    _sess_options_initial: Any
    _providers: list[str]
    _provider_options: dict[str, dict[str, str]]

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        sess_options: SessionOptions | None = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None: ...
    def create_ortvalue_from_shape_and_type(
        self, shape: Sequence[int], element_type: Any, device_type: str, device_id: int = 0, vendor_id: Any = -1
    ) -> OrtValue: ...
    def disable_fallback(self) -> None: ...
    def enable_fallback(self) -> None: ...
    def end_profiling(self) -> str: ...
    def get_input_epdevices(self) -> Sequence[Any]: ...
    def get_input_memory_infos(self) -> Sequence[Any]: ...
    def get_inputs(self) -> list[NodeArg]: ...
    def get_modelmeta(self) -> ModelMetadata: ...
    def get_output_memory_infos(self) -> Sequence[Any]: ...
    def get_outputs(self) -> list[NodeArg]: ...
    def get_overridable_initializers(self) -> list[NodeArg]: ...
    def get_profiling_start_time_ns(self) -> int: ...
    def get_provider_graph_assignment_info(self) -> Sequence[Any]: ...
    def get_provider_options(self) -> dict[str, dict[str, str]]: ...
    def get_providers(self) -> list[str]: ...
    def get_session_options(self) -> SessionOptions: ...
    def get_tuning_results(self) -> list[Any]: ...
    def io_binding(self) -> IOBinding: ...
    def release_captured_graph(self, graph_annotation_id: int = 0) -> None: ...
    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: RunOptions | None = None,
    ) -> list[Any]: ...
    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        callback: Callable[[list[Any], Any, str], object],
        user_data: Any,
        run_options: RunOptions | None = None,
    ) -> None: ...
    def run_with_iobinding(self, iobinding: IOBinding, run_options: RunOptions | None = None) -> None: ...
    def run_with_ort_values(
        self,
        output_names: Sequence[str] | None,
        input_dict_ort_values: Mapping[str, OrtValue],
        run_options: RunOptions | None = None,
    ) -> list[OrtValue]: ...
    def run_with_ortvaluevector(
        self, run_options: Any, feed_names: Any, feeds: Any, fetch_names: Any, fetches: Any, fetch_devices: Any
    ) -> None: ...
    def set_ep_dynamic_options(self, options: dict[str, str]) -> None: ...
    def set_providers(
        self, providers: Sequence[Any] | None = None, provider_options: Sequence[Any] | None = None
    ) -> None: ...
    def set_tuning_results(self, results: Any, *, error_on_invalid: bool = False) -> None: ...
