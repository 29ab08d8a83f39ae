"""HYBRIDGEN_* variables and additional_config["hybridgen"]: parsing, precedence, and what bad input says."""

import pytest

from hybridgen import config
from hybridgen.errors import HybridGenError, InvalidArgument


def test_defaults_work():
    settings = config.load({})
    assert (settings.device_kind, settings.dram, settings.cxl, settings.stats) == ("auto", "auto", "auto", "")
    assert settings.disable is False and settings.check is False


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("512M", 512 << 20), ("8G", 8 << 30), ("1.5g", 3 << 29), ("4KiB", 4096), ("100", 100), ("2TB", 2 << 40),
     ("auto", "auto"), (" 1M ", 1 << 20)],
)  # fmt: skip
def test_sizes(text, expected):
    assert config.load({"HYBRIDGEN_DRAM": text}).dram == expected


BAD_VALUES = [
    ("HYBRIDGEN_DEVICE_KIND", "gpu", "auto, cpu, emulated, cuda"),
    ("HYBRIDGEN_DRAM", "-1G", "a size such as"),
    ("HYBRIDGEN_DRAM", "12Q", "a size such as"),
    ("HYBRIDGEN_DRAM", "inf", "a size such as"),
    ("HYBRIDGEN_DRAM", "nan", "a size such as"),
    ("HYBRIDGEN_CXL", "lots", "a size such as"),
    ("HYBRIDGEN_CXL_NODE", "-2", "NUMA node"),
    ("HYBRIDGEN_CXL_NODE", "automatic", "-1, auto"),
    ("HYBRIDGEN_CXL_DEVICE", "dax0.0", "/dev/dax0.0"),
    ("HYBRIDGEN_PLACEMENT", "spread", "proportional"),
    ("HYBRIDGEN_PLACEMENT", "role:1:1", "interleave:N:M"),
    ("HYBRIDGEN_PLACEMENT", "interleave:3", "interleave:N:M"),
    ("HYBRIDGEN_PLACEMENT", "interleave:0:1", "interleave:N:M"),
    ("HYBRIDGEN_PLACEMENT", "interleave:1:2:3", "interleave:N:M"),
    ("HYBRIDGEN_HOST_PAGE_FORMAT", "int4", "exact, int8"),
    ("HYBRIDGEN_PAGE_DIGESTS", "always", "none, on_publish"),
    ("HYBRIDGEN_CXL_GBPS", "-1", "GB/s"),
    ("HYBRIDGEN_MOVER_GBPS", "fast", "GB/s"),
    ("HYBRIDGEN_HEAD_GROUPS", "-1", "0 to"),
    ("HYBRIDGEN_DRAM_NODE", "x", "NUMA node"),
    ("HYBRIDGEN_THREADS", "1.5", "0 to 4096"),
    ("HYBRIDGEN_DEVICE_THREADS", "5000", "0 to 4096"),
    ("HYBRIDGEN_CPUS", "3-1", "0-3,8"),
    ("HYBRIDGEN_STREAMING_SHARE", "1.01", "0.0 to 1.0"),
    ("HYBRIDGEN_STREAMING_SHARE", "nan", "0.0 to 1.0"),
    ("HYBRIDGEN_ISA", "sse", "portable, avx2, avx512, avx512_vnni, avx512_bf16, amx_bf16"),
    ("HYBRIDGEN_TIMEOUT", "0", "0.001 to 86400"),
    ("HYBRIDGEN_DEVICE_GBPS", "-3", "GB/s"),
    ("HYBRIDGEN_CHECK", "2", "0 or 1"),
    ("HYBRIDGEN_FULL_GRAPHS", "2", "0 or 1"),
    ("HYBRIDGEN_DISABLE", "maybe", "0 or 1"),
]


@pytest.mark.parametrize(("variable", "value", "accepted"), BAD_VALUES)
def test_bad_value_names_variable_value_and_accepted_ones(variable, value, accepted):
    with pytest.raises(InvalidArgument) as caught:
        config.load({variable: value})
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, HybridGenError)
    for part in (variable, f"'{value}'", accepted):
        assert part in str(caught.value)


def test_every_setting_with_a_closed_range_has_a_bad_value_above():
    open_ended = {"stats"}
    assert {name for name, _, _ in BAD_VALUES} == {s.variable for s in config.SETTINGS if s.name not in open_ended}


def test_unknown_variable_names_the_nearest():
    with pytest.raises(InvalidArgument, match="HYBRIDGEN_STREAM_SHARE.*HYBRIDGEN_STREAMING_SHARE"):
        config.load({"HYBRIDGEN_STREAM_SHARE": "0.5"})


def test_variables_of_the_build_and_of_others_are_left_alone():
    config.load({"HYBRIDGEN_PYTHON": "python3", "HYBRIDGEN_VENV": "/x", "HYBRIDGEN_TEST_SEED": "7", "OTHER": "1"})


def test_additional_config_wins_over_variables():
    settings = config.load({"HYBRIDGEN_DRAM": "1G", "HYBRIDGEN_CXL": "2G"}, {"dram": "3G", "check": True, "threads": 2})
    assert (settings.dram, settings.cxl, settings.check, settings.threads) == (3 << 30, 2 << 30, True, 2)


def test_additional_config_takes_numbers():
    assert config.load({}, {"dram": 4096, "streaming_share": 0.25}).dram == 4096


@pytest.mark.parametrize("overrides", [{"dramm": "1G"}, {"HYBRIDGEN_DRAM": "1G"}, {3: 4}])
def test_unknown_key_names_the_nearest(overrides):
    with pytest.raises(InvalidArgument, match="nearest known one is"):
        config.load({}, overrides)


@pytest.mark.parametrize("overrides", ["dram=1G", [("dram", "1G")], 7])
def test_overrides_of_the_wrong_type(overrides):
    with pytest.raises(InvalidArgument, match="accepted: a dictionary"):
        config.load({}, overrides)


def test_empty_variable_counts_as_unset():
    assert config.load({"HYBRIDGEN_DRAM": ""}).dram == "auto"


def test_disabled_reads_nothing_else():
    assert config.disabled({"HYBRIDGEN_DISABLE": "1", "HYBRIDGEN_NONSENSE": "1"})
    assert not config.disabled({"HYBRIDGEN_NONSENSE": "1"})


def test_placements():
    assert config.placement_weights("auto") == ("auto", 1, 1)
    assert config.placement_weights("interleave") == ("interleave", 1, 1)
    assert config.placement_weights("interleave:3:255") == ("interleave", 3, 255)
    assert config.load({"HYBRIDGEN_PLACEMENT": "Interleave:2:1"}).placement == "interleave:2:1"


def test_the_identity_binding_names_no_host_tier():
    settings = config.identity(config.load({}, {"cxl_node": "auto", "cxl": "1G", "cxl_gbps": 2}))
    assert (settings.tiered, settings.cxl_node, settings.cxl_gbps) == (False, -1, 0.0)


def test_cpu_lists():
    assert config.cpu_list("0-3,8,2") == [0, 1, 2, 3, 8]


def test_documentation_has_the_table_of_this_definition():
    """docs/vllm.md: regenerate with `python -m hybridgen.config`."""
    import pathlib

    page = pathlib.Path(__file__).parents[2] / "docs" / "vllm.md"
    assert config.markdown_table() in page.read_text(encoding="utf-8")
