"""Tables of a statistics file (HYBRIDGEN_STATS), for people."""

import json
import pathlib

from rich.table import Table

from hybridgen.config import format_size

TIERS = ("device", "dram", "cxl")
_TITLES = {"device": "device", "dram": "DRAM", "cxl": "CXL"}
_ROLES = {"key": "K", "value": "V"}


def read(path: pathlib.Path) -> dict:
    """The file as a dictionary. Raises ValueError with a sentence when it is no statistics file."""
    try:
        statistics = json.loads(path.read_text(encoding="utf-8"))
        statistics["backends"][0]["tiers"]
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{path} is not a statistics file of HybridGen, or no engine had started") from None
    return statistics


def sum_tiers(statistics: dict) -> dict[str, dict]:
    """Each tier's numbers, summed over the backends of the process."""
    tiers: dict[str, dict] = {}
    for backend in statistics["backends"]:
        for name, tier in backend["tiers"].items():
            total = tiers.setdefault(name, {"emulated": False})
            total["emulated"] |= tier["emulated"]
            for key, value in tier.items():
                if key.endswith("_bytes"):
                    total[key] = total.get(key, 0) + value
    return tiers


def cpu_share(tier: dict) -> float:
    """Share of the tier's bytes that the CPU read; 0 where nothing was read."""
    return tier["cpu_read_bytes"] / tier["read_bytes"] if tier["read_bytes"] else 0.0


def placement_line(backend: dict) -> str:
    """How one tiered backend placed its host pages, in a sentence for the log; problems come last."""
    placement = backend["placement"]
    shares = " and ".join(
        f"{placement[f'{role}_share_on_cxl']:.0%} of {letter}" for role, letter in (("key", "K"), ("value", "V"))
    )
    arenas = ", ".join(
        f"{_TITLES[arena['tier']]} {_ROLES[arena['role']]} {format_size(arena['capacity_bytes'])} on {_node(arena)}"
        for arena in placement["arenas"]
    )
    emulated = [_TITLES[name] for name in TIERS if backend["tiers"].get(name, {}).get("emulated")]
    problems = [
        f"{_TITLES[arena['tier']]} {_ROLES[arena['role']]}: {_misplaced(arena)} sampled pages lie on other nodes"
        for arena in placement["arenas"]
        if arena["misplaced_pages"]
    ]
    parts = [f"placement {placement['policy']} ({placement['reason']}), {shares} wanted on CXL; {arenas}"]
    if digests := backend.get("page_digests"):
        parts.append(f"page digests {format_size(digests['reserved_bytes'])}")
    if emulated:
        parts.append("emulated: " + ", ".join(emulated))
    return "; ".join(parts + problems + placement["notes"])


def _node(arena: dict) -> str:
    return "any node" if arena["node"] < 0 else f"node {arena['node']}"


def _misplaced(arena: dict) -> str:
    sampled = sum(arena["sampled_pages_on_node"].values()) + arena["sampled_pages_unknown"]
    return f"{arena['misplaced_pages']} of {sampled}"


def arena_table(statistics: dict) -> Table | None:
    """Where the memory of the host tiers lies, by role and node; None in the identity binding."""
    arenas = [arena for backend in statistics["backends"] for arena in backend.get("placement", {}).get("arenas", ())]
    if not arenas:
        return None
    placement = statistics["backends"][0]["placement"]
    table = Table(
        title=f"host pages: placement {placement['policy']} ({placement['reason']})", title_justify="left",
        caption="\n".join(placement["notes"]) or None, caption_justify="left",
    )  # fmt: skip
    for column in ("tier", "role", "node"):
        table.add_column(column)
    for column in ("capacity", "resident", "misplaced", "repaired", "unmovable", "pin failures"):
        table.add_column(column, justify="right")
    for arena in arenas:
        table.add_row(
            _TITLES[arena["tier"]],
            _ROLES[arena["role"]],
            "any" if arena["node"] < 0 else str(arena["node"]),
            format_size(arena["capacity_bytes"]),
            format_size(arena["resident_bytes"]),
            _misplaced(arena),
            str(arena["repaired_pages"]),
            str(arena["unmovable_pages"]),
            str(arena["pin_failures"]),
        )
    return table


def tier_table(statistics: dict, title: str) -> Table:
    """Capacity, resident K and V bytes, bytes read and CPU share of every tier."""
    table = Table(title=title, title_justify="left")
    table.add_column("tier")
    for column in ("capacity", "K resident", "V resident", "read", "CPU share"):
        table.add_column(column, justify="right")
    tiers = sum_tiers(statistics)
    for name in TIERS:
        if name not in tiers:
            continue
        tier = tiers[name]
        table.add_row(
            _TITLES[name] + (" (emulated)" if tier["emulated"] else ""),
            *(
                format_size(tier[key])
                for key in ("capacity_bytes", "resident_key_bytes", "resident_value_bytes", "read_bytes")
            ),
            f"{cpu_share(tier):.0%}",
        )
    every = {key: sum(tier[key] for tier in tiers.values()) for key in ("read_bytes", "cpu_read_bytes")}
    table.add_section()
    table.add_row("all", "", "", "", format_size(every["read_bytes"]), f"{cpu_share(every):.0%}")
    return table
