"""Tables of a statistics file (HYBRIDGEN_STATS), for people."""

import json
import pathlib

from rich.table import Table

from hybridgen.config import format_size

TIERS = ("device", "dram", "cxl")
_TITLES = {"device": "device", "dram": "DRAM", "cxl": "CXL"}


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
