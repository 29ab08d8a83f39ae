"""vLLM's GPU worker with HybridGen. It has not run on a GPU yet: tests drive it over a fake of vLLM's worker."""

import functools

import numpy as np

from hybridgen import compat
from hybridgen.backend import HybridGenMetadataBuilder
from hybridgen.engine import Graphs, IdentityEngine, float8_of
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
                    builder.engine = IdentityEngine(self._settings, spec, self.device, tables, float8, self._graphs)
                    # Now rather than at the first call: attaching reads sinks from the device.
                    for name in group.layer_names:
                        builder.engine.attach(layers[name].impl, layers[name].kv_cache, layers[name])
                    engines.append(builder.engine)
        return engines

    def _full_graphs(self) -> Graphs | None:
        compilation = self.compilation_config  # with the mode that vLLM has settled on
        if not self._settings.full_graphs or not compilation.cudagraph_mode.has_full_cudagraphs():
            return None
        tokens = min(compilation.max_cudagraph_capture_size, self.vllm_config.scheduler_config.max_num_seqs)
        pages = -(-self.model_config.max_model_len // self.cache_config.block_size)
        graphs = Graphs(tokens, tokens * pages)  # so that every decode batch of that many requests fits
        self._follow_dispatch(graphs)
        return graphs

    def _follow_dispatch(self, graphs: Graphs) -> None:
        """vLLM decides how a step runs right before it asks for the metadata, and does not tell the builders."""
        runner = self.model_runner
        decide = type(runner)._determine_batch_execution_and_padding

        @functools.wraps(decide)
        def followed(*args, **kwargs):
            decision = decide(runner, *args, **kwargs)
            mode, descriptor = decision[:2]
            graphs.tokens = descriptor.num_tokens if mode == compat.CUDAGraphMode.FULL else None
            return decision

        runner._determine_batch_execution_and_padding = followed

    def _host_tables(self, kv_cache_group: int) -> np.ndarray:
        """The V1 model runner's block tables of a group [rows, width], from which it fills the device's."""
        return self.model_runner.input_batch.block_table[kv_cache_group].get_numpy_array()
