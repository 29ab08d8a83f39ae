"""vLLM's platforms that HybridGen serves, and what it installs on each."""

from typing import NamedTuple

from hybridgen import compat


class Platform(NamedTuple):
    """Class paths are what vLLM's options take: strings, imported by the processes that need them."""

    name: str
    device_kinds: tuple[str, ...]  # accepted ones; the first is what `auto` means
    backend: str
    worker: str
    vllm_worker: str  # that vLLM's platform sets when the user named none


CPU = Platform(
    name="CPU",
    device_kinds=("cpu", "emulated"),
    backend="hybridgen.backend.HybridGenBackend",
    worker="hybridgen.cpu_worker.HybridGenCpuWorker",
    vllm_worker=compat.CPU_WORKER,
)
CUDA = Platform(
    name="CUDA",
    device_kinds=("cuda",),
    backend="hybridgen.backend.HybridGenCudaBackend",
    worker="hybridgen.gpu_worker.HybridGenGpuWorker",
    vllm_worker=compat.GPU_WORKER,
)


def current() -> Platform | None:
    """This process's platform; None if it is not served."""
    if compat.current_platform.is_cuda():
        return CUDA
    return CPU if compat.current_platform.is_cpu() else None
