"""Records what the topology reader looks at, as one small text file: record_tree.py [ROOT] > NAME.tree

ROOT holds `sys` and `proc`; by default the running machine. A line is `path = content` with \\n for a line feed, or
`path -> target` for a symbolic link.
"""

import pathlib
import sys

FILES = (
    "proc/meminfo",
    "sys/kernel/mm/transparent_hugepage/enabled",
    "sys/devices/system/memory/block_size_bytes",
    "sys/devices/system/node/online",
    "sys/devices/system/node/has_*",
    "sys/devices/system/node/node[0-9]*/cpulist",
    "sys/devices/system/node/node[0-9]*/distance",
    "sys/devices/system/node/node[0-9]*/meminfo",
    "sys/devices/system/node/node[0-9]*/memory[0-9]*",
    "sys/devices/system/node/node[0-9]*/memory_failure/total",
    "sys/devices/system/node/node[0-9]*/access[01]/initiators/read_*",
    "sys/devices/system/node/node[0-9]*/hugepages/*/nr_hugepages",
    "sys/devices/system/node/node[0-9]*/hugepages/*/free_hugepages",
    "sys/devices/virtual/memory_tiering/memory_tier*/nodelist",
)
# Devices of a bus, which are links, and what is read of each beside its driver.
DEVICES = {
    "sys/bus/dax/devices/*": ("size", "target_node"),
    "sys/bus/cxl/devices/region*": ("mode", "resource", "size", "access[01]/read_*"),
    "sys/bus/pci/devices/*": ("class", "vendor", "device", "numa_node"),
}
MEMINFO_FIELDS = ("MemTotal:", "MemFree:", "MemAvailable:")


def record(root: pathlib.Path, path: pathlib.Path) -> None:
    name = path.relative_to(root)
    if path.is_symlink():
        print(f"{name} -> {path.readlink()}")
        return
    try:
        content = path.read_text()
    except OSError:
        return
    if path.name == "meminfo":
        lines = content.splitlines(keepends=True)
        content = "".join(line for line in lines if any(field in line for field in MEMINFO_FIELDS))
    print(f"{name} = {content}".replace("\n", "\\n"))


def main() -> None:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "/").resolve()
    paths = {path for pattern in FILES for path in root.glob(pattern)}
    for pattern, attributes in DEVICES.items():
        for link in root.glob(pattern):
            if "pci" in pattern and not (link / "class").read_text().startswith("0x03"):
                continue
            paths.add(link)
            device = link.resolve()
            paths.update(path for attribute in attributes for path in device.glob(attribute))
            if (device / "driver").is_symlink():  # glob passes over a link that leads nowhere, as in a recorded tree
                paths.add(device / "driver")
    for path in sorted(paths):
        record(root, path)


if __name__ == "__main__":
    main()
