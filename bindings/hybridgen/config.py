"""Configuration: HYBRIDGEN_* variables, and `additional_config["hybridgen"]` of vLLM, which wins over them.

SETTINGS is the one definition: parsing, validation, the table in docs/vllm.md and the command line all read it.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hybridgen.errors import InvalidArgument

PREFIX = "HYBRIDGEN_"
AUTO = "auto"
KEY = "hybridgen"  # of additional_config: the user's overrides
RESOLVED_KEY = "hybridgen_resolved"  # of additional_config: what the front end decided, for every other process

# Variables of the build, the scripts, the tests and `hybridgen topology`, which may be exported in the same shell;
# nothing here reads them.
_FOREIGN_VARIABLES = frozenset({"HYBRIDGEN_PYTHON", "HYBRIDGEN_VENV", "HYBRIDGEN_TOPOLOGY"})
_FOREIGN_PREFIX = "HYBRIDGEN_TEST_"

_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _choice(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in values:
            raise ValueError
        return text.lower()

    return parse


def _size(text: str) -> int | str:
    """Bytes of `512M`, `8G`, `1.5G`, `0`; `auto` stays."""
    text = text.strip()
    if text.lower() == AUTO:
        return AUTO
    number = text.upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:].isalpha() else ""
    value = float(number.removesuffix(unit)) * _SIZE_UNITS[unit]
    if not (math.isfinite(value) and 0 <= value < 1 << 62):
        raise ValueError
    return int(value)


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:  # NaN fails too
            raise ValueError
        return value

    return parse


def _node(text: str) -> int | str:
    return AUTO if text.lower() == AUTO else _integer(-1, 1023)(text)


def _device(text: str) -> str:
    """A /dev/dax path; it is looked at when the tier is reserved."""
    if text and not text.startswith("/"):
        raise ValueError
    return text


def _placement(text: str) -> str:
    """Checks the policy; it stays text, which is what every process passes on."""
    placement_weights(text.lower())
    return text.lower()


def placement_weights(text: str) -> tuple[str, int, int]:
    """Policy, DRAM weight and CXL weight of `role`, `interleave` or `interleave:3:1`."""
    policy, *weights = text.split(":")
    if policy not in (AUTO, "role", "proportional", "interleave"):
        raise ValueError
    if not weights:
        return policy, 1, 1
    dram, cxl = (_integer(1, 255)(weight) for weight in weights)
    if policy != "interleave":
        raise ValueError
    return policy, dram, cxl


def _cpus(text: str) -> str:
    """Checks a list such as 0-3,8; it stays text, which is what every process passes on."""
    if text.lower() != AUTO:
        cpu_list(text)
    return text.lower()


def cpu_list(text: str) -> list[int]:
    """CPU numbers of `0-3,8`, ascending."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 0 <= low <= high < 1 << 16:
            raise ValueError
        cpus.update(range(low, high + 1))
    return sorted(cpus)


def _flag(text: str) -> bool:
    values = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
    return values[text.lower()]


@dataclass(frozen=True)
class Setting:
    """One variable: HYBRIDGEN_<NAME>, or the key <name> of additional_config["hybridgen"]."""

    name: str
    default: str
    parse: Callable[[str], Any]
    accepted: str
    doc: str

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


