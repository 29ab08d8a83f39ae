"""The only module that imports vLLM's names. A vLLM outside the supported window is an ImportError that says so."""

# ruff: noqa: E402, F401
from hybridgen.window import check_version, installed_version

check_version(installed_version())

from vllm.config import CUDAGraphMode, VllmConfig
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheLayout,
    KVCacheSpec,
    SlidingWindowSpec,
)

# Below vLLM's own logger, so that vLLM's logging configuration applies.
logger = init_logger("vllm.hybridgen")

# The worker classes that the platforms set when the user named none.
CPU_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"
GPU_WORKER = "vllm.v1.worker.gpu_worker.Worker"


def cpu_worker_class() -> type:
    """vLLM's CPU worker. Importing it replaces functions of torch, so only worker processes may ask."""
    from vllm.v1.worker.cpu_worker import CPUWorker

    return CPUWorker


def gpu_worker_class() -> type:
    """vLLM's worker for GPUs."""
    from vllm.v1.worker.gpu_worker import Worker

    return Worker
