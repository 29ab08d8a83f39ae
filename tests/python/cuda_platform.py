"""vLLM's own CUDA platform class in a process without a GPU, and stand-ins for what only a GPU has."""

import functools
import sys
import types
from dataclasses import dataclass
from types import SimpleNamespace

import torch


@functools.cache
def install() -> type:
    """Makes vLLM's CUDA platform this process's platform, an H100's as far as it is asked, and returns its class.

    vLLM comes as its CPU build here, so modules that need its CUDA extensions cannot be imported afterwards; what making
    a configuration and a worker needs is imported before, as on the CPU platform.
    """
    import vllm.model_executor.models.llama
    import vllm.platforms
    import vllm.v1.worker.gpu_model_runner
    import vllm.v1.worker.gpu_worker  # the real one, for HybridGenGpuWorker
    from vllm import LLM  # noqa: F401
    from vllm.model_executor.models import registry
    from vllm.platforms.interface import DeviceCapability

    registry._run_in_subprocess = lambda function: function()  # whose process would be on the CPU platform
    sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("vllm._C_stable_libtorch")
    from vllm.platforms.cuda import NonNvmlCudaPlatform

    answers = {
        "get_device_capability": DeviceCapability(9, 0),
        "get_device_total_memory": 80 << 30,
        "get_device_name": "stand-in",
        "device_count": 1,
    }
    for name, answer in answers.items():
        setattr(NonNvmlCudaPlatform, name, classmethod(lambda cls, device_id=0, answer=answer: answer))
    before, after = vllm.platforms.current_platform, NonNvmlCudaPlatform()
    vllm.platforms._current_platform = after
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get("current_platform") is before:
            module.current_platform = after
    return NonNvmlCudaPlatform


class Core:
    """Records the calls that the library would get. Takes the place of hybridgen._core.Backend."""

    made: "list[Core]" = []

    def __init__(self, **config) -> None:
        self.config = config
        self.calls: list[tuple] = []
        self.closed = False
        self._layers = 0
        Core.made.append(self)

    def add_layer(self, **layer) -> int:
        self.calls.append(("add_layer", layer))
        self._layers += 1
        return self._layers - 1

    def close(self) -> None:
        self.closed = True

    def stats(self) -> str:
        return '{"placement": {"policy": "role", "reason": "", "key_share_on_cxl": 0, "value_share_on_cxl": 0, ' \
               '"arenas": [], "notes": []}, "tiers": {}}'  # fmt: skip

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: self.calls.append((name, *args, kwargs) if kwargs else (name, *args))

    def named(self, name: str) -> list[tuple]:
        return [call for call in self.calls if call[0] == name]


@dataclass
class CudaTensor:
    """A tensor in device memory: an address, a shape and strides, but nothing that could be read."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = torch.device("cuda:1")

    def data_ptr(self) -> int:
        return self.address

    def stride(self, dim: int | None = None):
        return self.strides if dim is None else self.strides[dim]

    def element_size(self) -> int:
        return self.dtype.itemsize

    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    def fill_(self, value):
        self.filled = value
        return self


class Streams:
    """Stands for torch.cuda.current_stream: `current` is the handle that it gives on any device."""

    def __init__(self, current: int) -> None:
        self.current = current
        self.devices: list[torch.device] = []

    def __call__(self, device=None):
        self.devices.append(device)
        return SimpleNamespace(cuda_stream=self.current)
