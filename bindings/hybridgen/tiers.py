"""Arithmetic of the tiers: what the machine can hold, how many blocks fit, what makes vLLM count them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hybridgen.config import AUTO, Config, format_size
from hybridgen.errors import FailedPrecondition, InvalidArgument, ResourceExhausted

# Pages that copies in flight may hold while every block is live; they are kept out of the count of usable blocks.
SPARE_BLOCKS = 4

_HOST_DIM_GROUP = 16  # host pages pad the head size to this many dims
_SCALE_BYTES = 4  # of a token and KV head in host pages of 8 bits


@dataclass(frozen=True)
class Geometry:
    """KV cache of one rank: `layers` layers that own KV, all alike."""

    layers: int
    kv_heads: int
    head_size: int
    element_size: int  # bytes
    block_size: int  # tokens
    host_page_format: str = "exact"

    @property
    def content_bytes(self) -> int:
        """K and V of one head and token in a device page."""
        return 2 * self.head_size * self.element_size

    @property
    def block_bytes(self) -> int:
        """One block in the device tier, all layers."""
        return self.layers * self.kv_heads * self.block_size * self.content_bytes

    @property
    def host_role_bytes(self) -> int:
        """K (or V) of one block in a host tier, all layers."""
        padded = -(-self.head_size // _HOST_DIM_GROUP) * _HOST_DIM_GROUP
        token = padded + _SCALE_BYTES if self.host_page_format == "int8" else padded * self.element_size
        return self.layers * self.kv_heads * self.block_size * token

    def host_blocks(self, dram_bytes: int, cxl_bytes: int) -> int:
        """Blocks that the host tiers hold, less the spare ones."""
        role_pages = dram_bytes // self.host_role_bytes + cxl_bytes // self.host_role_bytes
        return max(0, role_pages // 2 - SPARE_BLOCKS)

    def customised_content(self, device_bytes: int, dram_bytes: int, cxl_bytes: int) -> int:
        """Bytes per head and token to declare to vLLM, which divides `device_bytes` by it to count blocks.

        The smallest multiple of the element size with which every block but the null block (id 0, never stored) has a
        page in some tier.
        """
        usable = device_bytes // self.block_bytes + self.host_blocks(dram_bytes, cxl_bytes)
        cells = self.block_bytes // self.content_bytes
        for content in range(self.element_size, self.content_bytes, self.element_size):
            if device_bytes // (cells * content) <= usable + 1:
                return content
        return self.content_bytes

    def blocks(self, device_bytes: int, content: int) -> int:
        """Blocks that vLLM counts in `device_bytes` when told `content`."""
        return device_bytes // (self.block_bytes // self.content_bytes * content)


def resolve_cxl(settings: Config, ranks: int, environ: Mapping[str, str] = os.environ) -> Config:
    """`settings` with CXL size (of the whole host) and node as numbers; refuses what contradicts itself."""
    if settings.cxl == 0:
        return replace(settings, cxl_node=-1, cxl_device="", cxl_gbps=0.0)
    if settings.cxl_device and settings.cxl_node != -1:
        raise InvalidArgument(
            f"HYBRIDGEN_CXL_DEVICE={settings.cxl_device} and HYBRIDGEN_CXL_NODE={settings.cxl_node} both name the CXL "
            "tier; set one of them"
        )
    if settings.cxl_device and ranks > 1:
        raise InvalidArgument(
            f"HYBRIDGEN_CXL_DEVICE={settings.cxl_device} serves one rank and this host has {ranks}; use "
            "HYBRIDGEN_CXL_NODE with the device's memory as a NUMA node"
        )
    if settings.cxl_node == AUTO:
        settings = replace(settings, cxl_node=_cxl_node(environ.get("HYBRIDGEN_TOPOLOGY")))
    if settings.cxl_gbps > 0 and (settings.cxl_device or settings.cxl_node >= 0):
        raise InvalidArgument(
            f"HYBRIDGEN_CXL_GBPS={settings.cxl_gbps} paces a CXL tier of plain memory, and the tier is "
            f"{settings.cxl_device or f'NUMA node {settings.cxl_node}'}; accepted there: 0"
        )
    if settings.cxl == AUTO:
        if settings.cxl_device:
            settings = replace(settings, cxl=device_bytes(settings.cxl_device))
        else:
            free = available_bytes(settings.cxl_node) if settings.cxl_node >= 0 else 0
            settings = replace(settings, cxl=free // 2)
    return settings


def _cxl_node(override: str | None) -> int:
    """The one NUMA node recognised as CXL."""
    from hybridgen import _core

    nodes = json.loads(_core.topology_json(override=override))["nodes"]
    found = [node["id"] for node in nodes if node["kind"] == "cxl"]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{node['id']} {node['kind']}" for node in nodes) or "none listed"
    problem = f"nodes {found} are" if found else "no node is"
    raise InvalidArgument(
        f"HYBRIDGEN_CXL_NODE=auto: {problem} recognised as CXL (nodes: {known}); name the node, or say what it is, "
        "such as HYBRIDGEN_TOPOLOGY=1:cxl"
    )


def device_bytes(path: str, sys: str = "/sys") -> int:
    """Memory of a DAX device that tiers can use: each role's part is rounded up to the device's alignment."""
    folder = f"{sys}/bus/dax/devices/{os.path.basename(path)}"
    size, alignment = _integer(f"{folder}/size"), _integer(f"{folder}/align")
    if size is None or alignment is None:
        raise FailedPrecondition(
            f"HYBRIDGEN_CXL_DEVICE={path}: {folder} does not tell its size and alignment; accepted: a DAX device of "
            "this machine (daxctl list)"
        )
    return max(0, size - 2 * alignment)


def check_room(device_bytes: int, settings: Config) -> None:
    """Refuses sizes (of the whole host) that the machine cannot hold, before anything is allocated. `device_bytes` lie in
    its memory too; 0 where the device has its own."""
    anywhere = device_bytes
    for name, size, node in (
        ("HYBRIDGEN_DRAM", settings.dram, settings.dram_node),
        ("HYBRIDGEN_CXL", settings.cxl, settings.cxl_node),
    ):
        if name == "HYBRIDGEN_CXL" and settings.cxl_device:
            if size > device_bytes(settings.cxl_device):
                raise ResourceExhausted(
                    f"{name}={format_size(size)} is more than the {format_size(device_bytes(settings.cxl_device))} of "
                    f"{settings.cxl_device}; lower {name}"
                )
        elif node < 0:
            anywhere += size
        elif size > available_bytes(node):
            raise ResourceExhausted(
                f"{name}={format_size(size)} is more than the {format_size(available_bytes(node))} available on NUMA "
                f"node {node}; lower {name}"
            )
    if anywhere > available_bytes():
        raise ResourceExhausted(
            f"device {format_size(device_bytes)} (kv_cache_memory_bytes), HYBRIDGEN_DRAM={format_size(settings.dram)} "
            f"and HYBRIDGEN_CXL={format_size(settings.cxl)} are more than the {format_size(available_bytes())} "
            "available on this machine; lower one of them"
        )


def available_bytes(node: int = -1) -> int:
    """Memory that can still be allocated, on one NUMA node or (-1) anywhere, within the cgroup's limit."""
    if node >= 0 and os.path.exists(f"/sys/devices/system/node/node{node}/meminfo"):
        fields = _meminfo(f"/sys/devices/system/node/node{node}/meminfo")
        free = fields["MemFree"] + fields.get("FilePages", 0) - fields.get("Shmem", 0)
    else:
        free = _meminfo("/proc/meminfo")["MemAvailable"]
    limit, used = _integer("/sys/fs/cgroup/memory.max"), _integer("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        free = min(free, limit - used)
    return max(0, free)


def _meminfo(path: str) -> dict[str, int]:
    fields = {}
    with open(path, encoding="ascii") as lines:
        for line in lines:
            words = line.replace(":", " ").split()
            if words[-1] == "kB":
                fields[words[-3]] = int(words[-2]) << 10
    return fields


def _integer(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
