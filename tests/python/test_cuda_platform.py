"""vLLM's CUDA platform: what the plug-in hooks, selects, resolves and refuses there. Runs no kernel and no GPU."""

import cuda_platform
import pytest
import torch
import transformers

PLATFORM = cuda_platform.install()

from vllm import LLM
from vllm.config import CUDAGraphMode
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.attention.selector import AttentionSelectorConfig

from hybridgen import _core, config, platforms, plugin
from hybridgen.errors import Unimplemented

CUSTOM = AttentionBackendEnum.CUSTOM
SELECT = PLATFORM.get_attn_backend_cls.__func__  # vLLM's own, before any hook
TIERED = {"dram": "64M"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Registered; with a GPU as far as the library is asked, and the V1 model runner."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    monkeypatch.setattr(_core, "cuda_problem", lambda: None)
    plugin.register()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A folder with a model's configuration: head size 64."""
    folder = tmp_path_factory.mktemp("model")
    llama = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, dtype="bfloat16",
    )  # fmt: skip
    llama.architectures = ["LlamaForCausalLM"]
    llama.save_pretrained(folder)
    return str(folder)


def resolve(model: str, hybridgen: dict | None = None, **arguments):
    """The VllmConfig that the front end makes of LLM()'s arguments, and HybridGen's part of it."""
    arguments = dict(attention_backend="CUSTOM", skip_tokenizer_init=True, max_model_len=256) | arguments
    made = EngineArgs(model, additional_config={"hybridgen": hybridgen or {}}, **arguments).create_engine_config()
    return made, config.Config(**made.additional_config[config.RESOLVED_KEY])


def selector(**changes) -> AttentionSelectorConfig:
    good = dict(head_size=128, dtype=torch.bfloat16, kv_cache_dtype="auto", block_size=16)
    return AttentionSelectorConfig(**{**good, **changes})


def test_hooks_are_on_the_cuda_platform_once():
    assert platforms.current() is platforms.CUDA
    hooks = {name: vars(PLATFORM)[name] for name in ("get_attn_backend_cls", "check_and_update_config")}
    plugin.register()
    assert hooks == {name: vars(PLATFORM)[name] for name in hooks}
    assert CUSTOM.get_path() == "hybridgen.backend.HybridGenCudaBackend"


@pytest.mark.parametrize("select", [SELECT, None], ids=["vllm", "hook"])
@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "fp8_e4m3", "fp8_e5m2"])
def test_float8_is_accepted_by_vllms_own_selection(select, kv_cache_dtype):
    select = select or PLATFORM.get_attn_backend_cls.__func__
    wanted = selector(kv_cache_dtype=kv_cache_dtype)
    assert select(PLATFORM, CUSTOM, wanted, num_heads=8) == "hybridgen.backend.HybridGenCudaBackend"


@pytest.mark.parametrize("select", [SELECT, None], ids=["vllm", "hook"])
@pytest.mark.parametrize("block_size", [16, 32, 48, 128, None])
@pytest.mark.parametrize("head_size", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_accepted_by_vllms_own_selection(select, dtype, head_size, block_size):
    wanted = selector(
        dtype=dtype, head_size=head_size, block_size=block_size, has_sink=True, has_sliding_window=True,
        use_non_causal=True,
    )  # fmt: skip
    select = select or PLATFORM.get_attn_backend_cls.__func__
    assert select(PLATFORM, CUSTOM, wanted, num_heads=8) == "hybridgen.backend.HybridGenCudaBackend"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(head_size=80), "head_size not supported (80; accepted: 64, 96, 128, 256)"),
        (dict(head_size=512), "head_size not supported (512; accepted: 64, 96, 128, 256)"),
        (dict(dtype=torch.float32), "dtype not supported (torch.float32; accepted: float16, bfloat16)"),
        (dict(kv_cache_dtype="fp8_per_token_head"), "kv_cache_dtype not supported (fp8_per_token_head"),
        (dict(kv_cache_dtype="float16"), "kv_cache_dtype not supported (float16"),
        (dict(block_size=24), "block_size not supported (24; accepted: multiples of 16)"),
        (dict(use_mla=True), "MLA not supported"),
        (dict(use_sparse=True), "sparse not supported"),
        (dict(use_mm_prefix=True), "multimodal"),
        (dict(use_dcp=True), "DCP not supported"),
        (dict(use_pcp=True), "PCP not supported"),
        (dict(use_rswa=True), "R-SWA not supported"),
        (dict(use_batch_invariant=True), "batch invariance not supported"),
        (dict(use_adaptive_verification=True), "adaptive verification"),
        (dict(attn_type="encoder_only"), "attention type encoder_only not supported"),
    ],
)
def test_refused_by_name(changes, reason):
    with pytest.raises(Unimplemented) as caught:
        PLATFORM.get_attn_backend_cls(CUSTOM, attn_selector_config=selector(**changes))
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=reason.split(" (")[0]):
        SELECT(PLATFORM, CUSTOM, selector(**changes))


def test_old_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(PLATFORM, "get_device_capability", classmethod(lambda cls, device_id=0: DeviceCapability(7, 5)))
    with pytest.raises(Unimplemented, match="compute capability not supported"):
        PLATFORM.get_attn_backend_cls(CUSTOM, attn_selector_config=selector())


def test_attention_stays_out_of_captured_graphs(model):
    from hybridgen.backend import HybridGenCudaBackend, HybridGenMetadataBuilder

    made, settings = resolve(model)
    assert not settings.full_graphs
    assert HybridGenMetadataBuilder.get_cudagraph_support(made, None).name == "NEVER"
    assert HybridGenCudaBackend.get_builder_cls() is HybridGenMetadataBuilder
    assert HybridGenCudaBackend.forward_includes_kv_cache_update


