"""Settings of every end-to-end test, tiny models made once, and fixtures around scenarios.py."""

import functools
import os

# Before vLLM is imported: several engines in this one process, whose layers the tests can look into; no network.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# The models are too small for a second OpenMP thread to pay; tests that are about threads ask for them.
os.environ["OMP_NUM_THREADS"] = "1"

import models
import pytest
import scenarios


def pytest_configure(config):
    """What vLLM does once per process and engine, and what many engines in one process need otherwise."""
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    # vLLM inspects a model class in a process of its own, 10 s each; here in this one, which has vLLM already.
    registry._run_in_subprocess = lambda function: function()
    # Replaces kernels in every loaded module; a second time it stumbles over modules of numba, which n-gram drafts use.
    override = functools.cache(current_platform.register_triton_kernel_overrides)
    type(current_platform).register_triton_kernel_overrides = staticmethod(override)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """Folder of a model by its name in models.MODELS, made at first use."""
    root = tmp_path_factory.mktemp("models")
    made = {}

    def get(name: str) -> str:
        if name not in made:
            made[name] = models.save(name, str(root / name))
        return made[name]

    return get


@pytest.fixture(scope="session")
def reference(model_dir):
    """Results of vLLM's own backend for (model, scenario), computed once a session."""
    results = {}

    def get(model: str, scenario: str) -> list[scenarios.Answer]:
        if (model, scenario) not in results:
            # Starting an engine costs more than a scenario: the common ones are answered together.
            wanted = scenarios.COMMON if scenario in scenarios.COMMON else (scenario,)
            with scenarios.engine(model_dir(model), "CPU_ATTN") as llm:
                assert {type(impl).__name__ for impl in scenarios.impls(llm).values()} == {"CPUAttentionBackendImpl"}
                for name in wanted:
                    results[(model, name)] = scenarios.run(llm, name)
        return results[(model, scenario)]

    return get
