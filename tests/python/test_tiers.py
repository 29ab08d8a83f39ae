"""What makes vLLM count the blocks of all tiers, and what a machine can hold."""

import random

import pytest

from hybridgen import config, tiers
from hybridgen.errors import ResourceExhausted


def geometry(**changes) -> tiers.Geometry:
    return tiers.Geometry(**{**dict(layers=2, kv_heads=2, head_size=32, element_size=4, block_size=32), **changes})


def test_bytes_of_a_block():
    shape = geometry()
    assert shape.content_bytes == 2 * 32 * 4
    assert shape.block_bytes == 2 * 2 * 32 * 256
    assert shape.host_role_bytes * 2 == shape.block_bytes
    assert geometry(head_size=40).host_role_bytes == 2 * 2 * 32 * 48 * 4, "host pages pad heads to 16 dims"


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