def test_full_graphs_hold_decodes_of_one_token_where_asked_for(model):
    """What vLLM makes of its default mode with each answer of the builder, by its own rule."""
    from hybridgen.backend import HybridGenMetadataBuilder

    made, settings = resolve(model, {"full_graphs": 1})
    assert settings.full_graphs
    support = HybridGenMetadataBuilder.get_cudagraph_support(made, None)
    assert support.name == "UNIFORM_SINGLE_TOKEN_DECODE"
    compilation = made.compilation_config
    compilation.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    for query_tokens, mode in ((1, "FULL_AND_PIECEWISE"), (3, "PIECEWISE")):  # 3: with drafts
        resolved = compilation.resolve_cudagraph_mode_and_sizes(support, "HybridGen", query_tokens)
        assert resolved.name == mode


def test_identity_is_the_default_and_takes_our_worker(model):
    made, settings = resolve(model)
    assert (settings.device_kind, settings.tiered) == ("cuda", False)
    assert made.parallel_config.worker_cls == "hybridgen.gpu_worker.HybridGenGpuWorker"
    assert not made.scheduler_config.disable_hybrid_kv_cache_manager


def test_a_host_tier_makes_it_tiered(model):
    made, settings = resolve(model, TIERED, kv_cache_memory_bytes=32 << 20)
    assert (settings.device_kind, settings.dram, settings.tiered) == ("cuda", 64 << 20, True)
    assert made.parallel_config.worker_cls == "hybridgen.gpu_worker.HybridGenGpuWorker"
    assert made.scheduler_config.disable_hybrid_kv_cache_manager
    assert made.cache_config.kv_cache_memory_bytes == 32 << 20
    assert settings.threads >= 1


def test_the_device_tier_does_not_count_as_host_memory(model):
    """More than any machine of this test has; a GPU's memory is vLLM's to check."""
    _, settings = resolve(model, TIERED, kv_cache_memory_bytes=1 << 50)
    assert settings.tiered


def test_full_decode_graphs_are_left_to_vllm(model):
    """vLLM lowers its default, which has full graphs for decodes only, to piecewise when a builder says NEVER."""
    made, _ = resolve(model)
    assert made.compilation_config.cudagraph_mode.mixed_mode().name != "FULL"


# Part of the sentence -> HybridGen's settings, LLM()'s arguments.
REFUSED = {
    "HYBRIDGEN_DEVICE_KIND=cpu (accepted on vLLM's CUDA platform: auto, cuda)": ({"device_kind": "cpu"}, {}),
    "HYBRIDGEN_DEVICE_KIND=emulated (accepted on vLLM's CUDA": ({"device_kind": "emulated"}, {}),
    "dtype not supported (torch.float32": ({}, dict(dtype="float32")),
    "head_size not supported (80": ({}, dict(hf_overrides={"head_dim": 80})),
    "block_size not supported (24": ({}, dict(block_size=24)),
    "CUDA graphs of mixed batches that hold attention": ({}, dict(compilation_config={"cudagraph_mode": "FULL"})),
    "microbatches": ({}, dict(ubatch_size=2)),
    "asynchronous scheduling": (
        {},
        dict(speculative_config={"method": "ngram_gpu", "num_speculative_tokens": 2, "prompt_lookup_max": 2}),
    ),
    "layers of their own": (
        {},
        dict(speculative_config={"method": "draft_model", "model": "MODEL", "num_speculative_tokens": 2}),
    ),
    "host tiers without kv_cache_memory_bytes": (TIERED, {}),
    "KV offloading": (TIERED, dict(kv_cache_memory_bytes=32 << 20, kv_offloading_size=0.01)),
    "worker_cls=my.Worker": ({"full_graphs": 1}, dict(worker_cls="my.Worker")),
    "worker_cls=somebody.Worker": (TIERED, dict(kv_cache_memory_bytes=32 << 20, worker_cls="somebody.Worker")),
}


@pytest.mark.parametrize("part", REFUSED)
def test_the_front_end_refuses_by_name(model, part):
    settings, arguments = REFUSED[part]
    if arguments.get("speculative_config", {}).get("model") == "MODEL":
        arguments = {"speculative_config": {**arguments["speculative_config"], "model": model}}
    with pytest.raises(Unimplemented) as caught:
        resolve(model, settings, **arguments)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{}, TIERED], ids=["identity", "tiered"])
def test_the_v2_model_runner_is_refused_once(model, monkeypatch, settings):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(Unimplemented) as caught:
        resolve(model, settings, kv_cache_memory_bytes=32 << 20)
    assert str(caught.value).count("V2 model runner (set VLLM_USE_V2_MODEL_RUNNER=0)") == 1


def test_n_gram_drafts_are_accepted_without_asynchronous_scheduling(model):
    draft = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
    made, _ = resolve(model, speculative_config=draft)
    assert not made.scheduler_config.async_scheduling


def test_llm_itself_says_that_cuda_cannot_be_had(model, monkeypatch):
    """The library's own answer on this machine, in the exception of LLM()."""
    monkeypatch.undo()
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    problem = _core.cuda_problem()
    if problem is None:
        pytest.skip("this build has CUDA code and this machine a driver")
    assert problem.startswith("device kind cuda: ")
    with pytest.raises(Unimplemented) as caught:
        LLM(model, attention_backend="CUSTOM", skip_tokenizer_init=True, max_model_len=256)
    assert str(caught.value).endswith(problem)


def test_other_accelerators_are_refused(model, monkeypatch):
    monkeypatch.setattr(platforms, "current", lambda: None)
    with pytest.raises(Unimplemented, match="platform cuda .accepted: vLLM's CPU and CUDA platforms"):
        resolve(model)
