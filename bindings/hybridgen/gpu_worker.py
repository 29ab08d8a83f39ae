"""vLLM's GPU worker with HybridGen. It has not run on a GPU yet: tests drive it over a fake of vLLM's worker."""

import functools

import numpy as np

from hybridgen import compat
from hybridgen.backend import HybridGenMetadataBuilder
from hybridgen.engine import IdentityEngine, float8_of
from hybridgen.worker import HybridGenWorker


class HybridGenGpuWorker(HybridGenWorker, compat.gpu_worker_class()):
    """Also makes the engines of the identity binding: the batch's tensors lie on the device, and a builder of its own
    would have to wait for the device to read them."""

    def _identity_engines(self) -> list[IdentityEngine]:
        layers = self.compilation_config.static_forward_context
        engines = []
        for kv_cache_group, groups in enumerate(self.model_runner.attn_groups):
            for group in groups:
                for builder in group.metadata_builders:
                    if not isinstance(builder, HybridGenMetadataBuilder):
                        continue
                    tables = functools.partial(self._host_tables, kv_cache_group)
                    spec = builder.kv_cache_spec
                    float8 = float8_of(spec, self.vllm_config)
                    builder.engine = IdentityEngine(self._settings, spec, self.device, tables, float8)
                    # Now rather than at the first call: attaching reads sinks from the device.
                    for name in group.layer_names:
                        builder.engine.attach(layers[name].impl, layers[name].kv_cache, layers[name])
                    engines.append(builder.engine)
        return engines

    def _host_tables(self, kv_cache_group: int) -> np.ndarray:
        """The V1 model runner's block tables of a group [rows, width], from which it fills the device's."""
        return self.model_runner.input_batch.block_table[kv_cache_group].get_numpy_array()
