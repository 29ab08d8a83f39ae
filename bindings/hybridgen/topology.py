"""Tables of the machine's memory topology, for people."""

from rich.table import Table

from hybridgen.config import format_size


def _size(value: int | None) -> str:
    return "?" if value is None else format_size(value)


def _performance(entry: dict) -> str:
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
    table = _table("Memory nodes", "node", "kind", "speed", "free of", "CPUs", "firmware says", "how recognised")
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
            "\n".join(reasons),
        )
    return table


def hint(topology: dict) -> str | None:
    """What to do about nodes of unknown kind, if there are any."""
    unknown = [node["id"] for node in topology["nodes"] if node["kind"] == "unknown"]
    if not unknown:
        return None
    example = ",".join(f"{number}:cxl" for number in unknown)
    return f"If you know what a node of unknown kind is, say so, such as HYBRIDGEN_TOPOLOGY={example}"


def device_tables(topology: dict) -> list[Table]:
    """DAX devices and GPUs; a table each, where there are any."""
    tables = []
    if topology["dax_devices"]:
        table = _table("DAX devices", "device", "kind", "use", "node", "size", "firmware says", "how recognised")
        for device in topology["dax_devices"]:
            table.add_row(
                f"/dev/{device['name']}",
                device["kind"],
                device["use"],
                _node(device["target_node"]),
                _size(device["bytes"]),
                _performance(device),
                device["kind_evidence"],
            )
        tables.append(table)
    if topology["gpus"]:
        table = _table("Display controllers (PCI class 0x03)", "address", "vendor:device", "node")
        for gpu in topology["gpus"]:
            table.add_row(gpu["address"], f"{gpu['vendor'] or '?'}:{gpu['device'] or '?'}", _node(gpu["node"]))
        tables.append(table)
    return tables
