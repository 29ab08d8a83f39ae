"""The entry point: what it wraps, when it is inert, and what it does on a vLLM that it does not know."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hybridgen import config, platforms, plugin, window
from hybridgen.errors import FailedPrecondition, Unimplemented


@pytest.fixture
def platform(monkeypatch):
    """vLLM's platform class, as it was before any registration, and put back afterwards."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    monkeypatch.delenv("HYBRIDGEN_DISABLE", raising=False)
    cls = type(current_platform)
    saved = dict(vars(cls))
    AttentionBackendEnum.CUSTOM.clear_override()
    yield cls
    AttentionBackendEnum.CUSTOM.clear_override()
    for name in set(vars(cls)) - set(saved):
        delattr(cls, name)
    for name in ("get_attn_backend_cls", "check_and_update_config"):
        setattr(cls, name, saved[name])


def selector(**changes):
    from vllm.v1.attention.selector import AttentionSelectorConfig

    arguments = dict(head_size=64, dtype=torch.float32, kv_cache_dtype="auto", block_size=16)
    return AttentionSelectorConfig(**{**arguments, **changes})


def custom():
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return AttentionBackendEnum.CUSTOM


def test_importing_the_package_loads_neither_vllm_nor_torch():
    code = "import sys, hybridgen, hybridgen.config; print([m for m in ('vllm', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_wraps_exactly_two_classmethods_once(platform):
    before = dict(vars(platform))
    plugin.register()
    after = dict(vars(platform))
    changed = {name for name in after if after[name] is not before.get(name) and not name.startswith("_hybridgen")}
    assert changed == {"get_attn_backend_cls", "check_and_update_config"}
    plugin.register()
    assert dict(vars(platform)) == after


def test_custom_gives_our_class_and_others_theirs(platform):
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    plugin.register()
    assert platform.get_attn_backend_cls(custom(), attn_selector_config=selector(), num_heads=4) == platforms.CPU.backend
    for other in (None, AttentionBackendEnum.CPU_ATTN):
        path = platform.get_attn_backend_cls(other, attn_selector_config=selector(), num_heads=4)
        assert path == AttentionBackendEnum.CPU_ATTN.get_path()


@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "fp8_e4m3", "fp8_e5m2"])
def test_float8_is_accepted_and_quantisation_per_token_is_not(platform, kv_cache_dtype):
    plugin.register()
    good = selector(kv_cache_dtype=kv_cache_dtype, dtype=torch.bfloat16)
    assert platform.get_attn_backend_cls(custom(), attn_selector_config=good) == platforms.CPU.backend
    with pytest.raises(Unimplemented, match="fp8_per_token_head; accepted: auto, fp8, fp8_e4m3, fp8_e5m2, or the"):
        platform.get_attn_backend_cls(
            custom(), attn_selector_config=selector(kv_cache_dtype="fp8_per_token_head", dtype=torch.bfloat16)
        )


def test_refuses_with_all_reasons_in_one_sentence(platform):
    plugin.register()
    bad = selector(head_size=20, dtype=torch.float64, kv_cache_dtype="int8_per_token_head", block_size=24, use_mla=True)
    with pytest.raises(Unimplemented) as caught:
        platform.get_attn_backend_cls(custom(), attn_selector_config=bad)
    for part in ("head_size not supported (20", "dtype not supported (torch.float64", "kv_cache_dtype", "24", "MLA"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_disabled_registers_nothing(platform, monkeypatch):
    monkeypatch.setenv("HYBRIDGEN_DISABLE", "1")
    before = dict(vars(platform))
    plugin.register()
    assert dict(vars(platform)) == before and not custom().is_overridden()


def test_another_plugins_custom_backend_is_not_overwritten(platform):
    from vllm.v1.attention.backends.registry import register_backend

    register_backend(custom(), "somebody.Else")
    with pytest.raises(FailedPrecondition, match=r"somebody\.Else.*VLLM_PLUGINS"):
        plugin.register()


def test_an_unsupported_vllm_runs_and_only_custom_is_refused(platform, monkeypatch):
    monkeypatch.setattr(window, "installed_version", lambda: "0.34.1")
    monkeypatch.delitem(sys.modules, "hybridgen.compat", raising=False)
    monkeypatch.delattr("hybridgen.compat", raising=False)
    updated = []
    platform.check_and_update_config = classmethod(lambda cls, vllm_config: updated.append(vllm_config))
    plugin.register()
    other = SimpleNamespace(attention_config=SimpleNamespace(backend=None))
    platform.check_and_update_config(other)
    assert updated == [other]
    selected = SimpleNamespace(attention_config=SimpleNamespace(backend=custom()))
    with pytest.raises(Unimplemented, match=r"supports vLLM >=0\.32,<0\.34, but vLLM 0\.34\.1"):
        platform.check_and_update_config(selected)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1.dev3+cpu", "0.33.0rc1", "0.33.2"])
def test_versions_in_the_window(version):
    window.check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "0.34.0rc1", "1.0"])
def test_versions_outside_the_window(version):
    with pytest.raises(ImportError, match=rf"supports vLLM >=0\.32,<0\.34, but vLLM {version}"):
        window.check_version(version)


@pytest.mark.parametrize(
    ("environ", "cpus", "source"),
    [
        ({"GOMP_CPU_AFFINITY": "2 3 7"}, [2, 3, 7], "GOMP_CPU_AFFINITY"),
        ({"GOMP_CPU_AFFINITY": "0-2"}, [0, 1, 2], "GOMP_CPU_AFFINITY"),
        ({"KMP_AFFINITY": "granularity=fine,explicit,proclist=[4,5]"}, [4, 5], "KMP_AFFINITY"),
        ({"OMP_PLACES": "{1,2}"}, [1, 2], "OMP_PLACES"),
        ({}, None, "not pinned"),
    ],
)
def test_own_threads_take_the_cpus_that_vllm_chose(environ, cpus, source):
    from hybridgen.engine import own_cpus

    assert own_cpus(config.load({}), environ) == (cpus, source)
    assert own_cpus(config.load({}, {"cpus": "9"}), environ) == ([9], "HYBRIDGEN_CPUS")


def test_statistics_file_is_throttled_and_per_rank(tmp_path):
    from hybridgen.statistics import StatisticsFile

    counts = iter(range(100))
    file = StatisticsFile(str(tmp_path / "s.json"), rank=1, world_size=2, collect=lambda: {"count": next(counts)})
    for _ in range(10):
        file.tick()
    assert json.loads((tmp_path / "s.json.rank1").read_text()) == {"count": 0}
    file.write()
    assert json.loads((tmp_path / "s.json.rank1").read_text()) == {"count": 1}
    assert len(list(tmp_path.iterdir())) == 1
    StatisticsFile("", rank=0, world_size=1, collect=lambda: {}).write()