SETTINGS = (
    Setting(
        "device_kind",
        AUTO,
        _choice(AUTO, "cpu", "emulated", "cuda"),
        "auto, cpu, emulated, cuda",
        "Who does the device tier's work. `cpu`: no accelerator, CPU threads do everything. `emulated`: some threads "
        "and their own pool stand for one. `cuda`: a GPU. `auto` is `cpu` on vLLM's CPU platform, which also takes "
        "`emulated`, and `cuda` on its CUDA platform, which takes no other.",
    ),
    Setting(
        "dram",
        AUTO,
        _size,
        "auto, or a size such as 0, 512M, 8G",
        "DRAM tier of the KV cache of this host, divided among its ranks, reserved in full at start. `auto`: 0 in the "
        "`cpu` kind (the engine's own tensor is DRAM already) and in the `cuda` kind, half of the free memory in the "
        "`emulated` kind. With both tiers 0 the binding is identity.",
    ),
    Setting(
        "cxl",
        AUTO,
        _size,
        "auto, or a size such as 0, 512M, 8G",
        "CXL tier of this host, divided among its ranks, reserved in full at start. `auto`: half of what is free on "
        "HYBRIDGEN_CXL_NODE, all of HYBRIDGEN_CXL_DEVICE, or 0 where neither is named.",
    ),
    Setting(
        "dram_node",
        "-1",
        _integer(-1, 1023),
        "-1, or a NUMA node from 0 to 1023",
        "NUMA node of the DRAM tier; -1: wherever the process allocates.",
    ),
    Setting(
        "cxl_node",
        "-1",
        _node,
        "-1, auto, or a NUMA node from 0 to 1023",
        "NUMA node of the CXL tier; -1: none, the tier is plain memory and reports itself as emulated. `auto`: the "
        "node that `hybridgen topology` recognises as CXL (HYBRIDGEN_TOPOLOGY may say so), unless HYBRIDGEN_CXL is 0; "
        "refused where there is none or more than one.",
    ),
    Setting(
        "cxl_device",
        "",
        _device,
        "a path such as /dev/dax0.0, or empty for none",
        "DAX device in devdax mode whose memory is the CXL tier, in place of a node. Serves one rank.",
    ),
    Setting(
        "placement",
        AUTO,
        _placement,
        "auto, role, proportional, interleave, interleave:N:M",
        "How host pages are placed. `role`: K in DRAM first, V in what DRAM has left, then CXL. `proportional`: K in "
        "DRAM first, V spread so that DRAM and CXL finish together. `interleave`: K and V in turn, N pages in DRAM for "
        "every M in CXL (1 and 1), as the kernel's interleaving does; to compare with. `auto` is `proportional` where "
        "the bandwidths of both tiers are known, by measuring or pacing, else `role`.",
    ),
    Setting(
        "host_page_format",
        "exact",
        _choice("exact", "int8"),
        "exact, int8",
        "How the DRAM and CXL tiers store K and V. `exact`: in the model's dtype. `int8`: 8 bits and one scale for each "
        "token and KV head, which holds about twice as many blocks and rounds what is stored there. Needs a host tier; "
        "refused in the `cuda` kind and beside a float8 KV cache.",
    ),
    Setting(
        "page_digests",
        "none",
        _choice("none", "on_publish"),
        "none, on_publish",
        "Digests of K and V in host pages (bounds of K, centroid of V). `on_publish`: built when a block is published, "
        "in DRAM on top of HYBRIDGEN_DRAM; nothing reads them yet. Needs a host tier; refused beside `int8` host "
        "pages.",
    ),
    Setting(
        "cxl_gbps",
        "0",
        _number(0.0, 1e6),
        "0 to 1000000 GB/s",
        "Paces the CPU's reads of a CXL tier of plain memory to this rate, so that it stands for slower memory; 0: "
        "unpaced. Refused for a node or device.",
    ),
    Setting(
        "mover_gbps",
        "1",
        _number(0.0, 1e6),
        "0 to 1000000 GB/s",
        "Budget of the mover, which brings host pages back to the tier that they are meant for; 0: nothing moves.",
    ),
    Setting(
        "head_groups",
        "0",
        _integer(0, 16),
        "0 to 16",
        "Parts of a rank's KV heads, each with its host pages in the DRAM of one node and read by that node's CPUs "
        "first; 0: one for each DRAM node with CPUs that the rank runs on. A number of nodes that the machine does "
        "not have is emulated on memory that is not bound.",
    ),
    Setting(
        "stats",
        "",
        str,
        "a path, or empty for none",
        "File for statistics as JSON: replaced atomically at most once a second while running, and at exit. With more "
        "than one worker each writes its own, with `.rankN` appended.",
    ),
    Setting(
        "disable",
        "0",
        _flag,
        "0 or 1",
        "1: the plug-in registers nothing, so vLLM behaves as if it were not installed.",
    ),
    Setting(
        "threads",
        "0",
        _integer(0, 4096),
        "0 to 4096",
        "Threads of the CPU worker; 0: all CPUs of the process (`emulated`: less the device's; `cuda`: divided among "
        "the host's ranks).",
    ),
    Setting(
        "device_threads",
        "0",
        _integer(0, 4096),
        "0 to 4096",
        "Threads that stand for the device in the `emulated` kind; 0: one.",
    ),
    Setting(
        "cpus",
        AUTO,
        _cpus,
        "auto, or a list such as 0-3,8",
        "CPUs that the library's own threads are pinned to. `auto`: the list that vLLM chose for this worker's OpenMP "
        "threads (its reserved core left out), not pinned where vLLM chose none. The `cpu` kind runs on vLLM's OpenMP "
        "threads and has none of its own.",
    ),
    Setting(
        "streaming_share",
        "0",
        _number(0.0, 1.0),
        "0.0 to 1.0",
        "Share of the host-resident tokens that the device attends; 0 with `full_graphs`.",
    ),
    Setting(
        "full_graphs",
        "0",
        _flag,
        "0 or 1",
        "1: attention is part of the full CUDA graphs that vLLM captures for decode batches. Not tried on a GPU yet; "
        "`cuda` kind. 0: graphs are piecewise.",
    ),
    Setting(
        "isa",
        AUTO,
        _choice(AUTO, "portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx_bf16"),
        "auto, portable, avx2, avx512, avx512_vnni, avx512_bf16, amx_bf16",
        "Kernel row; `auto` takes the best one that the CPU has.",
    ),
    Setting(
        "timeout",
        "60",
        _number(0.001, 86400.0),
        "0.001 to 86400 seconds",
        "Watchdog of every wait between the processors, in seconds.",
    ),
    Setting(
        "device_gbps",
        "0",
        _number(0.0, 1e6),
        "0 to 1000000 GB/s",
        "Paces the reads of the `emulated` device to this rate; 0: unpaced.",
    ),
    Setting(
        "check",
        "0",
        _flag,
        "0 or 1",
        "1: every step of the tiered binding compares the host mirror of the block tables with the engine's tensors.",
    ),
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}


