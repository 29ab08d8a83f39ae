"""What makes vLLM count the blocks of all tiers, and what a machine can hold."""

import json
import random

import pytest

from hybridgen import config, tiers
from hybridgen.errors import FailedPrecondition, InvalidArgument, ResourceExhausted


def geometry(**changes) -> tiers.Geometry:
    return tiers.Geometry(**{**dict(layers=2, kv_heads=2, head_size=32, element_size=4, block_size=32), **changes})


def test_bytes_of_a_block():
    shape = geometry()
    assert shape.content_bytes == 2 * 32 * 4
    assert shape.block_bytes == 2 * 2 * 32 * 256
    assert shape.host_role_bytes * 2 == shape.block_bytes
    assert geometry(head_size=40).host_role_bytes == 2 * 2 * 32 * 48 * 4, "host pages pad heads to 16 dims"
    int8 = geometry(head_size=40, host_page_format="int8")
    assert int8.host_role_bytes == 2 * 2 * 32 * (48 + 4), "a scale for each token and head"
    assert int8.block_bytes == geometry(head_size=40).block_bytes, "the device's pages stay exact"


def test_ratio_of_all_tiers_to_the_device():
    shape = geometry()
    device = 16 * shape.block_bytes
    content = shape.customised_content(device, 100 * shape.block_bytes, 16 * shape.block_bytes)
    assert content == 32  # an eighth: 16 + 116 - 4 spare pages
    assert shape.blocks(device, content) == 128


def test_blocks_never_exceed_the_pages(seed=7):
    """Over random sizes: every block but the null one has a page, and one element less would be too many."""
    generator = random.Random(seed)
    for _ in range(2000):
        shape = geometry(
            layers=generator.randint(1, 5),
            kv_heads=generator.choice([1, 2, 8]),
            head_size=generator.choice([8, 40, 64, 128, 512]),
            element_size=generator.choice([2, 4]),
            block_size=generator.choice([16, 32, 128]),
        )
        device = generator.randint(0, 40 * shape.block_bytes)
        dram, cxl = generator.randint(0, 300 * shape.block_bytes), generator.randint(0, 300 * shape.block_bytes)
        content = shape.customised_content(device, dram, cxl)
        assert content % shape.element_size == 0 and 0 < content <= shape.content_bytes
        pages = device // shape.block_bytes + shape.host_blocks(dram, cxl)
        if content < shape.content_bytes:
            assert shape.blocks(device, content) - 1 <= pages
        if content > shape.element_size:
            assert shape.blocks(device, content - shape.element_size) - 1 > pages
        assert shape.customised_content(device, dram, cxl) == content, "pure"


@pytest.mark.parametrize("name", ["dram", "cxl"])
def test_more_than_the_machine_has_is_refused(name):
    settings = config.load({}, {"dram": 0, "cxl": 0, name: "64T"})
    with pytest.raises(ResourceExhausted, match=f"HYBRIDGEN_{name.upper()}=64.0 TiB.*available.*lower") as caught:
        tiers.check_room(1 << 20, settings)
    assert isinstance(caught.value, MemoryError)


def test_more_than_a_node_has_is_refused():
    settings = config.load({}, {"dram": "64T", "cxl": 0, "dram_node": 0})
    with pytest.raises(ResourceExhausted, match="HYBRIDGEN_DRAM=64.0 TiB.*NUMA node 0"):
        tiers.check_room(1 << 20, settings)


def test_available_memory_is_that_of_the_machine():
    import os

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < tiers.available_bytes() <= total
    assert 0 < tiers.available_bytes(0) <= total


def resolve(ranks=1, environ=None, **settings):
    return tiers.resolve_cxl(config.load({}, settings), ranks, environ or {})


def test_without_a_size_the_cxl_settings_are_not_looked_at():
    settings = resolve(cxl="0", cxl_node="auto", cxl_gbps=3, environ={"HYBRIDGEN_TOPOLOGY": "nonsense"})
    assert (settings.cxl, settings.cxl_node, settings.cxl_gbps) == (0, -1, 0.0)
    assert resolve(cxl_node=-1).cxl == 0, "auto without a node or a device is none"


def test_plain_memory_may_be_paced():
    settings = resolve(cxl="1G", cxl_gbps=3)
    assert (settings.cxl, settings.cxl_node, settings.cxl_gbps) == (1 << 30, -1, 3.0)


@pytest.mark.parametrize("tier", [{"cxl_node": 0}, {"cxl_device": "/dev/dax0.0"}])
def test_a_real_tier_is_not_paced(tier):
    with pytest.raises(InvalidArgument, match="HYBRIDGEN_CXL_GBPS=3.0.*accepted there: 0"):
        resolve(cxl="1M", cxl_gbps=3, **tier)


def test_a_node_and_a_device_contradict_each_other():
    for node in (1, "auto"):
        with pytest.raises(InvalidArgument, match="set one of them"):
            resolve(cxl="1M", cxl_node=node, cxl_device="/dev/dax0.0")


def test_a_device_serves_one_rank():
    with pytest.raises(InvalidArgument, match="one rank and this host has 2"):
        resolve(ranks=2, cxl="1M", cxl_device="/dev/dax0.0")


def test_the_one_cxl_node_is_found():
    assert resolve(cxl="1M", cxl_node="auto", environ={"HYBRIDGEN_TOPOLOGY": "0:cxl"}).cxl_node == 0
    sized = resolve(cxl_node="auto", environ={"HYBRIDGEN_TOPOLOGY": "0:cxl"})
    assert 0 < sized.cxl <= tiers.available_bytes(0)


def test_no_cxl_node_is_refused_with_what_is_there():
    with pytest.raises(InvalidArgument, match="no node is recognised as CXL.*0 dram.*HYBRIDGEN_TOPOLOGY=1:cxl"):
        resolve(cxl="1M", cxl_node="auto", environ={"HYBRIDGEN_TOPOLOGY": "0:dram"})


def test_several_cxl_nodes_are_refused(monkeypatch):
    from hybridgen import _core

    nodes = [{"id": 0, "kind": "dram"}, {"id": 2, "kind": "cxl"}, {"id": 3, "kind": "cxl"}]
    monkeypatch.setattr(_core, "topology_json", lambda override: json.dumps({"nodes": nodes}))
    with pytest.raises(InvalidArgument, match=r"nodes \[2, 3\] are recognised as CXL.*name the node"):
        resolve(cxl="1M", cxl_node="auto")


def test_a_device_tells_its_size(tmp_path):
    folder = tmp_path / "bus" / "dax" / "devices" / "dax1.0"
    folder.mkdir(parents=True)
    with pytest.raises(FailedPrecondition, match="does not tell its size"):
        tiers.device_bytes("/dev/dax1.0", str(tmp_path))
    (folder / "size").write_text(f"{1 << 30}\n")
    (folder / "align").write_text(f"{2 << 20}\n")
    assert tiers.device_bytes("/dev/dax1.0", str(tmp_path)) == (1 << 30) - (4 << 20)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(FailedPrecondition, match="HYBRIDGEN_CXL_DEVICE=/dev/dax99.9"):
        resolve(cxl_device="/dev/dax99.9")
