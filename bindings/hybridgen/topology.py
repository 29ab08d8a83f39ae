"""Tables of the machine's memory topology and of the advice on tiers, for people."""

from rich.table import Table

from hybridgen.config import format_size


def _size(value: int | None) -> str:
    return "?" if value is None else format_size(value)


def _performance(entry: dict | None) -> str:
    if entry is None:
        return "no"
    bandwidth, latency = entry["read_megabytes_per_second"], entry["read_nanoseconds"]
    parts = [f"{bandwidth / 1000:.1f} GB/s"] if bandwidth is not None else []
    if latency is not None:
        parts.append(f"{latency} ns")
    return ", ".join(parts) or "?"


def _ranges(ids: list[int] | None) -> str:
    """`0-3,8` of an ascending list; `none`, or `?` when unknown."""
    if not ids:
        return "?" if ids is None else "none"
    runs: list[list[int]] = []
    for number in ids:
        if runs and runs[-1][-1] == number - 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _node(number: int | None) -> str:
    return "?" if number is None else str(number)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def node_table(topology: dict) -> Table:
    """One row for each node that has memory."""
    columns = ["node", "kind", "speed", "free of", "CPUs", "firmware says", "measured", "how recognised"]
    table = _table("Memory nodes", *columns)
    for node in topology["nodes"]:
        reasons = [node["kind_evidence"]]
        if node["speed"] in ("slower", "faster") and node["speed_evidence"] not in node["kind_evidence"]:
            reasons.append(f"{node['speed']}: {node['speed_evidence']}")
        if node["movable_only"]:
            reasons.append(f"movable only, so pinning moves its pages away: {node['movable_evidence']}")
        table.add_row(
            str(node["id"]),
            node["kind"],
            node["speed"],
            f"{_size(node['free_bytes'])} / {_size(node['total_bytes'])}",
            _ranges(node["cpus"]),
            _performance(node),
            _performance(node["measured"]),
            "\n".join(reasons),
        )
    return table


def tier_table(advice: dict) -> Table:
    """The memory that each host tier should take."""
    table = _table("Tiers", "tier", "memory", "size", "reads", "by", "why")
    for name in ("dram", "cxl"):
        tier = advice[name]
        if tier["device"] or tier["nodes"]:
            ids = _ranges(tier["nodes"])
            memory = f"/dev/{tier['device']}" if tier["device"] else f"node{'s' * (len(tier['nodes']) > 1)} {ids}"
            facts = (memory, _size(tier["bytes"]), _performance(tier), tier["source"])
        else:
            facts = ("none", "", "", "")
        table.add_row(name.upper(), *facts, tier["evidence"])
    return table


def advice_lines(advice: dict) -> list[str]:
    """Placement, settings and warnings, a line each."""
    lines = []
    if advice["placement"] is not None:
        share = advice["value_share_on_cxl"]
        spread = "" if share is None else f", {100 * share:.0f} % of V on CXL"
        lines.append(f"placement: {advice['placement']}{spread} ({advice['placement_evidence']})")
    settings = [f"{name}={value}" for name, value in advice["settings"].items()]
    lines.append(f"settings: {' '.join(settings) or 'the defaults'}")
    return lines + [f"warning: {warning}" for warning in advice["warnings"]]


def device_tables(topology: dict) -> list[Table]:
    """DAX devices and GPUs; a table each, where there are any."""
    tables = []
    if topology["dax_devices"]:
        columns = ["device", "kind", "use", "node", "size", "firmware says", "measured", "how recognised"]
        table = _table("DAX devices", *columns)
        for device in topology["dax_devices"]:
            table.add_row(
                f"/dev/{device['name']}",
                device["kind"],
                device["use"],
                _node(device["target_node"]),
                _size(device["bytes"]),
                _performance(device),
                _performance(device["measured"]),
                device["kind_evidence"],
            )
        tables.append(table)
    if topology["gpus"]:
        table = _table("Display controllers (PCI class 0x03)", "address", "vendor:device", "node")
        for gpu in topology["gpus"]:
            table.add_row(gpu["address"], f"{gpu['vendor'] or '?'}:{gpu['device'] or '?'}", _node(gpu["node"]))
        tables.append(table)
    return tables