@dataclass(frozen=True)
class Config:
    """Validated settings, one field per row of SETTINGS. Sizes are bytes of the whole host, or AUTO."""

    device_kind: str
    dram: int | str
    cxl: int | str
    dram_node: int
    cxl_node: int | str
    cxl_device: str
    placement: str
    host_page_format: str
    page_digests: str
    cxl_gbps: float
    mover_gbps: float
    head_groups: int
    stats: str
    disable: bool
    threads: int
    device_threads: int
    cpus: str
    streaming_share: float
    full_graphs: bool
    isa: str
    timeout: float
    device_gbps: float
    check: bool

    @property
    def tiered(self) -> bool:
        """Whether block ids range over host tiers too; asked once the sizes are numbers."""
        return self.dram + self.cxl > 0


def identity(settings: Config, auto_kind: str = "cpu") -> Config:
    """`settings` with no host tier: the engine's tensor is the whole cache. `auto_kind`: what device kind auto means."""
    kind = auto_kind if settings.device_kind == AUTO else settings.device_kind
    return replace(
        settings, device_kind=kind, dram=0, cxl=0, cxl_node=-1, cxl_device="", cxl_gbps=0.0, host_page_format="exact",
        page_digests="none",
    )  # fmt: skip


def load(environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Config:
    """Settings of `environ` with `overrides` (additional_config["hybridgen"]) on top.

    Raises InvalidArgument for an unknown name (naming the nearest known one) and for a bad value.
    """
    overrides = {} if overrides is None else overrides
    if not isinstance(overrides, Mapping):
        raise InvalidArgument(
            f'additional_config["hybridgen"] is a {type(overrides).__name__}; accepted: a dictionary with keys among '
            + ", ".join(_BY_NAME)
        )
    variables = {setting.variable for setting in SETTINGS}
    for name in environ:
        foreign = not name.startswith(PREFIX) or name.startswith(_FOREIGN_PREFIX) or name in _FOREIGN_VARIABLES
        if not foreign and name not in variables:
            raise InvalidArgument(_unknown("environment variable", name, variables))
    for name in overrides:
        if name not in _BY_NAME:
            raise InvalidArgument(_unknown('additional_config["hybridgen"] key', str(name), _BY_NAME))
    values = {}
    for setting in SETTINGS:
        if overrides.get(setting.name) is not None:
            value = overrides[setting.name]
            text = str(int(value)) if isinstance(value, bool) else str(value)
            source = f'additional_config["hybridgen"]["{setting.name}"]'
        else:
            # An empty variable counts as unset, as in most shells' scripts.
            text = environ.get(setting.variable) or setting.default
            source = setting.variable
        values[setting.name] = _parse(setting, text, source)
    return Config(**values)


def disabled(environ: Mapping[str, str]) -> bool:
    """HYBRIDGEN_DISABLE alone, for processes that may never select HybridGen."""
    setting = _BY_NAME["disable"]
    return _parse(setting, environ.get(setting.variable) or setting.default, setting.variable)


def _parse(setting: Setting, text: str, source: str) -> Any:
    try:
        return setting.parse(text)
    except (ValueError, KeyError, OverflowError):
        raise InvalidArgument(f"{source} is '{text}'; accepted values: {setting.accepted}") from None


def _unknown(kind: str, name: str, known) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"unknown {kind} {name}; the nearest known one is {nearest[0]}"


def format_size(num_bytes: int) -> str:
    """`8.0 MiB`, for messages."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def markdown_table() -> str:
    """The table of settings in docs/vllm.md."""
    rows = ["| variable | key | default | accepted | meaning |", "|---|---|---|---|---|"]
    for s in SETTINGS:
        rows.append(f"| `{s.variable}` | `{s.name}` | `{s.default}` | {s.accepted} | {s.doc} |")
    return "\n".join(row.replace("| `` |", "| (empty) |") for row in rows)


if __name__ == "__main__":
    print(markdown_table())
